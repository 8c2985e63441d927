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
# the two selections of the COSMOS2020 catalogue. A diffusion model learns the 26 errors from the catalogue, and that Y, J, H and Ks lie
# on one tile, deep or shallow, which a Gaussian copula cannot say.
#
# | reads | writes | paper |
# |---|---|---|
# | nothing | `mock`, `uncertainty`, `uncertainty_mixture` | Alsing+24 tab 2 |
# | | `figures/survey_{sky,uncertainty,joint,calibration}` | Thorp+25 figs 4, 10, 24 |

# %% tags=["parameters"]
profile: str = "fast"     # smoke, fast or full
seed: int = 3             # random seed
n_draws: int = 200_000    # galaxies of the universe that are synthesised
n_steps: int = 400        # training steps of the errors band by band
n_joint: int = 15_000     # training steps of the 26 errors together
n_held: int = 20_000      # galaxies not trained on that the errors are tested with
max_ks: float = 0.02      # largest KS distance from uniform of the PIT of sigma, in any band
max_joint: float = 0.03   # the same between sky and model for sums and differences of two bands of a group
max_c2st: float = 0.54    # accuracy of a classifier that tells the 26 errors of the sky from those of the model; 0.5 is chance
max_gap: float = 0.03     # share of galaxies between the two ridges of u, and of J; 0.16 where one Gaussian fills the gap
min_tile: float = 0.98    # share of galaxies that are deep, or shallow, in all of Y, J and H
max_count_error: float = 0.3  # |counts over the r < 25 counts of COSMOS2020, minus one|

# %% tags=["setup"]
import numpy as np
import torch
from astropy.table import Table

from popcosmos_lib import survey
from popcosmos_lib.figures import survey as draw
from popcosmos_lib.galaxies import parameters, universe
from popcosmos_lib.population import metrics
from popcosmos_lib.survey import joint_errors, uncertainty
from popcosmos_lib.synthesis import filters, sps
from popcosmos_lib.workflow import run

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
# Trained on the observed fluxes and errors of the `train` half, as one would with a real catalogue. Small networks give ln σ in each band
# from that band's asinh magnitude: one Gaussian (Alsing+24), or a mixture of two, the bands tied by a Gaussian copula.

# %%
def fit(components):
    name = f"uncertainty of {components}"
    return uncertainty.train(flux[train], sigma[train], n_steps, this.generator(name), components=components)[0]


settings = {"parameters": {"n_steps": n_steps}, "inputs": [mock]}
kept = this.artefact("uncertainty_mixture", lambda: fit(2).state_dict(), version=2, **settings)
mixture = joint_errors.from_state(kept.data)

# %% [markdown]
# Then all 26 together: what the mean and the width of the one Gaussian leave over, (ln σ − mean)/width, is whitened and learned by a
# diffusion model (Thorp+25), conditioned on how bright the galaxy is in the blue, the red, the near infrared and IRAC.

# %%
def fit_joint():
    model, history = joint_errors.train(flux[train], sigma[train], fit(1), n_joint, this.generator("uncertainty"))
    return model.state_dict(), {"loss": history.unflatten(0, (-1, 20)).mean(1).tolist()}


settings["parameters"]["n_joint"] = n_joint
learned = this.artefact("uncertainty", fit_joint, version=2, **settings)
diffusion = survey.load(profile).uncertainty
models = {"diffusion": diffusion, "mixture and copula": mixture, "one Gaussian": diffusion.margin}

# %% [markdown]
# ## Are they right, band by band?
#
# For galaxies that were not trained on: the probability of an error as small as the quoted one must be uniform, given the observed flux
# and, because that is how a simulation will use it, given the noiseless flux.

# %%
held = (~train).nonzero()[:n_held, 0]
given = {"given the true flux": true[held], "given the observed flux": flux[held]}
pit = {k: uncertainty.pit(diffusion, f, sigma[held], this.generator(k)) for k, f in given.items()}
ks = {name: torch.tensor([metrics.ks(band) for band in values.T]) for name, values in pit.items()}
worst = max(values.max().item() for values in ks.values())

# %% [markdown]
# ## And together?
#
# Residuals of the sky and of one draw per galaxy: are Y, J and H on the same side of the gap between the depths; how many galaxies lie in
# the gap; sums and differences of bands of a group; and can a classifier tell the 26 residuals of sky and model apart?

# %%
with torch.no_grad():
    drawn = {name: model.sample(true[held], this.generator("sigma")) for name, model in models.items()}
    space = {name: diffusion.residual(true[held], s) for name, s in {"sky": sigma[held], **drawn}.items()}
index = {band: filters.SHORT.index(band) for band in filters.SHORT}
nir, gap = [index[band] for band in "YJH"], 0.15  # the gap lies between residuals of -0.05 and 0.35
tile = {name: ((x[:, nir] > gap).sum(1) % 3 == 0).float().mean().item() for name, x in space.items()}
valley = {name: [((x[:, index[b]] - gap).abs() < 0.2).float().mean().item() for b in ("u", "J")] for name, x in space.items()}

# %%
pairs = [(index[a], index[b]) for a, b in (("Y", "J"), ("J", "H"), ("H", "Ks"), ("Ch1", "Ch2"))]
apart = {name: torch.cat([torch.stack([x[:, i] + x[:, j], x[:, i] - x[:, j]]) for i, j in pairs]) for name, x in space.items()}
joint = {name: max(metrics.ks(*both) for both in zip(apart["sky"], apart[name], strict=True)) for name in models}
joined = list(models)[:2]
c2st = {name: metrics.c2st(space["sky"], space[name], generator=this.generator("classifier")) for name in joined}
nats = {name: model.joint_log_prob(true[held[:500]], sigma[held[:500]]).mean().item() for name, model in models.items()}

# %% tags=["nbval-check-output"]
this.report(
    drawn=n_draws,
    kept=f"about {len(table) / n_draws:.1f} of them",
    counts_r25=f"within {max_count_error:.0%} of COSMOS2020: {abs(ratio['r'] - 1) < max_count_error}",
    at_the_mass_limit=f"below 1 %: {max(near.values()) < 0.01}",
    student_t_noise=f"KS below 0.005: {noise_ks < 0.005}",
    errors_learned=f"KS of the PIT below {max_ks} in every band: {worst < max_ks}",
    two_depths=f"below {max_gap} of galaxies in the gap of u and J: {max(valley['diffusion']) < max_gap}",
    one_gaussian=f"fills it: {min(valley['one Gaussian']) > max_gap}",
    one_tile=f"Y, J and H agree in {min_tile:.0%} of galaxies: {tile['diffusion'] > min_tile}",
    copula=f"makes them agree: {tile['mixture and copula'] > min_tile}",
    pairs=f"KS of sums and differences below {max_joint}: {joint['diffusion'] < max_joint}",
    classifier=f"below {max_c2st}: {c2st['diffusion'] < max_c2st}; for the copula: {c2st['mixture and copula'] < max_c2st}",
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
names = list(models)
Table(
    {
        "model": ["sky", *names],
        "one tile": [f"{tile[k]:.4f}" for k in ("sky", *names)],
        "in the gap of u, J": [f"{valley[k][0]:.3f}, {valley[k][1]:.3f}" for k in ("sky", *names)],
        "KS of pairs": ["", *(f"{joint[k]:.3f}" for k in names)],
        "C2ST": ["", *(f"{c2st[k]:.3f}" for k in joined), ""],
        "ln p [nat]": ["", *(f"{nats[k]:.2f}" for k in names)],
    }
)

# %%
assert worst < max_ks, "the learned errors are not calibrated: look at the PIT panel for the bands that stand out"
assert tile["diffusion"] > min_tile, "near-infrared bands of a galaxy lie on different tiles: train for longer"
assert max(valley["diffusion"]) < max_gap, "the gap between the two depths is filled: the diffusion has not found both ridges"
assert joint["diffusion"] < max_joint, "bands of a group do not vary together as in the sky: look at the joint panels"
assert c2st["diffusion"] < max_c2st, "a classifier tells the drawn errors from the sky's"

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
bands, sky = ["u", "g", "r", "J", "Ks", "IB427", "NB711", "Ch1"], survey.truth()
seen = {"mock catalogue (truth)": (magnitude[held], sigma[held])}
for name in ("diffusion", "one Gaussian"):
    seen[name] = survey.asinh_magnitude(sky.observe(true[held], drawn[name], this.generator("noise"))), drawn[name]
panels = {b: {k: (m[:, index[b]].numpy(), s[:, index[b]].log10().numpy()) for k, (m, s) in seen.items()} for b in bands}
this.savefig(draw.uncertainties(panels), "survey_uncertainty")

# %% [markdown]
# **Read it.** Errors are set by the sky for faint galaxies and grow with flux for bright ones. Where u, J and Ch1 split into two ridges the
# image has two depths: the diffusion follows both, one Gaussian per band fills the gap between them.

# %% tags=["figure"]
shown = {"sky": "sky", "mixture and copula": "mixture and copula", "diffusion": "diffusion"}
couples = [("J", "Ks"), ("u", "Ch1")]
clouds = {label: [space[key][:, [index[a], index[b]]].numpy() for a, b in couples] for label, key in shown.items()}
this.savefig(draw.joint(clouds, couples), "survey_joint")

# %% [markdown]
# **Read it.** J and Ks are deep or shallow together: two clouds. A copula of the same marginals puts galaxies into the two empty corners.
# u and Ch1 have tiles of their own: four combinations, each tilted by the scatter that is common to all bands. The copula loses the tilt,
# because it sees one correlation where ridge and scatter have two.

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
# - Thorp+25 condition the 26 errors on all 26 magnitudes, Alsing+24 use one Gaussian. Given all noisy magnitudes a network recognises
#   noisy galaxies by their jagged spectra and then quotes too small errors for the smooth spectra of a simulation; so here each band's
#   mean and width follow its own magnitude, and only the residuals are joint.
# - The noise of the diffusion explodes (0.04 to 5) where Thorp+25 preserve the variance; 12 evaluations per draw instead of an adaptive
#   solver.
# - Selection is on flux; Thorp+25 cut on asinh magnitude (25.993 where the logarithmic one is 26.000 in Ch1).

# %% tags=["nbval-check-output"]
this.finish()
