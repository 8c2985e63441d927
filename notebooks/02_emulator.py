# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # An emulator that computes what is cheap and learns the rest
#
# Synthesis sums tens of age cells over thousands of wavelengths to get 26 numbers. Most of that sum is linear and can be tabulated per
# band; a small network learns what is left. The result agrees with the synthesis to a fraction of a per cent, and so do its gradients.
#
# | reads | writes | paper |
# |---|---|---|
# | nothing | `emulator` | Alsing+20 (Speculator), Thorp+25 sect. 3.2 |
# | | `figures/emulator_accuracy` | Alsing+20 fig. 9 |
# | | `figures/emulator_domain`, `figures/emulator_sensitivity` | none |

# %% tags=["parameters"]
profile: str = "fast"         # smoke, fast or full
seed: int = 2                 # random seed
n_train: int = 250_000        # galaxies synthesised for training
steps: int = 8_000            # optimiser steps
hidden: str = "128 128 128"   # units of the hidden layers
first_batch: int = 256        # galaxies per step at the start
last_batch: int = 2_048       # and at the end
n_test: int = 5_000           # fresh galaxies that judge the result
n_gradient: int = 200         # galaxies whose gradients are compared with finite differences
max_sigma: float = 0.005      # robust error of the median band, at most [mag]
max_gradient: float = 0.02    # median relative error of the gradients, at most

# %% tags=["setup"]
import timeit

import torch

from popcosmos_lib import emulator, features, filters, parameters, priors, run, sps, universe
from popcosmos_lib.figures import emulation

this = run.start("02_emulator", profile=profile, seed=seed)
synthesiser = sps.load()

# %% [markdown]
# ## Compute what is cheap
#
# For a given redshift and metallicity the light of a galaxy is linear in the mass formed in each age bin, and each bin's flux through each
# band is one number. Tabulate it, attenuate it at the band's mean wavelength, add the strongest emission lines through the filter curves
# exactly where they fall, and close the energy balance in seven rest-frame cells. That is a first estimate, before any learning:
#
# $$F_b \approx e^{-\tau_b} \sum_j w_j\, S_{jb}(Z, z) + L_\mathrm{abs} D_b(z) + f_\mathrm{AGN} L\, T_b(\tau, z)
# + \sum_\ell L_\ell\, R_b(\lambda_\ell (1+z)).$$

# %% [markdown]
# ## Learn the rest
#
# One network, fed with the parameters and the estimate, multiplies the estimated continuum: 26 corrections at once. Galaxies are
# synthesised for it on the way: half from the literature universe, a quarter uniform in the bounds, a quarter from the Prospector-like
# prior. Mass needs no learning: the network works at unit mass and $N = \mu(z) - 2.5\log_{10}M$ is added.

# %%
def compute():
    widths, batch = [int(width) for width in hidden.split()], (first_batch, last_batch)
    trained, history = emulator.train(
        synthesiser, n_train=n_train, steps=steps, generator=this.generator("training"), hidden=widths, batch=batch
    )
    return trained.state_dict(), trained.settings() | {"n_train": n_train, "steps": steps, "history": history}


size = {"n_train": n_train, "steps": steps, "hidden": hidden, "batch": [first_batch, last_batch]}
made = this.artefact("emulator", compute, version=2, parameters=size)
model = emulator.restore(made)

# %% [markdown]
# ## Judge it on galaxies it never saw
#
# Fresh draws of the literature universe, each band where the galaxy is brighter than 30th magnitude. The robust error is half the distance
# between the 16th and 84th percentiles; the standard deviation knows about the tails.

# %%
test = universe.sample(n_test, this.generator("test"))
truth = synthesiser.magnitudes(test)
with torch.no_grad():
    _, continuum, lines = model.features(test)
    estimate = features.magnitude(continuum + lines) + parameters.to_latent(test)[:, :1]
    error, first = (torch.where(truth < emulator.FAINT, m - truth, torch.nan) for m in (model.magnitudes(test), estimate))

# %%
sigma, sigma_first = emulator.robust_sigma(error), emulator.robust_sigma(first)
sd = torch.stack([band[band.isfinite()].std() for band in error.T])
tail = torch.nanquantile(error.abs(), 0.999, dim=0)

# %% tags=["nbval-check-output"]
this.report(
    galaxies=f"{n_test}",
    network_inputs=f"{model.features.size}",
    weights=f"{sum(p.numel() for p in model.network.parameters())}",
    median_band_within_bound=f"{bool(sigma.median() <= max_sigma)} (robust sigma <= {max_sigma:g} mag)",
    network_improves_bands=f"{int((sigma < sigma_first).sum())} of {len(sigma)}",
)

# %%
this.report(
    first_estimate_sigma=f"{sigma_first.median():.4f} mag in the median band",
    sigma=f"{sigma.median():.4f} mag in the median band, {sigma.max():.4f} in the worst",
    sd=f"{sd.median():.4f} mag in the median band, {sd.max():.4f} in the worst",
    within_99_9_percent=f"{tail.median():.3f} mag in the median band, {tail.max():.3f} in the worst",
)
for name, *row in zip(filters.SHORT, sigma, sd, tail, strict=True):
    print(f"{name:6s} robust {row[0]:.4f}  sd {row[1]:.4f}  99.9 % {row[2]:.4f} mag")

# %%
assert sigma.median() <= max_sigma, "the emulator must stay below the photometric errors: train for more steps"
assert (sigma < sigma_first).sum() > len(sigma) // 2, "training must improve on the first estimate in most bands"

# %% tags=["figure"]
fig = emulation.accuracy(error.numpy(), first.numpy(), made.meta["history"], filters.SHORT)
this.savefig(fig, "emulator_accuracy")

# %% [markdown]
# **Read it.** The cheap estimate is already good where dust is smooth across a band, in the intermediate and narrow bands; broad blue bands
# need the network most, because attenuation changes inside them. After training all bands lie far below photometric errors; the narrow
# bands keep the longest tail, from weak lines that are not computed one by one. The curve on the right flattens because the learning rate
# ends at zero, not because nothing is left to learn: the `full` profile goes further.

# %% [markdown]
# ## Leave the population
#
# Fits start far from the truth, so the emulator must hold where galaxies are rare. Two broader samples: the library from which fits under
# the Prospector-like prior start, and the whole box of parameters.

# %%
samples = {"literature universe": (test.numpy(), error.numpy())}
broader = {"Prospector-like library": priors.Prospector().library, "uniform in the bounds": priors.Broad().sample}
for name, sample in broader.items():
    theta = sample(n_test, this.generator(name))
    samples[name] = (theta.numpy(), emulator.residuals(model, synthesiser, theta).numpy())

# %%
for name, (_, values) in samples.items():
    spread = emulator.robust_sigma(torch.as_tensor(values))
    this.report(**{name.replace(" ", "_"): f"robust sigma {spread.median():.4f} mag in the median band, {spread.max():.4f} in the worst"})

# %% tags=["figure"]
shown = {"z": (0.0, 6.0), "dust2": (0.0, 3.0), "dust_index": (-1.0, 0.4), "log10Ugas": (-4.0, -1.0)}
panels = [(parameters.INDEX[name], parameters.LABELS[parameters.INDEX[name]], *limits) for name, limits in shown.items()]
fig = emulation.domain(samples, panels)
this.savefig(fig, "emulator_domain")

# %% [markdown]
# **Read it.** Errors grow with the depth of dust and away from the population, where spectra are dim in the blue and attenuation is steep
# across a band. The sample that fits start from stays well inside photometric errors.

# %% [markdown]
# ## Gradients
#
# Samplers and calibration use the emulator's derivatives. Compare them with central differences of the *synthesis* in double precision, in
# bands where a parameter matters (more than 0.02 mag per unit of its spread in the population).

# %%
def differences(engine, theta, step):
    lower, upper = parameters.BOUNDS.T
    theta = theta.double().clamp(lower + step, upper - step)
    columns = [engine.magnitudes(theta + move) - engine.magnitudes(theta - move) for move in torch.diag(step)]
    return (torch.stack(columns, -1) / (2 * step)).float()


galaxies = universe.sample(n_gradient, this.generator("gradient"))
slopes = model.jacobian(galaxies)  # (n, 26, 16)
with torch.no_grad():
    numeric = differences(sps.load().double(), galaxies, 1e-3 * parameters.BOUNDS.diff(dim=1)[:, 0])
    bright = (synthesiser.magnitudes(galaxies) < emulator.FAINT)[..., None]

# %%
spread = test.std(0)
matters = bright & ((numeric * spread).abs() > 0.02)
relative = torch.where(matters, ((slopes - numeric) / numeric).abs(), torch.nan)
dust2 = torch.tensor(parameters.INDEX["dust2"])
per_parameter = relative.flatten(0, 1).nanmedian(0).values

# %% tags=["nbval-check-output"]
this.report(
    gradients_within_bound=f"{bool(relative.nanmedian() <= max_gradient)} (median relative error <= {max_gradient:g})",
    finite_at_zero_dust=f"{bool(model.jacobian(galaxies.index_fill(1, dust2, 0.0)).isfinite().all())}",
)

# %%
this.report(gradient_error=f"{relative.nanmedian():.4f} median, worst parameter {per_parameter.nan_to_num(0).max():.4f}")
for name, value in zip(parameters.NAMES, per_parameter, strict=True):
    print(f"{name:15s} {value:.4f}")

# %%
assert relative.nanmedian() <= max_gradient, "gradients of the emulator must be those of the synthesis"

# %% tags=["figure"]
order = synthesiser.node.mean(-1).argsort()
matrix = (torch.where(bright, slopes, torch.nan).nanmean(0) * spread).T[1:, order]
fig = emulation.sensitivity(matrix.numpy(), [filters.SHORT[i] for i in order], parameters.LABELS[1:])
this.savefig(fig, "emulator_sensitivity")

# %% [markdown]
# **Read it.** This matrix is what 26 bands can know. Dust and the star-formation ratios move every band, alike enough in colour to trade
# with each other and with mass; stellar metallicity turns the whole spectrum redder. The torus shows in Ch1 and Ch2 only. Gas leaves
# little in the mean: a line brightens one band at one redshift. Where a row is pale the data say little, and the prior much.

# %% [markdown]
# ## What it costs
#
# Both engines in the same run on the same galaxies, the better of three.

# %%
def rate(function, theta):
    with torch.no_grad():
        return len(theta) / min(timeit.repeat(lambda: function(theta), number=1, repeat=4))


synthesis, emulated = rate(synthesiser.magnitudes, test[:1000]), rate(model.magnitudes, test.repeat(4, 1))
this.report(
    synthesis=f"{synthesis:.0f} galaxies/s", emulator=f"{emulated:.0f} galaxies/s", ratio=f"{emulated / synthesis:.1f}",
    threads=f"{torch.get_num_threads()}",
)  # fmt: skip

# %% [markdown]
# ## What differs from the paper
#
# - The paper trains one network of four hidden layers per band on millions of FSPS spectra and asks it for the magnitude itself. Here
#   one smaller network corrects a computed estimate in all bands at once, which takes far fewer galaxies and minutes on one core.
# - The reference is the built-in synthesis, not FSPS: the errors above are those of the emulator alone. Notebook 01 shows the synthesis.
# - The speed-up quoted in the papers is over FSPS, which takes tens of milliseconds per galaxy; over the batched synthesis here the gain is
#   smaller, because the synthesis is fast already.

# %% tags=["nbval-check-output"]
this.finish()
