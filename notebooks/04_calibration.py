# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A galaxy population learned from photometry alone
#
# A diffusion model of the 16 parameters, started from fits of each galaxy and moved until its simulated catalogue lies on the observed
# one, recovers the redshift distribution of galaxies it never saw. It models p(θ | r < 25): galaxies in the catalogue, not all there are.
#
# | reads | writes | paper |
# |---|---|---|
# | `mock`, `uncertainty` (03) | `map_fits`, `posterior_draws` | Alsing+24 §4.1 |
# | `emulator` (02) | `population_start`, `population_posterior`, `population` | Alsing+24 §3.2, §4; Thorp+25 §3.3, §3.5 |
# | | `figures/calibration_{solvers,history,redshifts,marginals,corner}` | Thorp+25 figs 10, 34 |

# %% tags=["parameters"]
profile: str = "fast"         # smoke, fast or full
seed: int = 4                 # random seed
n_fits: int = 6_000           # galaxies of the catalogue that are fitted one by one
n_starts: int = 2             # redshift modes followed in each fit
fit_steps: int = 250          # largest number of steps of a fit
n_library: int = 50_000       # model galaxies that supply the starts
floor: float = 0.02           # fractional error of the model flux, beside the emulator's
trajectories: int = 50        # Hamiltonian trajectories per galaxy
n_draws: int = 4              # posterior draws kept per galaxy
n_start_steps: int = 4_000    # training steps of the density of the fits
n_steps: int = 8_000          # training steps of the density of the posterior draws
objective: str = "sliced"     # distance in the transport stage: sliced or sinkhorn
iterations: int = 60          # transport steps
batch: int = 1_024            # mock galaxies per transport step
lr: float = 1.0e-4            # rate of the transport stage
inside: float = 0.2           # weight, in its loss, of keeping galaxies inside the selection
n_score: int = 20_000         # mock galaxies scored
min_gain: float = 3.0         # sliced W2 of the broad prior over that of the calibrated model, at least
max_mean_z: float = 0.05      # |mean z - truth| / (1 + z)
max_bin_z: float = 0.06       # the same in the worst quartile of r - i
max_ks: float = 0.05          # KS distance of n(z) from the truth; two halves of the mock differ by about 0.02
max_unconverged: float = 0.02  # fraction of fits that could still gain more than likelihood.TOLERANCE [nat]
max_round_trip: float = 1.0e-3  # theta -> base noise -> theta, in units of the latent

# %% tags=["setup"]
import torch

from popcosmos_lib import calibration, emulator, filters, likelihood, parameters, population, priors, run, survey, tables
from popcosmos_lib.figures import calibration as draw

this = run.start("04_calibration", profile=profile, seed=seed)
device = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# ## The catalogue
#
# The half of the r < 25 mock marked `train` is the catalogue: observed fluxes and errors, nothing else. The true parameters of the other
# half score the result.

# %%
mock, trained, errors = this.read("mock"), this.read("emulator"), this.read("uncertainty")
table = mock.data[mock.data["select_r25"]]
train = torch.as_tensor(table["train"].data)


def columns(names):
    return torch.stack([torch.as_tensor(table[name].data) for name in names], -1).float().to(device)


flux, flux_err = (columns([f"{kind}_{band}" for band in filters.SHORT]) for kind in ("flux", "flux_err"))
theta = columns(parameters.NAMES)
catalogue, fitted = flux[train], (flux[train][:n_fits], flux_err[train][:n_fits])

# %% [markdown]
# ## The forward model
#
# θ → emulator → learned flux errors → Student-t noise → r < 25.

# %%
net = emulator.load(profile=profile).to(device)
data_model = survey.load(profile)
data_model.uncertainty.to(device)
forward = population.ForwardModel(net, data_model)

# %% [markdown]
# ## (a) Fit every galaxy
#
# Maximum-posterior fits under the Prospector-like prior, to convergence: a poor start is not repaired later (Alsing+24 sect. 4.1).

# %%
prior = priors.Prospector()
options = {"n_starts": n_starts, "steps": fit_steps, "floor": floor, "n_library": n_library}
fits = this.artefact(
    "map_fits",
    lambda: likelihood.maximum_posterior(*fitted, prior, net, this.generator("fits"), **options)._asdict(),
    parameters={"n_fits": n_fits, **options},
    inputs=[mock, trained],
)
best = {name: value.to(device) for name, value in fits.data.items()}
converged = best["converged"].bool()

# %% tags=["nbval-check-output"]
this.report(
    galaxies_fitted=len(converged),
    converged=f"more than {1 - max_unconverged:.0%}: {bool(converged.float().mean() > 1 - max_unconverged)}",
)

# %%
assert converged.float().mean() > 1 - max_unconverged, "too many fits stopped short: raise the steps of maximum_posterior"

# %% [markdown]
# ## (b) Learn a density: variance-exploding diffusion
#
# Points are noised, $x_\sigma = x + \sigma\epsilon$ with σ from 0.01 to 10, and a 4 × 128 network learns to undo it. The probability-flow
# ODE $dx/d\sigma = (x - D(x,\sigma))/\sigma$ then carries unit-normal base noise to galaxies, and back. First the density of the fits
# themselves, the start of the papers.


# %%
def learn(points, label, steps):
    inside = population.inside(points)
    model, loss = population.Population.fit(points[inside], generator=this.generator(label), steps=steps)
    return model.state_dict(), {"loss": loss[:: max(1, steps // 200)].tolist(), "points": int(inside.sum())}


start = this.artefact(
    "population_start", lambda: learn(best["theta"], "start", n_start_steps), parameters={"n_steps": n_start_steps}, inputs=[fits]
)

# %% [markdown]
# A most probable point is not a galaxy: a cloud of them is too narrow wherever photometry says little. Hamiltonian Monte Carlo from
# each fit gives draws of each posterior; pooled over the catalogue they are one step of expectation-maximisation from the prior towards
# the population. The density learned from them is the one that goes on.

# %%
steps = {"trajectories": trajectories, "keep": n_draws, "floor": floor}
draws = this.artefact(
    "posterior_draws",
    lambda: dict(
        zip(
            ("theta", "acceptance"),
            calibration.posterior_draws(best["theta"], *fitted, emulator=net, prior=prior, generator=this.generator("draws"), **steps),
            strict=True,
        )
    ),
    parameters=steps,
    inputs=[mock, trained, fits],
)
pooled = draws.data["theta"].flatten(0, 1).to(device)
posterior = this.artefact(
    "population_posterior", lambda: learn(pooled, "posterior", n_steps), parameters={"n_steps": n_steps}, inputs=[draws]
)

# %% [markdown]
# ## How exactly is the ODE solved?
#
# Base noise becomes galaxies in 16 evaluations of the network (`decode`, Adams predictor and corrector in ln σ), a density takes 96
# (`log_prob`, Runge-Kutta with the exact trace). `benchmarks/solvers.py` measured both against an adaptive solver; variance-preserving
# noise (`diffusion.VP`, β from 0.1 to 20) goes through the same functions.

# %%
solved = tables.benchmark("solvers")["rows"]
for row in solved["decode"]:
    if row["sde"] == "VE" and row["evaluations"] == 16 and row["grid"] == "even":
        line = f"rms error {row['rms']:.3g}, median {row['median']:.2g} of the population's spread, in 16 evaluations"
        this.report(**{row["solver"]: line})

# %%
best = min((row for row in solved["decode"] if row["evaluations"] == 16 and row["sde"] == "VE"), key=lambda row: row["rms"] + row["median"])
assert best["solver"] == "adams", "the default solver must be the most exact at its cost"

# %% tags=["figure"]
this.savefig(draw.solvers(solved), "calibration_solvers")

# %% [markdown]
# **Read it.** At equal cost Adams, of third order and with a corrector that costs nothing, is several times as exact as DPM-Solver++ or
# Heun; the adaptive solver wins only where more than some 70 evaluations are spent. Variance-preserving noise starts at σ = 152 instead of
# 10 and pays for the longer way. The Hutchinson trace costs one direction instead of 16 and leaves 2 to 3 nat of noise in every density,
# however fine the steps.

# %% [markdown]
# ## (c) Transport
#
# With fixed base draws, the weights move so that the mock's 26 asinh magnitudes and 25 colours lie on the catalogue's. Steps are few
# and small: in longer runs the photometric distance keeps falling while n(z) gets worse.

# %%
knobs = {"objective": objective, "iterations": iterations, "batch": batch, "lr": lr, "inside": inside}


def transported():
    model = population.Population.from_state(posterior.data).to(device)
    history = calibration.calibrate(model, forward, catalogue, generator=this.generator("transport"), **knobs)
    return model.state_dict(), history


final = this.artefact("population", transported, version=2, parameters=knobs, inputs=[mock, trained, errors, posterior])
model = population.Population.from_state(final.data).to(device)

# %% [markdown]
# ## Score against the truth it never saw
#
# The broad prior, uniform in all 16 parameters, goes through the same forward model and selection. Half a mock differs from the other
# half by chance: that row is the floor, and a model calibrated on the one half inherits its chance errors.

# %%
closure = calibration.Closure(flux[~train], theta[~train])


def scored(points, label):
    with torch.no_grad():
        seen = forward(points, forward.draws(len(points), this.generator(f"{label} noise")))
    kept = points[seen.selected]
    return closure(seen.flux[seen.selected], kept) | {"passing": float(seen.selected.float().mean())}, kept


clouds = {"broad": priors.Broad().sample(4 * n_score, this.generator("broad")).to(device)}
for name, artefact in (("start", start), ("posterior", posterior), ("calibrated", final)):
    clouds[name] = population.Population.from_state(artefact.data).to(device).sample(n_score, this.generator(name))
results = {name: scored(points, name) for name, points in clouds.items()}
scores, kept = ({name: pair[i] for name, pair in results.items()} for i in (0, 1))
half = closure(flux[train], theta[train])

# %%
for name, score in {"two halves of the mock": half, **scores}.items():
    this.report(**{name: ", ".join(f"{quantity} {value:+.4f}" for quantity, value in score.items())})

# %% [markdown]
# ## The map both ways

# %%
few = kept["calibrated"][:200]
u = model.to_base(few)
round_trip = float((parameters.to_latent(model.from_base(u)) - parameters.to_latent(few)).abs().max())
with torch.no_grad():
    log_p = model.log_prob(few)

# %% tags=["nbval-check-output"]
calibrated = scores["calibrated"]
gain = scores["broad"]["sliced_w2"] / calibrated["sliced_w2"]
this.report(
    sliced_W2_gain_over_broad_prior=f"at least {min_gain:g}: {gain >= min_gain}",
    mean_redshift=f"within {max_mean_z:g} (1+z): {abs(calibrated['mean_z']) <= max_mean_z}",
    worst_colour_quartile=f"within {max_bin_z:g} (1+z): {abs(calibrated['worst_bin']) <= max_bin_z}",
    redshift_distribution=f"KS at most {max_ks:g}: {calibrated['ks_z'] <= max_ks}",
    round_trip=f"theta to base noise and back, within {max_round_trip:g}: {round_trip <= max_round_trip}",
    density=f"finite: {bool(log_p.isfinite().all())}",
)

# %%
assert gain >= min_gain, "the calibrated model must describe photometry far better than a prior that knows nothing"
assert abs(calibrated["mean_z"]) <= max_mean_z, "photometry fitted, redshifts not: look at the history, the transport went too far"
assert abs(calibrated["worst_bin"]) <= max_bin_z, "a colour quartile has the wrong mean redshift: fits in the wrong mode?"
assert calibrated["ks_z"] <= max_ks, "n(z) has the wrong shape"
assert round_trip <= max_round_trip and log_p.isfinite().all(), "base noise and galaxies must map one to one"

# %% tags=["figure"]
distances = {name: score["sliced_w2"] for name, score in scores.items()}
history = final.meta
this.savefig(
    draw.history(distances, half["sliced_w2"], *(history[k] for k in ("iteration", "loss", "distance", "selected", "mean_z"))),
    "calibration_history",
)

# %% [markdown]
# **Read it.** Most is won before transport: fits of each galaxy, then their posteriors, take the distance most of the way from the
# broad prior to the floor that two halves of the same sky set. Transport does the rest and, above all, brings back inside the
# limit the galaxies that a smooth density leaks across r = 25; those are faint and distant, so the mean redshift follows them.

# %% tags=["figure"]
redshift = {name: parameters.column(points, "z").cpu().numpy() for name, points in kept.items()}
true_z = parameters.column(theta[~train], "z").cpu().numpy()
this.savefig(draw.redshifts(true_z, redshift["broad"], redshift["start"], redshift["calibrated"]), "calibration_redshifts")

# %% [markdown]
# **Read it.** No redshift entered: 26 bands per galaxy pin it down, and the population inherits it. In the lower panel the grey band holds
# 95 per cent of the differences between two samples as large as the held-out one: more cannot be asked of a model of the other half.

# %% tags=["figure"]
points = [values.cpu().numpy() for values in (theta[~train], kept["start"], kept["calibrated"])]
labels = [label + (f" [{unit}]" if unit else "") for label, unit in zip(parameters.LABELS, parameters.UNITS, strict=True)]
this.savefig(draw.marginals(*points, labels), "calibration_marginals")

# %% [markdown]
# **Read it.** Mass, redshift, dust depth and the younger star-formation ratios follow the truth. The oldest ratio, the gas parameters,
# faint tori and, partly, metallicity and the attenuation law do not: photometry hardly constrains them, the prior of the fits does, and
# transport leaves them there. Where a figure of a later notebook rests on them, it shows the prior. Most probable values (dashed) pile
# up at the peak of the prior; draws from the posteriors do not, which is why the density that goes on is theirs.

# %% tags=["figure"]
chosen = [parameters.INDEX[name] for name in ("z", "log10M_formed", "log10Z", "log10SFR_ratio2", "dust2", "dust_index")]
names = [labels[i].replace(" [", "\n[") for i in chosen]  # the unit on its own line
this.savefig(draw.corner(points[0][:, chosen], points[2][:, chosen], names), "calibration_corner")

# %% [markdown]
# **Read it.** The joint distributions that photometry sees (redshift, mass, dust) agree in shape, not only in their margins. The
# attenuation law is too grey for low-mass galaxies: little dust tells little about its slope, and the prior fills in.
#
# ## What differs from the paper
# - Alsing+24 and Thorp+25 go from the density of the fits straight to transport (Sinkhorn on some 10⁵ galaxies) or to
#   summaries. Here transport starts from pooled posterior draws; `objective` offers the Sinkhorn divergence, slower at equal batch.
# - Zero points and line corrections stay fixed: the mock has none. The uncertainty model is frozen, as in Thorp+25.
# - A term that keeps galaxies inside the selection is added, because p(θ | r < 25) has a cliff that a small network rounds off.
# - The papers integrate adaptively (dopri5); here 16 fixed evaluations of an Adams predictor-corrector make a galaxy, and densities carry
#   the exact trace.
# - Base draws are scaled by $\sqrt{\sigma_{\max}^2+1}$, the spread that noised unit-variance points really have, not by $\sigma_{\max}$.

# %% tags=["nbval-check-output"]
this.finish()
