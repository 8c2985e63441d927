"""Simulation-based tests of posteriors: galaxies with known parameters, and planted objects that no posterior should explain.

Introduced in notebook 07.

References
----------
Talts et al. (2018), arXiv:1804.06788 (simulation-based calibration: parameters from the prior, data from the likelihood).
"""

import itertools
from typing import NamedTuple

import torch
from astropy import constants, units

from popcosmos_lib import survey
from popcosmos_lib.fitting import goodness_of_fit
from popcosmos_lib.population import metrics
from popcosmos_lib.survey import forward_model, likelihood
from popcosmos_lib.synthesis import filters

__all__ = ["BARS", "FOLLOWED", "GALACTIC", "ODDITIES", "Ranks", "Trial", "caught", "galaxies", "missed", "planted", "ranks", "without"]

# what a benchmark of inference must reach: shares of galaxies, CPU seconds and GPU ms a galaxy, posterior sigma from converged medians
BARS = {"trusted": 0.98, "effective": 0.95, "seconds": 2.0, "gpu_ms": 50.0, "caught": 0.9, "alarms": 0.05, "distance": 0.15}
FOLLOWED = ("z", "log10M_formed", "log10SFR")  # quantities whose distance has a bar

_OFFSET = 0.5  # mag
_EQUAL = 400  # draws of equal weight for the test of all parameters together
_TEMPERATURES = (3000.0, 8000.0)  # K
_BRIGHT = (20.0, 23.0)  # r of planted objects: fainter ones need their photometry to be trusted less [mag]


class Trial(NamedTuple):
    """Simulated galaxies with their true parameters.

    Attributes
    ----------
    theta : Tensor of shape (n, 16)
        True SPS parameters.
    flux, flux_err : Tensor of shape (n, 26)
        Observed flux and error [µJy].
    """

    theta: torch.Tensor
    flux: torch.Tensor
    flux_err: torch.Tensor


@torch.no_grad()
def galaxies(n, population, emulator, sky, generator, floor=0.01):
    """Draw galaxies of the population with the noise of the likelihood, conditional on passing the selection.

    Parameters
    ----------
    n : int
    population : Population
    emulator : object with ``magnitudes(theta)``
    sky : survey.Survey
        Flux errors.
    generator : torch.Generator
    floor : float
        Fractional error of the model flux, beside the emulator's.

    Returns
    -------
    Trial
        theta is drawn from p(theta | r < 25) and the data from p(data | theta, r < 25). The ranks of the truth among posterior draws are
        then uniform if the posteriors are correct.
    """
    theta = population.sample(n, generator)
    true = likelihood.model_flux(likelihood.photometry(emulator, theta))
    flux_err = sky.sigma(true, generator)
    scale = (flux_err**2 + (likelihood.fractional_error(floor, emulator) * true) ** 2).sqrt()
    noise = survey.student_t(true.shape, generator)
    b, faintest = forward_model.limit()
    need = (faintest - true[:, b]) / scale[:, b]
    # noise of the selection band beyond ``need``, by the quantiles of Student's t with two degrees of freedom
    tail = likelihood.log_tail(need.double()).exp() * torch.rand(n, generator=generator, dtype=torch.float64).clamp_min(1e-12)
    noise[:, b] = ((1 - 2 * tail) / (2 * tail * (1 - tail)).sqrt()).float()
    return Trial(theta, true + scale * noise, flux_err)


def without(trial, missing, generator):
    """The same galaxies with ``missing`` random bands of each left out."""
    gone = torch.rand(trial.flux.shape, generator=generator).argsort(-1).argsort(-1) < missing
    return trial._replace(flux=trial.flux.masked_fill(gone, torch.nan), flux_err=trial.flux_err.masked_fill(gone, torch.nan))


def _offset(trial, generator):
    """One band wrong by half a magnitude, up or down."""
    flux, flux_err = trial.flux.clone(), trial.flux_err.clone()
    rows = torch.arange(len(flux))
    band = torch.randint(flux.shape[1], (len(flux),), generator=generator)
    factor = 10 ** (0.4 * _OFFSET * (2.0 * torch.randint(2, (len(flux),), generator=generator) - 1))
    flux[rows, band] *= factor
    flux_err[rows, band] *= factor
    return flux, flux_err


def _shuffled(trial, generator):
    """One band from another galaxy, as a wrong match or a shifted row of a table would give."""
    flux, flux_err = trial.flux.clone(), trial.flux_err.clone()
    rows, other = torch.arange(len(flux)), torch.randperm(len(flux), generator=generator)
    band = torch.randint(flux.shape[1], (len(flux),), generator=generator)
    flux[rows, band], flux_err[rows, band] = trial.flux[other, band], trial.flux_err[other, band]
    return flux, flux_err


def _stars(trial, generator):
    """Black bodies of 3000 to 8000 K at the r of the galaxies, with the galaxies' errors: the smooth spectra to which stars come close."""
    wave = filters.load(filters.COSMOS26).effective.double() * 1e-10
    low, high = _TEMPERATURES
    temperature = low + (high - low) * torch.rand(len(trial.flux), 1, generator=generator, dtype=torch.float64)
    scale = (constants.h * constants.c / constants.k_B).to_value(units.m * units.K)
    light = 1 / wave**3 / torch.expm1(scale / (wave * temperature))
    r = filters.SHORT.index("r")
    true = (light / light[:, r : r + 1] * trial.flux[:, r : r + 1]).float()
    return true + trial.flux_err * survey.student_t(true.shape, generator), trial.flux_err


ODDITIES = {"star": _stars, "shuffled band": _shuffled, "0.5 mag in one band": _offset}
GALACTIC = ("shuffled band", "0.5 mag in one band")  # those of them that have true parameters


def planted(kind, trial, n, generator):
    """Plant objects that no galaxy of the model resembles.

    Parameters
    ----------
    kind : str
        One of ``ODDITIES``.
    trial : Trial
        Simulated galaxies; the first of those that are bright enough become hosts.
    n : int
        Maximum number of objects; about 18 % of the galaxies with r < 25 are bright enough.
    generator : torch.Generator

    Returns
    -------
    Trial
        With theta of the hosts.
    """
    r = filters.magnitude_from_flux(trial.flux[:, filters.SHORT.index("r")])
    rows = ((r > _BRIGHT[0]) & (r < _BRIGHT[1])).nonzero()[:n, 0]
    flux, flux_err = ODDITIES[kind](trial, generator)
    return Trial(trial.theta[rows], flux[rows], flux_err[rows])


class Ranks(NamedTuple):
    """Ranks of true parameters among posterior draws, and how far they are from uniform.

    Attributes
    ----------
    pit : Tensor of shape (n, 16)
        Posterior probability below the truth; uniform if the posteriors are correct.
    distance : Tensor of shape (17,)
        Kolmogorov-Smirnov distance from uniform of each parameter, and of all together (TARP).
    limit : float
        99th percentile of the largest of the 17 distances if the posteriors are correct.
    spread : float
        Standard deviation of the ranks, averaged over parameters: 0.289 for correct posteriors, larger if they are too narrow.
    """

    pit: torch.Tensor
    distance: torch.Tensor
    limit: float
    spread: float


def ranks(fit, theta, generator):
    """Ranks of the true parameters (n, 16) in the posteriors of an ``inference.Result``.

    References
    ----------
    Talts et al. (2018), arXiv:1804.06788; Lemos et al. (2023), arXiv:2302.03026 (TARP).
    """
    pit = torch.stack([metrics.pit(fit.samples[..., i], column, fit.weights) for i, column in enumerate(theta.T)], -1)
    together = metrics.tarp(fit.equal(_EQUAL, generator), theta, generator=generator)
    distance = torch.tensor([metrics.ks(column) for column in [*pit.T, together]])
    return Ranks(pit, distance, metrics.ks_limit(len(theta), 1 - 0.01 / len(distance)), float(pit.std(0).mean()))


@torch.no_grad()
def caught(trial, emulator, floor):
    """Whether objects would be flagged by one who knows their theta, (n,): no flag can do better; floor as `galaxies`."""
    certain = torch.ones(len(trial.theta), 1)
    error = likelihood.fractional_error(floor, emulator)
    found = goodness_of_fit.goodness(trial.theta[:, None], certain, trial.flux, trial.flux_err, error, emulator)
    return goodness_of_fit.combined(found["p_fit"], found["p_band"], certain[:, 0]) < goodness_of_fit.UNLIKELY


def missed(measured):
    """List the ``BARS`` that a benchmark of inference misses.

    Parameters
    ----------
    measured : dict
        ``tables.benchmark("inference")``.

    Yields
    ------
    str
        One line a bar.
    """
    for row in measured["gates"]:
        for key in ("trusted", "effective"):
            if row[key] < BARS[key]:
                yield f"{row['sample']}: {key} {row[key]:.3f}, bar {BARS[key]}"
        if row["seconds"] > BARS["seconds"]:
            yield f"{row['sample']}: {row['seconds']:.2f} CPU s a galaxy, bar {BARS['seconds']}"
        if (row["gpu_ms"] or 0.0) > BARS["gpu_ms"]:
            yield f"{row['sample']}: {row['gpu_ms']:.0f} ms a galaxy on the GPU, bar {BARS['gpu_ms']:.0f}"
        if row["flagged"] > BARS["alarms"]:
            yield f"{row['sample']}: false alarms {row['flagged']:.3f}, bar {BARS['alarms']}"
        if max(row["ranks"]) > row["limit"]:
            yield f"{row['sample']}: KS of the ranks {max(row['ranks']):.3f}, limit {row['limit']:.3f}"
    for row in measured["oddities"]:
        if row["flagged"] < BARS["caught"]:
            yield f"{row['kind']}: {row['flagged']:.2f} flagged, bar {BARS['caught']}"
    ours = [row for row in measured["rows"] if row["engine"].startswith("exact")]
    yield from (f"{row['engine']}: {row['missing']}" for row in ours if row["missing"])
    for row, key in itertools.product((row for row in ours if not row["missing"]), FOLLOWED):
        if row[key] > BARS["distance"]:
            yield f"{row['engine']}: {key} {row[key]:.3f} sigma from the converged runs, bar {BARS['distance']}"
