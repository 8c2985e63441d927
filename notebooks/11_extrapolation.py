# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A model of the r < 25 sky predicts Ch1 < 26 where the two overlap, and says where it must stop
#
# The calibrated density is p(θ | r < 25). Seen through another selection, IRAC Ch1 < 26, it predicts the galaxies that pass both cuts.
# Undoing its own selection reaches a little beyond r = 25; this notebook measures how little.
#
# | reads | writes | paper |
# |---|---|---|
# | `mock`, `uncertainty` (03), `emulator` (02) | `figures/extrapolation` | Thorp+24 (r < 25 prior on fainter galaxies) |
# | `population`, `population_ensemble` (04) | | Thorp+25 §4.6, figs 1, 9 |

# %% tags=["parameters"]
profile: str = "fast"       # smoke, fast or full
seed: int = 11              # random seed
weights: str = "published"  # emulator of notebook 02: published or trained
calibrated: str = "published"  # populations and flux errors of notebooks 03 and 04: published (of the full profile) or trained
n_galaxies: int = 40_000    # galaxies drawn from the model
min_passing: float = 0.05   # smallest chance of passing r < 25 at which a galaxy is called reachable
max_error: float = 0.05     # largest |error of the mean redshift| / (1 + z) inside r < 25
max_colour: float = 0.05    # largest shift of a median colour inside r < 25 [mag]

# %% tags=["setup"]
import numpy as np
import torch

from popcosmos_lib import population, survey
from popcosmos_lib.emulation import emulator
from popcosmos_lib.figures import validation
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.synthesis import filters
from popcosmos_lib.workflow import run

this = run.start("11_extrapolation", profile=profile, seed=seed)
trained, _ = this.read("emulator", weights), this.read("uncertainty", calibrated)
mock, net = this.read("mock").data, emulator.restore(trained)

# %% [markdown]
# ## The held-out sky at Ch1 < 26, on both sides of r = 25

# %%
def rows(table, kind):
    return torch.stack([torch.as_tensor(table[f"{kind}_{band}"].data) for band in filters.SHORT], -1).float()


sky = mock[mock["select_ch1"] & ~mock["train"]]
flux, true, z = rows(sky, "flux"), rows(sky, "flux_true"), np.asarray(sky["z"])
inside = np.asarray(sky["select_r25"])

# %% [markdown]
# ## The model inside its own selection
#
# Those of its galaxies that pass r < 25 and Ch1 < 26 on their observed flux are compared with the sky's; the same for each member of the
# ensemble, whose scatter is the uncertainty of the population.

# %%
models = {"model": population.Population.from_state(this.read("population", calibrated).data)}
members = population.Ensemble.from_state(this.read("population_ensemble", calibrated).data).members
models |= {f"member {i + 1}": member for i, member in enumerate(members)}
forward, theta, seen = population.ForwardModel(net, survey.load(this.whose(calibrated))), {}, {}
for name, model in models.items():
    theta[name] = model.sample(n_galaxies, this.generator(name))
    with torch.no_grad():
        seen[name] = forward(theta[name], forward.draws(n_galaxies, this.generator(f"{name} noise")))
bright = {name: survey.select(photometry.flux, "Ch1<26").numpy() for name, photometry in seen.items()}
both = {name: bright[name] & photometry.selected.numpy() for name, photometry in seen.items()}

# %% [markdown]
# ## Undoing the selection
#
# p(θ) ∝ p(θ | r < 25) / P(r < 25 | θ): each galaxy is weighted by the inverse of its chance of passing, the upper tail of Student's t with
# two degrees of freedom. A galaxy with less than `min_passing` chance is dropped: its weight would rest on the tail of the noise, and the
# network never saw enough of its kind.

# %%
beyond, weight, scale = {}, {}, {}
for name, photometry in seen.items():
    passing, selected = forward.log_selected(photometry).exp().numpy(), photometry.selected.numpy()
    reached = bright[name] & (passing > min_passing)
    beyond[name] = reached & ~selected
    scale[name] = inside.sum() / (1 / passing[reached & selected]).sum()
    weight[name] = scale[name] / passing[beyond[name]]

# %% [markdown]
# ## What of the sky is within reach
#
# The same chance for the sky's own galaxies beyond r = 25: the fraction above `min_passing` is the most that any model of the selected
# galaxies could recover.

# %%
sky_seen = population.Photometry(flux, rows(sky, "flux_err"), true, torch.as_tensor(inside))
near = ~inside & (forward.log_selected(sky_seen).exp().numpy() > min_passing)
reachable = near.sum() / (~inside).sum()
predicted = {name: values.sum() / (~inside).sum() for name, values in weight.items()}

# %% [markdown]
# ## Going on regardless: fainter galaxies as dimmer copies
#
# Further out one must assume something. The simplest: the model's galaxies with 24 < r < 25, up to four magnitudes fainter (mass lower by
# 0.4 dex a magnitude), as many as the growth of its own counts from 23 < r < 24 to 24 < r < 25 continued.

# %%
r = filters.SHORT.index("r")
r_model = filters.magnitude_from_flux(seen["model"].flux_true[:, r])
growth = float(((r_model > 24) & (r_model < 25)).sum() / ((r_model > 23) & (r_model < 24)).sum())
last = (r_model > 24) & (r_model < 25)
copies = theta["model"][last].repeat(4, 1)
deviate = torch.rand(4, int(last.sum()), generator=this.generator("fainter"))
fainter = (torch.arange(4)[:, None] + deviate).flatten()  # [mag], one in each magnitude
copies[:, 0] -= 0.4 * fainter
with torch.no_grad():
    dimmed = forward(copies, forward.draws(len(copies), this.generator("copies")))
kept = (survey.select(dimmed.flux, "Ch1<26") & ~dimmed.selected).numpy()
copy_weight = scale["model"] * growth ** fainter.numpy()[kept]

# %% [markdown]
# ## Colours and redshifts on both sides

# %%
pairs = {"g−r": (1, 2), "z−J": (4, 7), "Ks−Ch1": (9, 24)}
photometry = {name: (rows.flux, rows.flux_true, parameters.column(theta[name], "z").numpy()) for name, rows in seen.items()}
photometry |= {"sky": (flux, true, z), "copies": (dimmed.flux, dimmed.flux_true, parameters.column(copies, "z").numpy())}
value = {}
for name, (fluxes, noiseless, redshift) in photometry.items():
    m = survey.asinh_magnitude(fluxes)
    value[name] = {label: (m[:, a] - m[:, b]).numpy() for label, (a, b) in pairs.items()}
    value[name] |= {"redshift": redshift, "noiseless r": filters.magnitude_from_flux(noiseless[:, r]).numpy()}

# %%
shift, fraction, dz = {}, {}, {}
for name in models:
    shift[name] = {label: np.median(value[name][label][both[name]]) - np.median(value["sky"][label][inside]) for label in pairs}
    fraction[name] = both[name].sum() / int(seen[name].selected.sum())
    dz[name] = (value[name]["redshift"][both[name]].mean() - z[inside].mean()) / (1 + z[inside].mean())
of_sky = inside.sum() / (mock["select_r25"] & ~mock["train"]).sum()
dz_copies = (np.average(value["copies"]["redshift"][kept], weights=copy_weight) - z[~inside].mean()) / (1 + z[~inside].mean())
dz_near = (np.average(value["model"]["redshift"][beyond["model"]], weights=weight["model"]) - z[near].mean()) / (1 + z[near].mean())


def scatter(values):
    return float(np.std([value for name, value in values.items() if "member" in name], ddof=1))



# %% tags=["nbval-check-output"]
this.report(
    sky_galaxies=f"about {round(inside.sum(), -2)} inside r < 25, {round((~inside).sum(), -2)} beyond",
    mean_redshift_inside=f"within {max_error}: {abs(dz['model']) <= max_error}",
    median_colours_inside=f"within {max_colour} mag: {max(map(abs, shift['model'].values())) <= max_colour}",
    most_of_the_sky_beyond_r25=f"out of reach: {reachable < 0.5}",
)

# %%
this.report(
    passing_Ch1=f"{of_sky:.3f} of the r < 25 sky, {fraction['model']:.3f} ± {scatter(fraction):.3f} of the model",
    mean_redshift_error_inside=f"{dz['model']:+.4f} ± {scatter(dz):.4f}",
    median_colour_shift_inside=", ".join(f"{label} {value:+.3f} mag" for label, value in shift["model"].items()),
    reachable_beyond=f"{reachable:.3f} of the sky's galaxies have a chance above {min_passing} of passing r < 25",
    predicted_beyond=f"{predicted['model']:.3f} ± {scatter(predicted):.3f} of their number",
    mean_redshift_error_of_the_reachable=f"{dz_near:+.4f}",
    faintest_reachable_r=f"{np.percentile(value['sky']['noiseless r'][near], 99):.2f} mag (99th percentile)",
    dimmer_copies=f"{copy_weight.sum() / (~inside).sum():.2f} of their number, mean redshift error {dz_copies:+.4f}",
    median_r_beyond=f"{np.median(value['sky']['noiseless r'][~inside]):.2f} mag",
)

# %%
assert abs(dz["model"]) <= max_error, "inside its selection the model must predict the redshifts of another band's cut"
assert max(map(abs, shift["model"].values())) <= max_colour, "inside its selection the model must predict the colours of another band's cut"
assert predicted["model"] < 0.5, "the model claims galaxies beyond r = 25 that its selection cannot know of"
assert np.median(z[~inside]) > np.median(z[inside]), "galaxies red enough for Ch1 < 26 at r > 25 lie farther away"

# %% tags=["figure"]
grid = {"g−r": np.linspace(-0.5, 2.2, 28), "z−J": np.linspace(-0.6, 2.0, 27), "Ks−Ch1": np.linspace(-1.2, 1.2, 25)}
grid |= {"redshift": np.linspace(0, 6, 31), "noiseless r": np.linspace(24.8, 28.5, 38)}
first, second = {}, {}
for label in ("redshift", *pairs):
    own = [(value[name][label][rows], np.full(rows.sum(), inside.sum() / rows.sum())) for name, rows in both.items()]
    first[label] = (grid[label], value["sky"][label][inside], own, None)
for label in ("noiseless r", "redshift", "z−J", "Ks−Ch1"):
    own = [(value[name][label][rows], weight[name]) for name, rows in beyond.items()]
    second[label] = (grid[label], value["sky"][label][~inside], own, (value["copies"][label][kept], copy_weight))
this.savefig(validation.extrapolation({"r < 25": first, "r > 25": second}), "extrapolation")

# %% [markdown]
# **Read it.** Top: galaxies that pass both cuts; the model (thin lines: members of its ensemble) was not told of Ch1 < 26 and gets them.
# Bottom: galaxies of the Ch1 < 26 sky that r < 25 leaves out, in counts. The model follows them to the width of the noise beyond the limit
# and then has none: a density of selected galaxies holds no information on what cannot be selected. Dimmed copies of its faintest galaxies
# (dotted) fill the counts by assumption; where they miss in redshift and colour, faint galaxies are not faint copies of brighter ones.
#
# ## What differs from the paper
# Thorp+24 use the r < 25 model as a prior for fainter galaxies, whose own photometry then moves it; here nothing of the faint sky is
# used. Thorp+25 avoid the question by calibrating at Ch1 < 26 directly, and test what detection in izYJHKs loses there (their §4.6).

# %% tags=["nbval-check-output"]
this.finish()
