"""Posteriors of galaxies one by one, under the Prospector-like prior or the calibrated population.

All galaxies advance together: maxima of the posterior at several redshifts start an ensemble, sequential tempering
spreads it over the modes, affine-invariant moves with differential evolution explore. Under the population the walk uses a Gaussian mixture
fitted to the population's draws, and the draws are then reweighted by its exact density: walking under the density itself
costs the papers 15 GPU-seconds a galaxy. Introduced in notebook 07.

References
----------
Thorp et al. (2024), arXiv:2406.19437; Thorp et al. (2025), arXiv:2506.12122, sect. 3.6.
"""

import difflib
import math
from dataclasses import dataclass

import torch
from astropy.table import Table
from tqdm import tqdm

from popcosmos_lib import catalog, filters, likelihood, parameters, priors, sampler, survey
from popcosmos_lib.emulator import load as load_emulator
from popcosmos_lib.likelihood import log_likelihood, photometry
from popcosmos_lib.population import SELECTION
from popcosmos_lib.population import load as load_population

__all__ = ["FLAGS", "PRIORS", "QUANTILES", "Result", "fit", "published_floor"]

PRIORS = ("pop-cosmos", "prospector")
QUANTILES = {"q02": 0.0228, "q16": 0.1587, "q50": 0.5, "q84": 0.8413, "q97": 0.9772}
FLAGS = catalog.FLAGS | {  # bit: what to mind about that galaxy
    32: "the model does not reproduce its photometry",
    64: "the walkers have not mixed (R-hat above 1.5)",
    128: "few effective draws (below 30)",
    256: "more than one redshift: the posterior has well separated modes",
}
_WORST_R_HAT, _LEAST_ESS = 1.5, 30
_SURPRISE = (2 - 2 * math.log(2), 0.8427)  # mean and sd of ln(1 + t^2 / 2) for a Student-t with nu = 2
_UNLIKELY = 4.0  # sd of that sum over the bands beyond which the fit is called bad
_APART = 0.1  # gap in z/(1+z) that separates two modes, if at least a twentieth of the draws lie on each side
_BATCH = 128  # galaxies that advance together
_STARTS = 5  # redshifts followed up in each galaxy
_REFERENCE = 20.0  # N at which the emulator is asked [mag]; the light scales exactly
_EVEN = 0.03  # fractional error added to every band when the mean magnitude is formed
_ODE_STEPS = 8  # of the exact density: error 0.02 nat
_INFLATE = 2.0  # of the Laplace covariances that start the annealing
_TAILS = 5  # degrees of freedom of the t components drawn from them
_OVERDRAW = 8  # starting draws per walker
_MOVES = 10  # ensemble steps at each temperature
_KEPT = 64  # steps of the chain kept for the diagnostics and draws


@dataclass
class Result:
    """Posteriors of a batch of galaxies.

    Attributes
    ----------
    samples : Tensor of shape (n, draws, 16)
        Equally weighted draws of theta in the order of ``parameters.NAMES``; NaN for a galaxy without photometry.
    summary : Table
        One row a galaxy: ``id``, ``<parameter>_q02 _q16 _q50 _q84 _q97`` for the 16 parameters, ``log10SFR`` and ``log10sSFR``
        (100 Myr average, per formed mass), ``ess`` and ``rhat`` (worst of z, mass and SFR), ``acceptance``, ``efficiency`` (share of
        the draws that reweighting by the exact prior keeps; 1 under "prospector"), ``chi2`` (best draw), ``bands``, and ``flags``
        (sum of bits of ``FLAGS``).
    prior : str
    """

    samples: torch.Tensor
    summary: Table
    prior: str


def published_floor():
    """Fractional error floors of Leistedt+23, at least ``FLOOR_MINIMUM``, shape (26,): the default for real photometry."""
    return survey.BANDS["floor"].float().clamp_min(likelihood.FLOOR_MINIMUM)


@torch.no_grad()
def fit(
    flux, flux_err, prior="pop-cosmos", *, emulator=None, population=None, profile="published",
    n_walkers=64, n_steps=600, n_draws=256, n_library=40_000, moves="mixed", seed=0, floor=None, id=None,
):  # fmt: skip
    """Posterior of every galaxy.

    Parameters
    ----------
    flux, flux_err : array_like of shape (n, 26)
        Flux and its error [µJy] in the order of ``filters.COSMOS26``; NaN = missing band.
    prior : {"pop-cosmos", "prospector"}
        The calibrated population (of galaxies with r < 25), or ``priors.Prospector``.
    emulator : object with ``magnitudes(theta)``, optional
        By default the one of ``profile``.
    population : Population, optional
        By default the one of ``profile``; not used under "prospector".
    profile : str
        Whose emulator and population the defaults are: ``"published"``, or those that the notebooks made in a profile.
    n_walkers, n_steps : int
        Size of each galaxy's ensemble (even, above 32) and its updates after annealing.
    n_draws : int
        Draws returned for each galaxy.
    n_library : int
        Draws of the prior that starting points are chosen from, and that the mixture is fitted to.
    moves : {"mixed", "stretch"}
        Differential evolution and stretch moves, or the papers' stretch move only.
    seed : int
    floor : float or Tensor of shape (26,), optional
        Fractional error of the model flux beside the emulator's own; ``published_floor()`` by default.
    id : array_like of shape (n,), optional
        Identifiers for the summary; row numbers by default.

    Returns
    -------
    Result

    Raises
    ------
    ValueError
        If the prior is unknown, the shapes are wrong, or the fluxes cannot be in µJy.
    store.Missing
        If a default is wanted that no notebook has made yet.

    Notes
    -----
    Rows are never lost: a galaxy without any usable band gets NaN and its flag. The population is that of galaxies with observed
    r < 25, so the likelihood of a galaxy that passes is divided by its chance of passing; fainter galaxies are an extrapolation.
    """
    if prior not in PRIORS:
        near = difflib.get_close_matches(str(prior).lower(), PRIORS, 1, 0.3)
        raise ValueError(f"prior {prior!r} is not known: {f'did you mean {near[0]!r}? ' if near else ''}It is one of {', '.join(PRIORS)}")
    flux, flux_err, flags, messages = catalog.validate(flux, flux_err)
    for message in messages:
        print(message)
    emulator = emulator or load_emulator(profile=profile)
    generator = torch.Generator().manual_seed(seed)
    law = _Law(prior, (population or load_population(profile)) if prior == "pop-cosmos" else None, emulator, n_library, generator)
    floor = likelihood.fractional_error(published_floor() if floor is None else floor, emulator)
    samples = torch.full((len(flux), n_draws, len(parameters.NAMES)), torch.nan)
    scores = {name: torch.full((len(flux),), torch.nan) for name in ("ess", "rhat", "acceptance", "efficiency", "chi2", "surprise")}
    rows = flux.isfinite().any(1).nonzero()[:, 0]
    for part in tqdm(rows.split(_BATCH), disable=None, desc=f"{prior} posteriors"):
        problem = _Problem(flux[part], flux_err[part], law, emulator, floor)
        samples[part], found = _explore(problem, law, generator, n_walkers, n_steps, n_draws, moves)
        for name, value in found.items():
            scores[name][part] = value
    return Result(samples, _summary(samples, scores, flux.isfinite().sum(1), flags, id), prior)


class _Law:
    """A prior as the sampler needs it: a closed-form density to walk under, a library, and what the walk leaves to correct."""

    def __init__(self, prior, population, emulator, n_library, generator):
        self.exact = population
        theta = priors.Prospector().library(n_library, generator)
        self.walk = priors.Prospector()
        if prior == "pop-cosmos":
            draws = population.sample(n_library, generator)
            self.walk = priors.Mixture(draws, generator)
            theta = torch.cat([draws, theta[: n_library // 2]])  # the second part for galaxies unlike any of the population
        self.library = likelihood.Library.of(theta, emulator)

    def correction(self, theta):
        """ln of exact prior over the one walked under, for theta (m, 16)."""
        if self.exact is None:
            return torch.zeros(len(theta))
        phi = parameters.to_latent(theta)
        exact = torch.cat([self.exact.log_prob(rows, steps=_ODE_STEPS) for rows in theta.split(4096)])
        return exact + parameters.log_jacobian(phi) - self.walk.log_prob(phi)


class _Problem:
    """Posterior densities of a batch of galaxies, in coordinates where slot 0 is the galaxy's mean magnitude.

    N is replaced by the mean model magnitude over the measured bands, weighted as the data weigh them: brightness is what is measured
    best and almost every other parameter changes it. The map has unit Jacobian because the light scales exactly with N.
    """

    def __init__(self, flux, flux_err, law, emulator, floor):
        self.flux, self.flux_err, self.law, self.emulator, self.floor = flux, flux_err, law, emulator, floor
        relative = (flux_err / flux) ** 2 + floor**2 + _EVEN**2
        weight = torch.where(flux > 3 * flux_err, 1 / relative, 0.0) + 1e-6
        self.weight = torch.where(flux.isfinite(), weight, 0.0)
        self.weight = (self.weight / self.weight.sum(1, keepdim=True))[:, None]
        band, limit = SELECTION.split("<")
        self.band, self.limit = filters.SHORT.index(band), float(filters.flux_from_magnitude(torch.tensor(float(limit))))

    def bright(self, phi):
        """phi (n, k, 16) to sampling coordinates, and the magnitudes (n, k, n_band)."""
        magnitude = photometry(self.emulator, parameters.to_theta(phi.flatten(0, 1))).unflatten(0, phi.shape[:2])
        return torch.cat([(magnitude * self.weight).sum(-1, keepdim=True), phi[..., 1:]], -1), magnitude

    def latent(self, x):
        """Sampling coordinates (n, k, 16) to phi and magnitudes."""
        phi = torch.cat([torch.full_like(x[..., :1], _REFERENCE), x[..., 1:]], -1)
        at_reference, magnitude = self.bright(phi)
        shift = x[..., :1] - at_reference[..., :1]
        return torch.cat([phi[..., :1] + shift, phi[..., 1:]], -1), magnitude + shift

    def log_posterior(self, phi, magnitude):
        log_l = log_likelihood(magnitude, self.flux[:, None], self.flux_err[:, None], self.floor)
        if self.law.exact is not None:
            log_l = log_l - self.log_passing(magnitude)
        return log_l + self.law.walk.log_prob(phi)

    def log_passing(self, magnitude):
        """ln of the chance that noise lets the galaxy pass the population's selection; zero for galaxies that did not pass, (n, k)."""
        flux, error = self.flux[:, None, self.band], self.flux_err[:, None, self.band]
        t = (likelihood.model_flux(magnitude[..., self.band]) - self.limit) / error
        share = t.abs() / torch.sqrt(2 + t**2)
        log_p = torch.where(t > 0, torch.log((1 + share) / 2), -torch.log((2 + t**2) * (1 + share)))
        return torch.where((flux > self.limit) & error.isfinite(), log_p, 0.0)


def _explore(problem, law, generator, n_walkers, n_steps, n_draws, moves):
    """Draws of theta (n, n_draws, 16) and the diagnostics of each galaxy."""
    base, start = _laplace(problem, law, generator, n_walkers * _OVERDRAW)

    def both(x):
        phi, magnitude = problem.latent(x)
        return torch.stack([base(phi), problem.log_posterior(phi, magnitude)])

    walkers = sampler.anneal(both, problem.bright(start)[0], walkers=n_walkers, moves=_MOVES, generator=generator)
    thin = max(1, n_steps // _KEPT)
    chain, acceptance = sampler.ensemble(
        lambda x: problem.log_posterior(*problem.latent(x)), walkers, steps=n_steps, generator=generator, thin=thin, kind=moves
    )
    n, steps = chain.shape[:2]
    theta = parameters.to_theta(problem.latent(chain.flatten(1, 2))[0]).unflatten(1, (steps, n_walkers))
    followed = parameters.column(theta, "z"), parameters.column(theta, "log10M_formed"), parameters.log_sfr(theta)
    rhat = torch.stack([sampler.r_hat(x) for x in followed]).amax(0)
    ess = torch.stack([sampler.effective_size(x) for x in followed]).amin(0)
    # thin at random, weigh by the exact prior, resample
    pick = torch.rand(n, steps * n_walkers, generator=generator).topk(min(2 * n_draws, steps * n_walkers), -1).indices
    theta = theta.flatten(1, 2).gather(1, pick[..., None].expand(-1, -1, 16))
    log_weight = law.correction(theta.flatten(0, 1)).unflatten(0, theta.shape[:2]).nan_to_num(-torch.inf)
    index, efficiency = sampler.reweight(log_weight, n_draws, generator)
    theta = theta.gather(1, index[..., None].expand(-1, -1, 16))
    return theta, {"ess": ess * efficiency, "rhat": rhat, "acceptance": acceptance, "efficiency": efficiency} | _goodness(problem, theta)


def _laplace(problem, law, generator, n):
    """A t mixture at the posterior's modes: its ln density as a function of phi (n_gal, k, 16), and ``n`` draws of each galaxy."""
    found = likelihood.modes(problem.flux, problem.flux_err, law.walk, problem.emulator, law.library, n_starts=_STARTS, floor=problem.floor)
    factor = torch.linalg.cholesky(found.curvature / _INFLATE).float()
    log_volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_weight = torch.log_softmax(0.5 * (found.log_posterior - log_volume), -1)  # the root keeps lesser modes in play
    d = found.phi.shape[-1]

    def log_base(phi):
        y = (phi[:, :, None] - found.phi[:, None]).unsqueeze(-2) @ factor[:, None]
        terms = log_weight[:, None] + log_volume[:, None] - 0.5 * (_TAILS + d) * torch.log1p((y**2).sum((-2, -1)) / _TAILS)
        return torch.logsumexp(terms, -1) + math.lgamma((_TAILS + d) / 2) - math.lgamma(_TAILS / 2) - d / 2 * math.log(_TAILS * math.pi)

    mode = torch.multinomial(log_weight.exp(), n, replacement=True, generator=generator)
    pick = torch.arange(len(mode))[:, None], mode
    normal = torch.randn(*mode.shape, d, 1, generator=generator)
    spread = (_TAILS / torch.randn(*mode.shape, _TAILS, generator=generator).square().sum(-1, keepdim=True)).sqrt()
    return log_base, found.phi[pick] + torch.linalg.solve_triangular(factor[pick].mT, normal, upper=True)[..., 0] * spread


def _goodness(problem, theta):
    """chi^2 and the surprise of each galaxy's most likely draw."""
    magnitude = photometry(problem.emulator, theta.flatten(0, 1)).unflatten(0, theta.shape[:2])
    flux, flux_err = problem.flux[:, None], problem.flux_err[:, None]
    best = log_likelihood(magnitude, flux, flux_err, problem.floor).argmax(-1)
    residual = likelihood.scaled_residual(magnitude[torch.arange(len(best)), best], problem.flux, problem.flux_err, problem.floor)
    return {"chi2": (residual**2).sum(-1), "surprise": torch.log1p(residual**2 / 2).sum(-1)}


def _separated(z):
    """Whether the draws (n, k) of each galaxy fall into two groups of redshift."""
    ordered = z.sort(-1).values
    wide = ordered.diff(dim=-1) > _APART * (1 + ordered[:, :-1])
    edge = z.shape[1] // 20
    return wide[:, edge : z.shape[1] - 1 - edge].any(-1)


def _summary(samples, scores, bands, flags, id):
    """The table of a ``Result``."""
    table = Table({"id": list(range(len(samples))) if id is None else id})
    columns = {name: samples[..., i] for i, name in enumerate(parameters.NAMES)}
    columns |= {"log10SFR": parameters.log_sfr(samples), "log10sSFR": parameters.log_ssfr(samples)}
    for name, values in columns.items():
        for suffix, value in zip(QUANTILES, values.quantile(values.new_tensor(list(QUANTILES.values())), dim=1), strict=True):
            table[f"{name}_{suffix}"] = value.numpy()
    mean, sd = _SURPRISE
    problems = {
        32: scores.pop("surprise") > mean * bands + _UNLIKELY * sd * bands.sqrt(),
        64: scores["rhat"] > _WORST_R_HAT, 128: scores["ess"] < _LEAST_ESS, 256: _separated(parameters.column(samples, "z")),
    }  # fmt: skip
    for name, value in scores.items():
        table[name] = value.numpy()
    table["bands"] = bands.numpy()
    table["flags"] = (flags + sum(bit * bad.long() for bit, bad in problems.items())).numpy()
    return table
