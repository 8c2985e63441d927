# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A sky of known truth, observed like COSMOS2020
#
# Galaxies of a universe made from published relations, synthesised directly (no emulator), get the errors, the heavy-tailed noise and
# the two selections of the COSMOS2020 catalogue. The errors themselves can be learned from the catalogue, two depths included.
#
# | reads | writes | paper |
# |---|---|---|
# | nothing | `mock`, `uncertainty`, `figures/survey_{sky,uncertainty,calibration}` | Thorp+25 figs 4, 10; Alsing+24 tab 2 |

# %% tags=["parameters"]
profile: str = "fast"     # smoke, fast or full
seed: int = 3             # random seed
n_draws: int = 200_000    # galaxies of the universe that are synthesised
n_steps: int = 400        # training steps of the uncertainty model
max_ks: float = 0.02      # largest KS distance from uniform of the PIT of sigma, in any band
max_count_error: float = 0.3  # |counts over the r < 25 counts of COSMOS2020, minus one|

# %% tags=["setup"]
import numpy as np
import torch
from astropy.table import Table

from popcosmos_lib import filters, parameters, run, sps, survey, uncertainty, universe
from popcosmos_lib.figures import survey as draw

this = run.start("03_survey", profile=profile, seed=seed)

# %% [markdown]
# ## The survey
#
# 26 bands: extinction coefficients, zero-point offsets of the official catalogue and error floors (used with real data), asinh softening,
# and the depth of the noise model. Flux errors in u, YJHKs and IRAC have two modes, because those images have deep and shallow parts.

# %%
shown = ["short", "column", "extinction", "offset_farmer", "floor", "softening", "depth", "group"]
Table({name: np.asarray(survey.BANDS[name]) for name in shown})

# %% [markdown]
# ## Asinh magnitudes
#
# $m = 23.9 - 1.0857\,[\operatorname{asinh}(F/2f_b) + \ln f_b]$ with $F$ in µJy: the logarithm far above the softening $f_b$, a finite
# number through zero and below.

# %%
ladder = torch.tensor([-1.0, 0.0, 1.0, 20.0, 100.0])[:, None] * survey.BANDS["softening"]
scale = survey.asinh_magnitude(ladder)
difference = (scale[3:] - filters.magnitude_from_flux(ladder[3:])).abs()
assert scale.isfinite().all() and (scale.diff(dim=0) < 0).all(), "asinh magnitudes must be finite and fall with flux through zero"
assert difference[0].max() < 3e-3 > difference[1].max(), "20 softenings up, the two scales must agree to 0.003 mag"

# %% [markdown]
# ## The mock
#
# Masses and redshifts follow a mass function above a limit chosen well below what the survey sees; each galaxy stands for the same sky
# area. What passes r < 25 or Ch1 < 26 on *observed* flux is kept.

# %%
mock = this.artefact(
    "mock", lambda: survey.mock(n_draws, sps.load(), this.generator("mock")), kind="parquet", version=2, parameters={"n_draws": n_draws}
)
table, area = mock.data, mock.meta["area_deg2"]
theta = torch.stack([torch.as_tensor(table[name].data) for name in parameters.NAMES], -1)
kinds = ("flux", "flux_err", "flux_true")
flux, sigma, true = (torch.stack([torch.as_tensor(table[f"{kind}_{b}"].data) for b in filters.SHORT], -1) for kind in kinds)
in_r, in_ch1, train = (torch.as_tensor(table[name].data) for name in ("select_r25", "select_ch1", "train"))

# %% [markdown]
# ## Does it look like the sky?
#
# The catalogue has 140,938 galaxies with r < 25 in its 1.27 deg² (Alsing+24) and 423,262 with Ch1 < 26 (Thorp+25), the latter known to be
# incomplete at the limit. Galaxies close to the lower mass limit of the draw would mean that visible ones were never drawn.

# %%
counts = {"r": in_r.sum().item() / area, "Ch1": in_ch1.sum().item() / area}
ratio = {"r": counts["r"] / (140_938 / 1.27), "Ch1": counts["Ch1"] / (423_262 / 1.27)}
median = {"r": theta[in_r, -1].median().item(), "Ch1": theta[in_ch1, -1].median().item()}
height = universe.surviving_mass(theta) - universe.mass_limit(theta[:, -1])
near = {"r": (height[in_r] < 0.2).float().mean().item(), "Ch1": (height[in_ch1] < 0.2).float().mean().item()}

# %%
assert abs(ratio["r"] - 1) < max_count_error, "the universe must have about as many galaxies with r < 25 as the sky"
assert 0.6 < median["r"] < 1.0 < median["Ch1"] < 1.8, "the two selections must reach the redshifts that COSMOS2020 reaches"
assert max(near.values()) < 0.01, "galaxies sit at the lower mass limit of the draw: the limit cuts into the selection"

# %% [markdown]
# ## The noise that went in comes out
#
# (Observed − true flux)/σ over the 24 bands that did not take part in the selection, against Student's t with two degrees of freedom.

# %%
free = [i for i, band in enumerate(filters.SHORT) if band not in ("r", "Ch1")]
residual = ((flux - true) / sigma)[:, free].double()
probability = (0.5 + 0.5 * residual / (2 + residual**2).sqrt()).flatten().sort().values
noise_ks = (probability - torch.linspace(0, 1, len(probability), dtype=torch.float64)).abs().max().item()
assert noise_ks < 0.005, "the scatter about the truth is not Student's t with nu = 2: look at the tails in the figure"

# %% [markdown]
# ## Learning the errors from the catalogue
#
# A small mixture-density network per band, ln σ given the band's asinh magnitude, trained on the observed fluxes and errors of the `train`
# half, as one would with a real catalogue. A Gaussian copula ties the bands together.

# %%
def fit():
    model, history = uncertainty.train(flux[train], sigma[train], n_steps, this.generator("uncertainty"))
    return model.state_dict(), {"loss": history[::20].tolist()}


learned = this.artefact("uncertainty", fit, parameters={"n_steps": n_steps}, inputs=[mock])
model = survey.load(profile).uncertainty

# %% [markdown]
# ## Are they right?
#
# For galaxies that were not trained on: the probability of an error as small as the quoted one must be uniform, given the observed flux
# and, because that is how a simulation will use it, given the noiseless flux.

# %%
held = (~train).nonzero()[:20_000, 0]
pit = {"given the true flux": model.cdf(true[held], sigma[held]), "given the observed flux": model.cdf(flux[held], sigma[held])}
uniform = torch.linspace(0, 1, len(held))[:, None]
ks = {name: (values.sort(0).values - uniform).abs().max(0).values for name, values in pit.items()}
drawn = model.sample(true[held], this.generator("sigma"))
observed = survey.truth().observe(true[held], drawn, this.generator("noise"))
worst = max(values.max().item() for values in ks.values())

# %% tags=["nbval-check-output"]
this.report(
    drawn=n_draws,
    kept=f"about {len(table) / n_draws:.1f} of them",
    counts_r25=f"within {max_count_error:.0%} of COSMOS2020: {abs(ratio['r'] - 1) < max_count_error}",
    at_the_mass_limit=f"below 1 %: {max(near.values()) < 0.01}",
    student_t_noise=f"KS below 0.005: {noise_ks < 0.005}",
    errors_learned=f"KS of the PIT below {max_ks} in every band: {worst < max_ks}",
)

# %%
this.report(
    galaxies_per_deg2=f"r<25: {counts['r']:.4g} ({ratio['r']:.2f} of COSMOS2020); Ch1<26: {counts['Ch1']:.4g} ({ratio['Ch1']:.2f})",
    median_redshift=f"r<25: {median['r']:.3f}; Ch1<26: {median['Ch1']:.3f}",
    near_mass_limit=f"r<25: {near['r']:.3%}; Ch1<26: {near['Ch1']:.3%}",
    area_deg2=f"{area:.3f}",
    noise_KS=f"{noise_ks:.4f}",
    PIT_KS="; ".join(f"{k}: median {v.median():.4f}, worst {v.max():.4f} ({filters.SHORT[int(v.argmax())]})" for k, v in ks.items()),
)

# %%
assert worst < max_ks, "the learned errors are not calibrated: look at the PIT panel for the bands that stand out"

# %% tags=["figure"]
magnitude = survey.asinh_magnitude(flux)
cuts = {"r < 25": ("r", 25, in_r), "Ch1 < 26": ("Ch1", 26, in_ch1)}
chosen = {label: (magnitude[cut, filters.SHORT.index(band)].numpy(), limit) for label, (band, limit, cut) in cuts.items()}
redshift = {label: theta[cut, -1].numpy() for label, (_, _, cut) in cuts.items()}
this.savefig(draw.sky(chosen, redshift, area), "survey_sky")

# %% [markdown]
# **Read it.** Counts rise as a power law to the limits; the infrared selection keeps four times as many galaxies and lives at higher
# redshift, because at 3.6 µm an old or dusty galaxy is as bright as a young one.

# %% tags=["figure"]
bands = ["u", "g", "r", "J", "Ks", "IB427", "NB711", "Ch1"]
mag_held, mag_drawn = magnitude[held], survey.asinh_magnitude(observed)
columns = {band: filters.SHORT.index(band) for band in bands}
panels = {
    band: ((mag_held[:, i].numpy(), sigma[held, i].log10().numpy()), (mag_drawn[:, i].numpy(), drawn[:, i].log10().numpy()))
    for band, i in columns.items()
}
this.savefig(draw.uncertainties(panels), "survey_uncertainty")

# %% [markdown]
# **Read it.** Errors are set by the sky for faint galaxies and grow with flux for bright ones. Where u, J and Ch1 split into two ridges the
# image has two depths; a single Gaussian per band would fill the gap between them.

# %% tags=["figure"]
grid = torch.logspace(-1, 2, 200)
exact = {r"Student $t$, $\nu=2$": (grid, 1 - grid / (2 + grid**2).sqrt()), "Gaussian": (grid, torch.special.erfc(grid / 2**0.5))}
sample = residual.flatten()[::25]
this.savefig(draw.calibration({k: v.numpy() for k, v in pit.items()}, sample.numpy(), exact), "survey_calibration")

# %% [markdown]
# **Read it.** Left: a flat histogram means that the quoted errors are as often small, typical or large as the model says; thin lines
# are single bands. Right: one flux in seventeen lies beyond four σ, which no Gaussian allows; hence Student's t in the likelihood too.
#
# ## What differs from the paper
# - The catalogue is a mock. Its noise levels, their growth with flux and the two depths were fitted to draws of the public
#   uncertainty model of Thorp+25, so it is as deep as COSMOS2020; its galaxies are those of the literature, its zero points exact.
# - Thorp+25 learn the 26 errors jointly, given 26 magnitudes, with a diffusion model, Alsing+24 with one Gaussian; here each band
#   has a mixture of two that sees its own magnitude, tied by a copula. Given all magnitudes a network recognises noisy galaxies by
#   their jagged spectra and then quotes too small errors for the smooth spectra of a simulation. The copula makes the bands of a
#   group share their depth most of the time, not always.
# - Selection is on flux; Thorp+25 cut on asinh magnitude (25.993 where the logarithmic one is 26.000 in Ch1).

# %% tags=["nbval-check-output"]
this.finish()
