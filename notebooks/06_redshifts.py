# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Redshift distributions of two surveys from one population
#
# The population calibrated on 26-band photometry, without a single redshift, predicts n(z) of its own survey and of a shallower nine-band
# survey with other filters, in four tomographic bins each.
#
# | reads | writes | paper |
# |---|---|---|
# | `mock`, `uncertainty` (03), `emulator` (02) | `nz` | Alsing+24 §5.2, fig. 7 |
# | `population_start`, `population` (04) | `figures/redshift_distributions` | Thorp+25 §5.1, fig. 10; Leistedt+26 for KiDS |

# %% tags=["parameters"]
profile: str = "fast"      # smoke, fast or full
seed: int = 6              # random seed
n_galaxies: int = 20_000   # galaxies drawn from each model
kids_limit: float = 23.5   # r magnitude limit of the shallower survey [AB]
n_bootstrap: int = 200     # resamplings behind each error bar
max_error: float = 0.05    # largest |error of the mean redshift| / (1 + z) of r < 25
max_bin_error: float = 0.1 # the same, in any tomographic bin of either survey
zcosmos: str = ""          # path of a zCOSMOS-bright table for a comparison with the real sky; empty for none

# %% tags=["setup"]
import numpy as np
import torch
from astropy.table import Table

from popcosmos_lib import emulator, filters, parameters, population, run, sps, survey
from popcosmos_lib.figures import validation

this = run.start("06_redshifts", profile=profile, seed=seed)
mock = this.read("mock")
inputs = [mock, *(this.read(name) for name in ("emulator", "uncertainty", "population_start", "population"))]

# %% [markdown]
# ## Galaxies: the held-out sky, the model before and after calibration
#
# All three passed r < 25. The sky's photometry is observed; the models' goes through the same forward model.

# %%
table = mock.data[mock.data["select_r25"] & ~mock.data["train"]]
truth = torch.stack([torch.as_tensor(table[name].data) for name in parameters.NAMES], -1).float()
forward = population.ForwardModel(emulator.load(profile=profile), survey.load(profile))
theta = {"truth": truth} | {
    name: population.Population.from_state(artefact.data).sample(n_galaxies, this.generator(name))
    for name, artefact in (("start", inputs[3]), ("model", inputs[4]))
}

# %%
r, i = filters.SHORT.index("r"), filters.SHORT.index("i")
flux = {"truth": torch.stack([torch.as_tensor(table[f"flux_{band}"].data) for band in filters.SHORT], -1).float()}
with torch.no_grad():
    for name in ("start", "model"):
        seen = forward(theta[name], forward.draws(n_galaxies, this.generator(f"{name} noise")))
        theta[name], flux[name] = theta[name][seen.selected], seen.flux[seen.selected]
sample = {"r < 25": {name: (parameters.column(theta[name], "z"), survey.asinh_magnitude(flux[name])[:, [r, i]]) for name in theta}}

# %% [markdown]
# ## A survey it was not trained on
#
# The same galaxies through other filters: nine bands, depths of KiDS and VIKING, Gaussian noise, a cut at brighter r. Magnitudes come
# from direct synthesis, so the emulator has no say in this transfer. A cut well inside r < 25 loses nothing to the calibration's limit.

# %%
# 5 sigma in 2 arcsec [AB]: Kuijken+19 (u, g, r, i), Wright+19 (Z, Y, J, H, Ks)
depth = torch.tensor([24.2, 25.1, 25.0, 23.7, 22.7, 22.0, 21.8, 21.1, 21.2])
synthesiser = sps.load(bands=filters.SURVEYS["kids"])
sigma = filters.flux_from_magnitude(depth) / 5


def kids(name):
    true = filters.flux_from_magnitude(synthesiser.magnitudes(theta[name]))
    observed = true + sigma * torch.randn(true.shape, generator=this.generator(f"kids {name}"))
    magnitude = survey.asinh_magnitude(observed, softening=sigma)[:, [2, 3]]
    seen = magnitude[:, 0] < kids_limit
    return parameters.column(theta[name], "z")[seen], magnitude[seen]


shallow = f"KiDS-like, r < {kids_limit:g}"
with torch.no_grad():
    sample[shallow] = {name: kids(name) for name in theta}

# %% [markdown]
# ## Tomographic bins
#
# Quartiles of the observed r − i of the sky; a galaxy of the model falls in a bin by its own observed colour, as a real one would.

# %%
def binned(which):
    edges = (which["truth"][1][:, 0] - which["truth"][1][:, 1]).quantile(torch.tensor([0.25, 0.5, 0.75]))
    return {name: (z, torch.bucketize(m[:, 0] - m[:, 1], edges) + 1) for name, (z, m) in which.items()}


tomography = {title: binned(which) for title, which in sample.items()}

# %% [markdown]
# ## Histograms, mean redshifts and their bootstrap errors

# %%
z_edges = np.linspace(0, 6, 61)


def parts(z, label):
    return [z, *(z[label == b] for b in range(1, 5))]


def summary(z, label, rng):
    draws = [rng.integers(0, len(z), len(z)) for _ in range(n_bootstrap)]
    resampled = [parts(z[rows], label[rows]) for rows in draws]
    n = np.array([[np.histogram(part, z_edges, density=True)[0] for part in draw] for draw in [parts(z, label), *resampled]])
    sd = np.std([[part.mean() for part in draw] for draw in resampled], 0)
    return n[0], np.percentile(n[1:], [16, 84], axis=0), {"mean": [part.mean() for part in parts(z, label)], "sd": sd, "n": len(z)}


def compute():
    rng, data, means = np.random.default_rng(seed), {"edges": z_edges}, {}
    for title, which in tomography.items():
        for name, (z, label) in which.items():
            key = f"{title}/{name}"
            data[key], data[f"{key}/band"], means[key] = summary(z.numpy(), label.numpy(), rng)
    return data, means


chosen = {"n_galaxies": n_galaxies, "kids_limit": kids_limit, "n_bootstrap": n_bootstrap}
nz = this.artefact("nz", compute, kind="npz", parameters=chosen, inputs=inputs)

# %% [markdown]
# ## The error of the mean redshift
#
# Model minus sky, over one plus the sky's mean; the error bar is the sampling error of both.

# %%
errors = {}
for title in tomography:
    sky, start, model = (nz.meta[f"{title}/{name}"] for name in ("truth", "start", "model"))
    scale = 1 + np.array(sky["mean"])
    shift = [(np.array(which["mean"]) - np.array(sky["mean"])) / scale for which in (model, start)]
    errors[title] = (shift[0], np.hypot(model["sd"], sky["sd"]) / scale, shift[1])
worst = max(np.abs(error[0][1:]).max() for error in errors.values())

# %% tags=["nbval-check-output"]
this.report(
    sky_galaxies=f"about {round(nz.meta['r < 25/truth']['n'], -2)}",
    surveys=", ".join(tomography),
    mean_redshift_error_of_r25=f"within {max_error}: {abs(errors['r < 25'][0][0]) <= max_error}",
    worst_tomographic_bin=f"within {max_bin_error}: {worst <= max_bin_error}",
)

# %%
for title, (model, sd, start) in errors.items():
    print(title, "sky galaxies", nz.meta[f"{title}/truth"]["n"])
    print("  calibrated", " ".join(f"{value:+.4f}±{error:.4f}" for value, error in zip(model, sd, strict=True)))
    print("  before    ", " ".join(f"{value:+.4f}" for value in start))

# %%
assert abs(errors["r < 25"][0][0]) <= max_error, "the mean redshift of the calibrated survey is off: photometry alone did not pin it"
assert worst <= max_bin_error, "a tomographic bin has a wrong mean redshift: colours and redshifts are joined wrongly in the model"
assert nz.meta[f"{shallow}/truth"]["mean"][0] < nz.meta["r < 25/truth"]["mean"][0], "a shallower survey must be nearer"

# %% tags=["figure"]
shown = {
    title: {name: nz.data[f"{title}/{name}"] for name in ("truth", "model", "start")} | {"band": nz.data[f"{title}/model/band"]}
    for title in tomography
}
this.savefig(validation.redshifts(0.5 * (z_edges[1:] + z_edges[:-1]), shown, errors), "redshift_distributions")

# %% [markdown]
# **Read it.** Left, all galaxies; middle, quartiles of r − i; right, the error of the mean redshift with its sampling error. The grey strip
# is ±0.05; weak lensing surveys need a tenth of it. The lower row is a prediction for filters and a depth that the calibration never used.
# Compare the squares: calibration brings the photometry closer (notebook 05), which does not by itself bring every n(z) closer. The blue
# bins are the hard ones: they mix near galaxies with far ones of the same colours, and a small error of the mixture moves the mean.
#
# ## The real sky, if it is at hand
#
# With `zcosmos` set, the redshifts of zCOSMOS-bright (I < 22.5, secure classes) are set beside the model's galaxies at i < 22.5.

# %%
if zcosmos:
    bright = Table.read(this.file(zcosmos))
    z_sky, confidence = (np.asarray(bright[name], float) for name in ("zspec", "cc"))
    z_sky = z_sky[((np.floor(confidence) == 3) | (np.floor(confidence) == 4) | np.isin(confidence, [2.5, 9.5])) & (z_sky > 0.02)]
    z_model = sample["r < 25"]["model"][0][sample["r < 25"]["model"][1][:, 1] < 22.5].numpy()
    print(f"zCOSMOS-bright: {len(z_sky)} redshifts, mean {z_sky.mean():.3f}; model at i < 22.5: {len(z_model)}, mean {z_model.mean():.3f}")

# %% [markdown]
# ## What differs from the paper
# Alsing+24 and Thorp+25 compare n(z) with template photometric redshifts and add cosmic variance; here the truth is known and the sky
# has none. The KiDS-like survey has SDSS curves for u, g, r, i, its depths as one number per band, and no shear weights or blending.

# %% tags=["nbval-check-output"]
this.finish()
