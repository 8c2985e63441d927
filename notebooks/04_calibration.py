# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A population learned from photometry alone: posteriors of galaxies, pooled, and a diffusion model of them
#
# The density of 16 parameters whose mock photometry is that of a catalogue. Three ways to find it are run on the same galaxies: transport
# of the photometry (Alsing+24), its summary statistics (Thorp+25), and ours, expectation-maximisation on the posterior of every galaxy.
#
# | reads | writes | paper |
# |---|---|---|
# | `mock`, `uncertainty` (03) | `map_fits`, `posterior_draws`, the same under a broad prior (`_broad`) | Alsing+24 §4.1 |
# | `emulator` (02) | `population_start`, `calibration_{posterior,broad,transport,summaries}` | Alsing+24 §4; Thorp+25 §3.5 |
# | | `population`, `population_broad`, `population_ensemble` | Alsing+24 §3.2; Thorp+25 §3.3 |
# | | `figures/calibration_{solvers,history,learning,redshifts,starts,corner}` | Thorp+25 figs 10, 34 |

# %% tags=["parameters"]
profile: str = "fast"         # smoke, fast or full
seed: int = 4                 # random seed
weights: str = "published"    # emulator of notebook 02: published or trained
catalogue: str = "mock"       # mock, or the path of a COSMOS2020 table (FITS, Parquet, CSV)
objective: str = "posterior"  # what makes the population that goes on: posterior, transport or summaries
corrections: bool = False     # learn zero points and line strengths as well; the mock has none
error_steps: int = 16_000     # training steps of the flux errors of a catalogue other than the mock
floor: float = 0.02           # fractional error of the model flux, beside the emulator's; 0.03 or more for real galaxies
n_galaxies: int = 6_000       # galaxies of the catalogue that are fitted, and whose posteriors are drawn
n_second: int = 2_000         # the same under the second prior
n_starts: int = 2             # redshift modes followed in each fit
fit_steps: int = 250          # largest number of steps of a fit
n_library: int = 50_000       # model galaxies that supply the starts
trajectories: int = 50        # Hamiltonian trajectories per galaxy
iterations: int = 3           # of expectation-maximisation, at most
em_trajectories: int = 20     # Hamiltonian trajectories per galaxy in each
em_steps: int = 250           # training steps of its density in each; twice as many at the start
n_steps: int = 8_000          # training steps of the density of the draws
polish: int = 50              # steps of transport at the end
n_start_steps: int = 3_000    # training steps of the density of the fits
match_steps: int = 100        # steps of transport
summary_steps: int = 120      # steps of summaries, as many as in the paper
n_members: int = 4            # populations of the ensemble
member_steps: int = 4_000     # training steps of each
n_score: int = 20_000         # mock galaxies scored
slack: float = 2.0            # factor on the bars of closure_test.BARS, which are for full
max_unconverged: float = 0.02  # fraction of fits that could still gain more than modes.TOLERANCE [nat]
max_round_trip: float = 1.0e-3  # theta -> base noise -> theta, in units of the latent

# %% tags=["setup"]
import torch

from popcosmos_lib import catalog, population, survey
from popcosmos_lib.emulation import emulator
from popcosmos_lib.figures import calibration as draw
from popcosmos_lib.figures import validation, with_units
from popcosmos_lib.galaxies import parameters, priors
from popcosmos_lib.population import calibration, chains, closure_test
from popcosmos_lib.survey import modes
from popcosmos_lib.workflow import run
from popcosmos_lib.workflow.tables import benchmark

this = run.start("04_calibration", profile=profile, seed=seed)
device = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# ## The catalogue
#
# Galaxies with r < 25: observed fluxes and errors, nothing else. Half of them calibrate; the true parameters of the other half, which a
# mock has and a sky has not, score the result. `catalogue` takes an official COSMOS2020 file instead: fluxes are corrected for extinction
# and zero points, flagged objects and stars left out (`catalog.read`).

# %%
mock, trained, errors = this.read("mock"), this.read("emulator", weights), this.read("uncertainty")
path = mock.path if catalogue == "mock" else this.file(catalogue)
sky = catalog.read(path)
sky = sky[sky.clean & survey.select(sky.flux, population.SELECTION)]
known = set(parameters.NAMES) <= set(sky.table.colnames)

# %%
half = torch.rand(len(sky), generator=this.generator("half")) < 0.5
train = torch.as_tensor(sky.table["train"].data) if "train" in sky.table.colnames else half
theta = torch.stack([torch.as_tensor(sky.table[name].data) for name in parameters.NAMES], -1).float() if known else None
sample, held = sky[train], sky[~train]
truth = theta[~train] if known else None

# %% [markdown]
# ## The forward model
#
# θ → emulator → flux errors, learned from the catalogue (notebook 03) → Student-t noise → r < 25.

# %%
net = emulator.restore(trained).to(device)
data_model = survey.load(profile)
if catalogue != "mock":  # notebook 03 learned the errors of the mock
    data_model = survey.learn(sample.flux, sample.flux_err, error_steps, this.generator("errors"))
data_model.uncertainty.to(device)
forward = population.ForwardModel(net, data_model)

# %% [markdown]
# ## Where to start: every galaxy, fitted
#
# Most probable parameters under a Prospector-like prior, to convergence: a poor start is not repaired later (Alsing+24 sect. 4.1). A second
# and very different prior, uniform in all 16 parameters, serves fewer galaxies: where the two results differ, it is the prior that speaks.

# %%
prior = {"prospector": priors.Prospector(), "broad": priors.Broad()}
galaxies = {"prospector": sample[:n_galaxies], "broad": sample[:n_second]}
options = {"n_starts": n_starts, "steps": fit_steps, "floor": floor, "n_library": n_library}
library = options | {"path": path.name}
read = {"inputs": [mock, trained], "version": 3}


def fitted(name):
    photometry = galaxies[name].flux.to(device), galaxies[name].flux_err.to(device)
    return modes.maximum_posterior(*photometry, prior[name], net, this.generator(f"{name} fits"), **options)._asdict()


fits = {
    "prospector": this.artefact("map_fits", lambda: fitted("prospector"), parameters=library | {"n": n_galaxies}, **read),
    "broad": this.artefact("map_fits_broad", lambda: fitted("broad"), parameters=library | {"n": n_second}, **read),
}
best = fits["prospector"].data["theta"].to(device)
converged = fits["prospector"].data["converged"].bool()

# %%
assert converged.float().mean() > 1 - max_unconverged, "too many fits stopped short: raise the steps of maximum_posterior"

# %% [markdown]
# A most probable point is not a galaxy: a cloud of them is too narrow wherever photometry says little. Hamiltonian Monte Carlo from each
# fit draws from each posterior instead.


# %%
def walked(name):
    photometry = [part.to(device) for part in (fits[name].data["theta"], galaxies[name].flux, galaxies[name].flux_err)]
    tools = {"emulator": net, "prior": prior[name], "generator": this.generator(f"{name} draws"), "floor": floor}
    theta, acceptance = chains.posterior_draws(*photometry, trajectories=trajectories, **tools)
    return {"theta": theta, "acceptance": acceptance}


made = {
    "prospector": this.artefact(
        "posterior_draws", lambda: walked("prospector"), version=2, parameters={"n": trajectories}, inputs=[trained, fits["prospector"]]
    ),
    "broad": this.artefact(
        "posterior_draws_broad", lambda: walked("broad"), version=2, parameters={"n": trajectories}, inputs=[trained, fits["broad"]]
    ),
}
draws = {name: artefact.data["theta"].to(device) for name, artefact in made.items()}

# %% [markdown]
# ## A density of points: variance-exploding diffusion
#
# Points are noised, $x_\sigma = x + \sigma\epsilon$ with σ from 0.01 to 10, and a 4 × 128 network learns to undo it. The
# probability-flow ODE $dx/d\sigma = (x - D(x,\sigma))/\sigma$ then carries unit-normal base noise to galaxies, and back. First the density
# of the fits, where the papers start.


# %%
def learned():
    model, loss = population.Population.fit(best[population.inside(best)], generator=this.generator("start"), steps=n_start_steps)
    return model.state_dict(), {"loss": loss[:: max(1, n_start_steps // 200)].tolist()}


start = this.artefact("population_start", learned, version=3, parameters={"n_steps": n_start_steps}, inputs=[fits["prospector"]])

# %% [markdown]
# ## How exactly is the ODE solved?
#
# Base noise becomes galaxies in 16 evaluations of the network (`decode`, Adams predictor and corrector in ln σ), a density takes 24
# with the exact trace of the Jacobian, each as dear as sixteen without (`log_prob`, Gauss quadrature along the path).
# `benchmarks/solvers.py` measured both against an adaptive solver; variance-preserving noise (`diffusion.VP`, β from 0.1 to 20) goes
# through the same functions.

# %%
solved = benchmark("solvers")["rows"]
for row in solved["decode"]:
    if row["sde"] == "VE" and row["evaluations"] == 16 and row["grid"] == "even":
        line = f"rms error {row['rms']:.3g}, median {row['median']:.2g} of the population's spread, in 16 evaluations"
        this.report(**{row["solver"]: line})

# %%
fair = [row for row in solved["decode"] if row["evaluations"] == 16 and row["sde"] == "VE"]
exact = min(fair, key=lambda row: row["rms"] + row["median"])
assert exact["solver"] == "adams", "the default solver must be the most exact at its cost"

# %% tags=["figure"]
this.savefig(draw.solvers(solved), "calibration_solvers")

# %% [markdown]
# **Read it.** At equal cost Adams, of third order and with a corrector that costs nothing, is several times as exact as DPM-Solver++ or
# Heun; the adaptive solver wins only where more than some 70 evaluations are spent. Variance-preserving noise starts at σ = 152 instead of
# 10 and pays for the longer way. The right panel counts evaluations with the exact trace, sixteen without it as one: the path of a point is
# cheap and the trace along it smooth, so few nodes of Gauss do. The Hutchinson trace costs one direction instead of 16 and leaves 2 to 3
# nat of noise in every density, however fine the steps.

# %% [markdown]
# ## Three calibrations
#
# - **posterior**: continue every galaxy's chain under the population that all the draws make up, refit the density (a normalising flow),
#   repeat, until it describes held-out galaxies no better; then the diffusion model of the pooled draws, and a short transport.
# - **transport**: from the density of the fits, with fixed base draws, the weights move until the mock's 26 asinh magnitudes and 25 colours
#   lie on the catalogue's.
# - **summaries**: the same with means, standard deviations, correlations and 19 percentiles of 50 features.
#
# A third of the galaxies is held out of the last two, and the weights that do best on it are kept.

# %%
training = {"start_steps": 2 * em_steps, "refit_steps": em_steps, "density_steps": n_steps, "polish": polish}
drawing = {"floor": floor, "iterations": iterations, "trajectories": em_trajectories, **training}
settings = {
    "posterior": ("posterior", sample, draws["prospector"], drawing),
    "broad": ("posterior", sample, draws["broad"], drawing),
    "transport": ("transport", sample, None, {"iterations": match_steps}),
    "summaries": ("summaries", sample, None, {"iterations": summary_steps}),
}


def about(name):
    how, rows, _, options = settings[name]
    return {
        "parameters": {"objective": how, "n": len(rows), "corrections": corrections, "path": path.name, **options},
        "inputs": [mock, trained, errors, start, *made.values()],
        "version": 2,
    }


# %%
def calibrated(name):
    how, rows, first, options = settings[name]
    first = population.Population.from_state(start.data).to(device) if first is None else first
    key = about(name)
    kept = this.checkpoint(name, parameters=key["parameters"], inputs=key["inputs"])
    options = {"objective": how, "forward": forward, "start": first, "corrections": corrections, **options}
    found = calibration.calibrate(rows, generator=this.generator(name), checkpoint=kept, **options)
    return found.state(), found.history


calibrations = {
    "posterior": this.artefact("calibration_posterior", lambda: calibrated("posterior"), **about("posterior")),
    "broad": this.artefact("calibration_broad", lambda: calibrated("broad"), **about("broad")),
    "transport": this.artefact("calibration_transport", lambda: calibrated("transport"), **about("transport")),
    "summaries": this.artefact("calibration_summaries", lambda: calibrated("summaries"), **about("summaries")),
}
found = {name: calibration.Calibration.restore(artefact) for name, artefact in calibrations.items()}

# %% [markdown]
# ## The population, and its own uncertainty
#
# The one that goes on is that of `objective`. Each member of the ensemble learns the draws of galaxies resampled with replacement, from
# other initial weights: sampling of the catalogue and chance of training are in its spread, the prior of what photometry does not see is
# not.

# %%
final = this.artefact("population", lambda: found[objective].population.state_dict(), version=3, inputs=[calibrations[objective]])
this.artefact("population_broad", lambda: found["broad"].population.state_dict(), inputs=[calibrations["broad"]])
options = {"members": n_members, "steps": member_steps, "polish": polish}


def resampled():
    kept = this.checkpoint("ensemble", parameters=options, inputs=[calibrations["posterior"]])
    several = calibration.ensemble(
        found["posterior"], forward, sample, generator=this.generator("ensemble"), checkpoint=kept, **options
    )
    return several.state_dict()


members = this.artefact("population_ensemble", resampled, version=2, parameters=options, inputs=[calibrations["posterior"]])
model = population.Population.from_state(final.data).to(device)

# %% [markdown]
# ## Score against the half that it never saw
#
# Mock galaxies of each model, selected like the catalogue, against the held-out half: photometry and, on a mock, the true parameters. The
# floor is what two halves of one sky differ by. Here are the worst scores of each kind of what this profile trained; notebook 05 shows
# every test, and holds the published populations, those of `full`, to the bars themselves.

# %%
test = closure_test.Closure(held.flux, truth)
models = {"broad prior": priors.Broad(), "prior": priors.Prospector(), "start": population.Population.from_state(start.data)}
models |= {name: one.population for name, one in found.items()}
models |= {f"member {i + 1}": one for i, one in enumerate(population.Ensemble.from_state(members.data).members)}


def scored(name, source):
    points = source.sample(n_score * (10 if "prior" in name else 1), this.generator(name)).to(device)
    with torch.no_grad():
        seen = forward(points, forward.draws(len(points), this.generator(f"{name} noise")))
    rows = seen.selected.nonzero()[:n_score, 0]
    return test(seen.flux[rows].cpu(), points[rows].cpu()), points[rows].cpu()


results = {name: scored(name, source) for name, source in models.items()}
scores, kept = ({name: pair[i] for name, pair in results.items()} for i in (0, 1))
scores["floor"] = test.floor(sample.flux, theta[train] if known else None, generator=this.generator("floor"), classifier=False)

# %%
worst = {bar.name: list(bar.scores) for bar in closure_test.BARS if bar.name not in ("classifier", "other parameters")}
for name, row in scores.items():
    parts = {label: max((abs(row[key]) for key in keys if key in row), default=None) for label, keys in worst.items()}
    this.report(**{name: ", ".join(f"{label} {value:.3f}" for label, value in parts.items() if value is not None)})

# %% [markdown]
# ## The map both ways

# %%
few = kept[objective][:200].to(device)
u = model.to_base(few)
round_trip = float((parameters.to_latent(model.from_base(u)) - parameters.to_latent(few)).abs().max())
with torch.no_grad():
    log_p = model.log_prob(few)

# %% tags=["nbval-check-output"]
reached = closure_test.verdicts(scores[objective], slack)
this.report(galaxies_fitted=len(converged), galaxies_drawn=len(found["posterior"].draws))
this.report(fits_converged=f"more than {1 - max_unconverged:.0%}: {bool(converged.float().mean() > 1 - max_unconverged)}")
for bar in closure_test.BARS:
    if bar.name in reached:
        line = f"within {slack:g} times the bar of {bar.bar:g} {bar.unit}: {reached[bar.name] != 'missed'}"
        this.report(**{bar.name.replace(" ", "_"): line})
this.report(
    round_trip=f"theta to base noise and back, within {max_round_trip:g}: {round_trip <= max_round_trip}",
    density=f"finite: {bool(log_p.isfinite().all())}",
)

# %%
missed = [name for name, verdict in reached.items() if verdict == "missed"]
assert not missed, f"the calibrated model misses its bar in {', '.join(missed)}: see the scores above, and notebook 05 for each test"
assert round_trip <= max_round_trip and log_p.isfinite().all(), "base noise and galaxies must map one to one"

# %% tags=["figure"]
histories = {name: dict(found[name].history) for name in ("transport", "summaries", "posterior")}
first = draws["prospector"].flatten(0, 1).cpu()  # what expectation-maximisation began with
for name, value in {"em_iteration": 0, "em_mean": first.mean(0).tolist(), "em_sd": first.std(0).tolist()}.items():
    histories["posterior"][name] = [value, *histories["posterior"][name]]
ladder = {name: row["sliced_w2"] for name, row in scores.items() if name in ("broad prior", "prior", "start", *found)}
mean_z = float(parameters.column(truth, "z").mean()) if known else float("nan")
this.savefig(draw.history(ladder, scores["floor"]["sliced_w2"], histories, mean_z), "calibration_history")

# %% [markdown]
# **Read it.** Left, the distance of mock photometry from the held-out sky. Middle, transport and summaries on the galaxies held out of
# them, magnitudes and colours apart. Right, what no objective sees: the mean redshift of the mock. The distance may fall while redshifts
# go astray; expectation-maximisation weighs each galaxy's whole posterior.

# %% tags=["figure"]
labels = with_units(parameters.LABELS, parameters.UNITS)
target = (truth.mean(0).numpy(), truth.std(0).numpy()) if known else None
this.savefig(draw.learning(histories, labels, target), "calibration_learning")

# %% [markdown]
# **Read it.** Mean and standard deviation of each parameter, step by step. Lines that do not move are parameters that photometry does not
# see: they stay where the start put them.

# %% tags=["figure"]
redshift = {name: parameters.column(points, "z").numpy() for name, points in kept.items()}
true_z = redshift["prior"] if truth is None else parameters.column(truth, "z").numpy()
several = [values for name, values in redshift.items() if "member" in name]
this.savefig(draw.redshifts(true_z, redshift["prior"], redshift["start"], redshift[objective], several), "calibration_redshifts")

# %% [markdown]
# **Read it.** No redshift entered: 26 bands per galaxy pin it down, and the population inherits it. In the lower panel the grey band holds
# 95 per cent of the differences between two samples as large as the held-out one; thin lines are the members of the ensemble.

# %% tags=["figure"]
said = [values.numpy() for values in closure_test.constraints(draws["prospector"].cpu(), kept["posterior"], kept["broad"])]
clouds = [points.numpy() for points in (kept["start"] if truth is None else truth, kept["broad"], kept["posterior"])]
names = ("truth, held out", "from the broad prior", "from the Prospector-like prior")
this.savefig(validation.parameters(*clouds, labels, *said, names), "calibration_starts")

# %% [markdown]
# **Read it.** Two calibrations of the same catalogue, from the Prospector-like and from the broad prior. On white ground posteriors are
# much narrower than the population and both calibrations agree: photometry decides. On tinted ground either fails, each keeps something of
# what it started from, and a later figure that rests on such a parameter shows an assumption.

# %% tags=["figure"]
chosen = [parameters.INDEX[name] for name in ("z", "log10M_formed", "log10Z", "log10SFR_ratio2", "dust2", "dust_index")]
names = with_units([parameters.LABELS[i] for i in chosen], [parameters.UNITS[i] for i in chosen], between="\n")
this.savefig(draw.corner(clouds[0][:, chosen], kept[objective].numpy()[:, chosen], names), "calibration_corner")

# %% [markdown]
# **Read it.** The joint distributions that photometry sees (redshift, mass, dust) agree in shape, not only in their margins.
#
# ## What differs from the paper
# - Alsing+24 and Thorp+25 go from the density of the fits straight to transport or summaries; both are here, at fewer galaxies and steps.
#   The default draws every galaxy's posterior instead, under the population that the posteriors themselves make up.
# - What is learned is p(θ | r < 25). `calibration.unselected` turns it into p(θ) by weights 1 / P(selected | θ), and flags galaxies
#   beyond the limit, where it extrapolates.
# - Zero points and line strengths stay fixed, because the mock has none; `corrections` learns them. The uncertainty model is frozen, as in
#   Thorp+25.
# - A term that keeps galaxies inside the selection is added to transport and summaries: p(θ | r < 25) has a cliff that a small network
#   rounds off.
# - The papers integrate adaptively (dopri5); here 16 fixed evaluations of an Adams predictor-corrector make a galaxy, and densities carry
#   the exact trace.
# - Base draws are scaled by $\sqrt{\sigma_{\max}^2+1}$, the spread that noised unit-variance points really have, not by $\sigma_{\max}$.

# %% tags=["nbval-check-output"]
this.finish()
