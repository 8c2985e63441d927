"""Posteriors of galaxies one by one, under the Prospector-like prior or the calibrated population.

Photometry in, posterior draws and a summary with quality flags out. ``exact_engine`` is the default; ``ensemble_engine`` is the papers'
sampler, kept for comparison. The population is that of galaxies with observed r < 25, so the likelihood of a galaxy that passes this cut is
divided by its chance of passing; fainter galaxies are an extrapolation. Introduced in notebook 07.

References
----------
Thorp et al. (2024), arXiv:2406.19437; Thorp et al. (2025), arXiv:2506.12122, sect. 3.6; Leistedt et al. (2023), arXiv:2207.07673 (floors).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING

import torch
from astropy.table import Table
from tqdm import tqdm

from popcosmos_lib import survey
from popcosmos_lib.artefacts import store
from popcosmos_lib.emulation.emulator import load as load_emulator
from popcosmos_lib.fitting import ensemble_engine, exact_engine, goodness_of_fit, proposal
from popcosmos_lib.galaxies import parameters, priors
from popcosmos_lib.population import load as load_population
from popcosmos_lib.sampling import ensemble, rng
from popcosmos_lib.sampling.importance import tilted
from popcosmos_lib.survey import forward_model, likelihood, photometry
from popcosmos_lib.synthesis import sps

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["DERIVED", "ENGINES", "FLAGS", "PRIORS", "QUANTILES", "Result", "fit", "published_floor", "quantiles", "reweighted"]

PRIORS = ("pop-cosmos", "prospector")
ENGINES = ("exact", "ensemble")
QUANTILES = {"q02": 0.0228, "q16": 0.1587, "q50": 0.5, "q84": 0.8413, "q97": 0.9772}
DERIVED = ("log10SFR", "log10sSFR", "age", "log10M_remain", "A_V")
FLAGS = photometry.FLAGS | {  # bit: what to mind about that galaxy
    32: "no galaxy of the model, or hardly any, has its photometry: a star, a quasar, a wrong flux",
    64: "not to be trusted: k-hat of the weights above 0.7, or R-hat of the chains above 1.1",
    128: "fewer than 400 effective draws",
    256: "more than one redshift: the posterior has well separated modes",
    512: "fainter than what was learned from: r = 25 for the pop-cosmos prior, 26.5 in each band from i to Ks for the Prospector-like one",
}
_APART = 0.1  # gap in z/(1+z) that separates two modes, if at least a twentieth of the draws lie on each side
_LEVELS = 2048  # galaxies of the prior whose densities are compared with those of draws
_RARER = 8  # the density is evaluated at every eighth draw of an ensemble
_BATCH = 128  # galaxies whose ensembles advance together, or that are summarised together


@dataclass
class Result:
    """Posteriors of a batch of galaxies.

    Attributes
    ----------
    samples : Tensor of shape (n, draws, 16)
        Draws of theta in the order of ``parameters.NAMES``; NaN for a galaxy without photometry.
    weights : Tensor of shape (n, draws)
        Of the draws; they add up to one for each galaxy.
    summary : Table
        One row a galaxy: ``id``, ``<parameter>_q02 _q16 _q50 _q84 _q97`` for the 16 parameters and ``DERIVED`` (the star-formation rate is
        a 100 Myr average, the specific one per formed mass, A_V that of the diffuse dust), ``ess`` (effective draws), ``khat`` (Pareto
        index of the importance weights), ``rhat`` (worst of z, mass and SFR, where there were chains), ``engine`` that gave the draws
        (empty where there are none), ``chi2`` (best draw), ``p_fit`` and ``p_band`` (``goodness_of_fit.p_values``), ``p_rare``
        (``goodness_of_fit.rarity``), ``bands``, and ``flags`` (sum of bits of ``FLAGS``).
    prior : str
    """

    samples: torch.Tensor
    weights: torch.Tensor
    summary: Table
    prior: str

    def equal(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Draws of equal weight, (galaxies, n, 16); light ones may be left out and heavy ones repeated."""
        u = torch.rand(len(self.weights), 1, generator=generator)
        rows = ensemble.resample(self.weights.log().nan_to_num(0.0, neginf=-torch.inf), n, u)
        return self.samples.gather(1, rows[..., None].expand(-1, -1, self.samples.shape[-1]))


def published_floor() -> torch.Tensor:
    """Fractional error floors of Leistedt+23, at least ``FLOOR_MINIMUM``, shape (26,): the default for real photometry."""
    return survey.BANDS["floor"].float().clamp_min(likelihood.FLOOR_MINIMUM)


def fit(
    flux: ArrayLike, flux_err: ArrayLike, prior: str = "pop-cosmos", *, engine: str = "exact", emulator: object = None,
    population: object = None, guess: proposal.Proposal | None = None, profile: str = "published", n_draws: int = 512, seed: int = 0,
    floor: float | torch.Tensor | None = None, id: Sequence | None = None, redshift: ArrayLike | None = None, **options: object,
) -> Result:  # fmt: skip
    """Posterior of every galaxy. Rows are never dropped: a galaxy without any usable band gets NaN and a flag.

    Parameters
    ----------
    flux, flux_err : array_like of shape (n, 26)
        Flux and error [µJy] in the order of ``filters.COSMOS26``; NaN = missing. An upper limit is a zero flux with the limit as error.
    prior : {"pop-cosmos", "prospector"}
        The calibrated population (of galaxies with r < 25), or ``priors.Prospector``.
    engine : {"exact", "ensemble"}
        Importance sampling from an amortised proposal, or the papers' affine-invariant ensemble.
    emulator : object with ``magnitudes(theta)``, optional
        Default: that of ``profile``. A ``population.ForwardModel`` applies the zero points and line strengths of a calibration; a
        ``bandmap.BandMap`` puts the bands of another survey in the places of the 26.
    population : Population or Ensemble, optional
        Default: that of ``profile``; ignored under "prospector". ``population.load_ensemble()`` includes the population's own uncertainty.
    guess : proposal.Proposal, optional
        Default: that of ``profile`` for this prior (exact engine). For another population train one with ``proposal.learn``.
    profile : str
        ``"published"``, or the profile whose notebooks made the default emulator, population and proposal.
    n_draws, seed : int, int
        Draws returned per galaxy; the seed and a galaxy's identifier alone decide its draws.
    floor : float or Tensor of shape (26,), optional
        Fractional error of the model flux besides the emulator's own; ``published_floor()`` by default.
    id, redshift : array_like of shape (n,), optional
        Identifiers (default: row numbers); known redshifts (NaN = unknown), at which the exact engine then fits, to 0.002 (1 + z).
    **options
        Of the engine: ``draws`` and ``rounds`` (``exact_engine.posteriors``), or ``n_walkers``, ``n_steps``, ``n_library`` and ``moves``.

    Returns
    -------
    Result

    Raises
    ------
    ValueError
        If the prior or the engine is unknown, the shapes are wrong, or the fluxes cannot be in µJy.
    store.Missing
        If a default is needed that no notebook has made yet.
    """
    _known("prior", prior, PRIORS)
    _known("engine", engine, ENGINES)
    flux, flux_err, flags, messages = photometry.validate(flux, flux_err)
    for message in messages:
        print(message)
    emulator = emulator or load_emulator(profile=profile)
    levels = partial(_stored_levels, profile) if prior == "pop-cosmos" and population is None else _levels
    population = (population or load_population(profile)) if prior == "pop-cosmos" else None
    floor = likelihood.fractional_error(published_floor() if floor is None else floor, emulator).expand(flux.shape[1])
    ids = list(range(len(flux))) if id is None else list(id)
    setting = _Setting(prior, population, emulator, floor, levels(population), rng.seeds(seed, ids), n_draws, options)
    work = setting.exact(guess or proposal.load(prior, profile), redshift) if engine == "exact" else setting.ensemble(seed)
    faint = proposal.faint(flux) if population is None else forward_model.faint(flux)
    return _run(work, setting, flux, flux_err, flags + 512 * faint, ids)


def _run(work, setting, flux, flux_err, flags, ids):
    """The `Result` of an engine, ``_BATCH`` galaxies at a time."""
    samples = torch.full((len(flux), setting.n_draws, len(parameters.NAMES)), torch.nan)
    weights = torch.full((len(flux), setting.n_draws), torch.nan)
    scores = {name: torch.full((len(flux),), torch.nan) for name in ("ess", "khat", "rhat", "chi2", *goodness_of_fit.TESTS)}
    used = [""] * len(flux)
    rows = flux.isfinite().any(1).nonzero()[:, 0]
    with tqdm(total=len(rows), desc=f"{setting.prior} posteriors", unit="galaxy", disable=None) as progress:
        for part in rows.split(_BATCH):
            samples[part], weights[part], log_prior, found, names = work(part, flux[part], flux_err[part], progress.update)
            found |= _goodness(samples[part], weights[part], flux[part], flux_err[part], setting.floor, emulator=setting.emulator)
            found["p_rare"] = goodness_of_fit.rarity(log_prior, weights[part], setting.levels)
            for name, value in found.items():
                scores[name][part] = value
            for i, name in zip(part.tolist(), names, strict=True):
                used[i] = name
    return Result(samples, weights, _summary(samples, weights, scores, used, flux.isfinite().sum(1), flags, ids), setting.prior)


def _known(what, value, among):
    if value not in among:
        near = difflib.get_close_matches(str(value).lower(), among, 1, 0.3)
        raise ValueError(f"{what} {value!r} is not known: {f'did you mean {near[0]!r}? ' if near else ''}It is one of {', '.join(among)}")


@dataclass
class _Setting:
    """What both engines need to know."""

    prior: str
    population: object
    emulator: object
    floor: torch.Tensor
    levels: torch.Tensor
    seeds: list
    n_draws: int
    options: dict

    def exact(self, guess, redshift):
        """A function that samples some galaxies with ``exact_engine``, on CUDA if available."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        tools = {"proposal": guess, "population": self.population, "emulator": self.emulator}
        tools = {name: tool.to(device) if hasattr(tool, "to") else tool for name, tool in tools.items()}
        z = torch.full((len(self.seeds),), torch.nan) if redshift is None else torch.as_tensor(redshift, dtype=torch.float32)

        def work(rows, flux, flux_err, done):
            about = {"redshift": z[rows].to(device), "seeds": [self.seeds[i] for i in rows.tolist()], "n_draws": self.n_draws}
            data = (x.to(device) for x in (flux, flux_err, self.floor))
            found = exact_engine.posteriors(*data, **tools, **about, progress=done, **self.options)
            scores = {name: torch.tensor([getattr(one, name) for one in found]) for name in ("ess", "khat", "rhat")}
            draws = (torch.stack([getattr(one, name) for one in found]) for name in ("theta", "weight", "log_prior"))
            return *draws, scores, [one.engine for one in found]

        return work

    def ensemble(self, seed):
        """A function that samples some galaxies with ``ensemble_engine``."""
        generator = torch.Generator().manual_seed(seed)
        options = dict(self.options)
        law = ensemble_engine.Law(self.prior, self.population, self.emulator, options.pop("n_library", 40_000), generator)

        @torch.no_grad()
        def work(rows, flux, flux_err, done):
            problem = ensemble_engine.Problem(flux, flux_err, law, self.emulator, self.floor)
            random = rng.Streams([self.seeds[i] for i in rows.tolist()])
            samples, scores = ensemble_engine.explore(problem, law, random, n_draws=self.n_draws, **options)
            done(len(rows))
            log_prior = _log_prior(law.exact, samples[:, ::_RARER]).repeat_interleave(_RARER, 1)[:, : self.n_draws]
            return samples, torch.full(samples.shape[:2], 1 / self.n_draws), log_prior, scores, ["ensemble"] * len(rows)

        return work


def _device(model):
    """Where a model computes; a `ForwardModel` where its emulator does, what has no tensors on the CPU."""
    tensors = getattr(getattr(model, "emulator", model), "buffers", lambda: ())()
    return next((tensor.device for tensor in tensors), "cpu")


@torch.no_grad()
def _goodness(*draws_and_data, emulator):
    """``goodness_of_fit.goodness`` where the emulator is."""
    found = goodness_of_fit.goodness(*(x.to(_device(emulator)) for x in draws_and_data), emulator)
    return {name: value.cpu() for name, value in found.items()}


@torch.no_grad()
def _log_prior(population, theta):
    """ln density per unit phi of the population, or else of the Prospector-like prior, at theta (..., 16); on the CPU."""
    if population is None:
        return priors.Prospector().log_prob(parameters.to_latent(theta))
    theta = theta.to(_device(population))
    return (population.log_prob(theta, steps=exact_engine.NODES) + parameters.log_jacobian(parameters.to_latent(theta))).cpu()


def _stored_levels(profile, population):
    """``_levels`` of the population of a profile, kept in ``artefacts``: a second of every process otherwise."""
    known = {"population": store.load("population", profile).sha256}
    place = "shared" if profile == "published" else profile
    found = store.load_or_compute("prior_levels", lambda: {"log_p": _levels(population)}, profile=place, inputs=known)
    return found.data["log_p"]


@lru_cache(4)
def _levels(population):
    """ln densities of galaxies of the prior, rising."""
    return _log_prior(population, (population or priors.Prospector()).sample(_LEVELS, torch.Generator().manual_seed(0))).sort().values


def _separated(z, weight):
    """Whether the weighted draws (n, k) of each galaxy fall into two groups of redshift."""
    ordered, rows = z.sort(-1)
    below = weight.gather(1, rows).cumsum(-1)[:, :-1]
    wide = ordered.diff(dim=-1) > _APART * (1 + ordered[:, :-1])
    return (wide & (below > 0.05) & (below < 0.95)).any(-1)


@cache
def _synthesiser():
    return sps.load()


def _derived(theta):
    """The quantities of ``DERIVED``, each of the shape of theta (n, k, 16) without its last axis."""
    known = theta[..., 0].isfinite()
    flat = theta[known]
    lower, upper = parameters.BOUNDS.to(flat).T
    remain = flat[:, 0] + _synthesiser().surviving_fraction(flat.clamp(lower, upper)).log10().to(flat)
    attenuation = 2.5 / torch.log(torch.tensor(10.0)) * parameters.column(flat, "dust2")
    recent = parameters.log_sfr(flat), parameters.log_ssfr(flat)
    values = torch.stack([*recent, parameters.mass_weighted_age(flat), remain, attenuation])
    return {name: torch.full(known.shape, torch.nan).masked_scatter(known, value) for name, value in zip(DERIVED, values, strict=True)}


def quantiles(values: torch.Tensor, weight: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Quantiles of weighted draws, linear between the middles of the steps of their distribution.

    Parameters
    ----------
    values, weight : Tensor of shape (n, k)
        Draws and their weights, which add up to one in each row.
    p : Tensor of shape (m,)

    Returns
    -------
    Tensor of shape (m, n)
    """
    ordered, rows = values.sort(-1)
    w = weight.gather(1, rows)
    level = w.cumsum(-1) - 0.5 * w
    at = torch.searchsorted(level, p.expand(len(level), -1).contiguous()).clamp(1, level.shape[1] - 1)
    low, high = level.gather(1, at - 1), level.gather(1, at)
    share = ((p - low) / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0)
    return torch.lerp(ordered.gather(1, at - 1), ordered.gather(1, at), share).T


@torch.no_grad()
def reweighted(theta: torch.Tensor, weight: torch.Tensor, population: object, other: object) -> torch.Tensor:
    """Weights of posterior draws under another population, such as a member of the ensemble: the likelihood is the same, the prior is not.

    Parameters
    ----------
    theta : Tensor of shape (n, k, 16)
        Draws of n posteriors under ``population``.
    weight : Tensor of shape (n, k)
        They add up to one for each galaxy.
    population, other : Population or Ensemble

    Returns
    -------
    Tensor of shape (n, k)
        They add up to one for each galaxy; the largest are Pareto-smoothed.
    """
    return tilted(weight, _log_prior(other, theta) - _log_prior(population, theta))


def _summary(samples, weights, scores, used, bands, flags, ids):
    """The table of a ``Result``."""
    table = Table({"id": ids})
    p = torch.tensor(list(QUANTILES.values()))
    columns = {name: samples[..., i] for i, name in enumerate(parameters.NAMES)} | _derived(samples)
    for name, values in columns.items():
        for suffix, value in zip(QUANTILES, quantiles(values, weights, p), strict=True):
            table[f"{name}_{suffix}"] = value.numpy()
    doubtful = torch.where(scores["rhat"].isfinite(), scores["rhat"] > exact_engine.RHAT, scores["khat"] >= exact_engine.KHAT)
    problems = {
        32: goodness_of_fit.combined(*(scores[test] for test in goodness_of_fit.TESTS)) < goodness_of_fit.UNLIKELY,
        64: doubtful, 128: scores["ess"] < exact_engine.ESS, 256: _separated(parameters.column(samples, "z"), weights),
    }  # fmt: skip
    for name in ("ess", "khat", "rhat"):
        table[name] = scores[name].numpy()
    table["engine"] = used
    for name in ("chi2", *goodness_of_fit.TESTS):
        table[name] = scores[name].numpy()
    table["bands"] = bands.numpy()
    table["flags"] = (flags + sum(bit * bad.long() for bit, bad in problems.items())).numpy()
    return table
