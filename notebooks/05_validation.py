# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # The calibrated model's sky, tested against galaxies it never saw
#
# A model calibrated on one half of the mock sky predicts the photometry of the other half: magnitudes, colours, colour pairs and
# principal components are compared one by one, and each distance is set beside the distance of two halves of the sky.
#
# | reads | writes | paper |
# |---|---|---|
# | `mock`, `uncertainty` (03) | `figures/validation_marginals` | Alsing+24 figs 4, 5; Thorp+25 figs 28, 29 |
# | `emulator` (02) | `figures/validation_colours` | Alsing+24 fig. 6; Thorp+25 fig. 30 |
# | `population_start`, `population` (04) | `figures/validation_components` | Thorp+25 appendix D, figs 25, 26 |

# %% tags=["parameters"]
profile: str = "fast"     # smoke, fast or full
seed: int = 5             # random seed
n_galaxies: int = 20_000  # galaxies drawn from each model
min_gain: float = 3.0     # sliced W2 of the broad prior over that of the calibrated model, at least
min_start_gain: float = 1.0  # the same of the start over that of the calibrated model
max_ks: float = 0.15      # largest Kolmogorov-Smirnov distance along a colour component

# %% tags=["setup"]
import torch

from popcosmos_lib import emulator, filters, metrics, population, priors, run, survey, transport
from popcosmos_lib.figures import validation

this = run.start("05_validation", profile=profile, seed=seed)
mock = this.read("mock").data
for name in ("emulator", "uncertainty"):
    this.read(name)

# %% [markdown]
# ## The sky that was not used
#
# Calibration saw the galaxies marked `train`; the others are the test. Both halves passed r < 25 on their observed flux.

# %%
columns = [f"flux_{band}" for band in filters.SHORT]
flux = torch.stack([torch.as_tensor(mock[name].data) for name in columns], -1).float()
chosen, train = (torch.as_tensor(mock[name].data) for name in ("select_r25", "train"))
sky, other = flux[chosen & ~train], flux[chosen & train]

# %% [markdown]
# ## Three models of it
#
# The calibrated population, the one that the maximum-posterior fits started from, and a broad prior that knows no astronomy (uniform
# in all 16 parameters; nearly all its galaxies are too faint, so many more are drawn). All pass through the same emulator, learned
# uncertainty, Student-t noise and selection.

# %%
forward = population.ForwardModel(emulator.load(profile=profile), survey.load(profile))
theta = {
    name: population.Population.from_state(this.read(artefact).data).sample(n_galaxies, this.generator(name))
    for name, artefact in (("start", "population_start"), ("calibrated", "population"))
}
theta["broad"] = priors.Broad().sample(10 * n_galaxies, this.generator("broad"))

# %%
with torch.no_grad():
    seen = {name: forward(rows, forward.draws(len(rows), this.generator(f"{name} noise"))) for name, rows in theta.items()}
model = {name: rows.flux[rows.selected][:n_galaxies] for name, rows in seen.items()}

# %% [markdown]
# ## One number: the sliced Wasserstein distance
#
# Root mean square difference of sorted projections of 26 asinh magnitudes and 25 adjacent colours, in units of their standard deviation.
# The floor is the distance between the two halves of the sky.

# %%
magnitude = {name: survey.asinh_magnitude(rows) for name, rows in model.items()}
magnitude["floor"], magnitude["sky"] = survey.asinh_magnitude(other), survey.asinh_magnitude(sky)
features = transport.Features(magnitude["sky"])
cloud = {name: features(rows) for name, rows in magnitude.items()}
distance = {name: float(transport.sliced_wasserstein(rows, cloud["sky"])) for name, rows in cloud.items() if name != "sky"}
gain = distance["broad"] / distance["calibrated"]

# %% [markdown]
# ## Nine colours and their principal components
#
# Adjacent broad-band colours; the components are those of the sky, and the model is projected on the same axes (Thorp+25 appendix D).

# %%
broad_bands = ["u", "g", "r", "i", "z", "Y", "J", "H", "Ks", "Ch1"]
columns = [filters.SHORT.index(band) for band in broad_bands]
colour = {name: rows[:, columns][:, :-1] - rows[:, columns][:, 1:] for name, rows in magnitude.items()}
mean = colour["sky"].mean(0)
values, vectors = torch.linalg.eigh(torch.cov(colour["sky"].T))
vectors = vectors.flip(1).T[:6]
vectors = vectors * torch.gather(vectors, 1, vectors.abs().argmax(1, keepdim=True)).sign()
variance = values.flip(0).cumsum(0) / values.sum()
component = {name: (rows - mean) @ vectors.T for name, rows in colour.items()}

# %% [markdown]
# ## How far apart along each component
#
# Kolmogorov-Smirnov distance, and the two curves behind it: the model's distribution at the sky's quantiles (PP) and the difference of
# quantiles (QQ).

# %%
p = torch.linspace(0.005, 0.995, 199)
compared = [metrics.pp_qq(a, b, p) for a, b in zip(component["sky"].T, component["calibrated"].T, strict=True)]
pp, qq = (torch.stack(curves) for curves in zip(*compared, strict=True))
band = 1.96 * (p * (1 - p) * (1 / len(sky) + 1 / len(model["calibrated"]))).sqrt()
ks = {
    name: [metrics.ks(a, b) for a, b in zip(component[name].T, component["sky"].T, strict=True)]
    for name in ("start", "calibrated", "floor")
}

# %% [markdown]
# ## Can a classifier tell?
#
# A two-sample test: a small network is trained to tell sky from model; half of its answers are right by chance.

# %%
accuracy = {
    name: metrics.c2st(cloud["sky"], cloud[name], generator=this.generator("c2st"))
    for name in ("start", "calibrated", "floor")
}

# %% tags=["nbval-check-output"]
this.report(
    held_out_galaxies=f"about {round(len(sky), -2)}",
    sliced_W2_gain_over_broad_prior=f"at least {min_gain}: {gain >= min_gain}",
    largest_KS_of_six_components=f"at most {max_ks}: {max(ks['calibrated']) <= max_ks}",
)

# %%
this.report(
    galaxies=f"sky {len(sky)}, " + ", ".join(f"{name} {len(rows)}" for name, rows in model.items()),
    sliced_W2=", ".join(f"{name} {value:.3f}" for name, value in distance.items()),
    gain=f"{gain:.2f} over the broad prior, {distance['start'] / distance['calibrated']:.2f} over the start",
    KS_per_component="; ".join(f"{name} {' '.join(f'{value:.3f}' for value in row)}" for name, row in ks.items()),
    classifier_accuracy=", ".join(f"{name} {value:.3f}" for name, value in accuracy.items()),
    cumulative_variance_percent=" ".join(f"{100 * value:.1f}" for value in variance[:6]),
)

# %%
assert gain >= min_gain, "calibration must bring the model much closer to the sky than a prior without astronomy"
assert max(ks["calibrated"]) <= max_ks, "a colour component of the model is far from the sky's: see the QQ panel for where"
assert distance["start"] / distance["calibrated"] > min_start_gain, "calibration must improve on the fits it started from"

# %% tags=["figure"]
names = [f"{a}−{b}" for a, b in zip(broad_bands, broad_bands[1:], strict=False)]
rows = [(magnitude, filters.SHORT, ["u", "g", "r", "z", "Ks", "Ch1"]), (colour, names, ["u−g", "g−r", "r−i", "z−Y", "J−H", "Ks−Ch1"])]
panels = [
    {f"{label} [mag]": [table[name][:, known.index(label)].numpy() for name in ("sky", "calibrated", "start")] for label in labels}
    for table, known, labels in rows
]
this.savefig(validation.marginals(panels), "validation_marginals")

# %% [markdown]
# **Read it.** Grey is the sky, the line is the model, dots are where calibration began. A difference that a magnitude shows is one of
# brightness or number; one that only a colour shows is one of stellar population, dust or redshift.

# %% tags=["figure"]
pairs = [(1, 0), (2, 1), (3, 2), (5, 3), (7, 5), (8, 7)]
panel = [
    (f"{names[i]} [mag]", f"{names[j]} [mag]", *(colour[name][:, [i, j]].numpy() for name in ("sky", "calibrated"))) for i, j in pairs
]
this.savefig(validation.colour_colour(panel), "validation_colours")

# %% [markdown]
# **Read it.** Contours hold 68 and 95 % of the galaxies. Where the two pairs of lines agree, the model has the right mixture of
# star-forming and quiescent, dusty and clear, near and far galaxies, not just the right average of each.

# %% tags=["figure"]
figure = validation.components(variance.numpy(), vectors.numpy(), names, p.numpy(), pp.numpy(), qq.numpy(), band.numpy())
this.savefig(figure, "validation_components")

# %% [markdown]
# **Read it.** The lower panels would be flat at zero for a perfect model; the grey range is what two samples of this size show by chance.
# A curve that leaves it on one side is a shift; an S is a wrong width.
#
# ## What differs from the paper
# The sky is our mock, so truth is known and the test half is exchangeable with the training half; the papers compare with the catalogue
# that they calibrated on. Sliced W2 and the classifier are our additions; Thorp+25 list KS and W2 per component for Ch1 < 26.

# %% tags=["nbval-check-output"]
this.finish()
