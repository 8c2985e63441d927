"""The papers' way to a posterior: an ensemble of walkers for each galaxy, kept as the reference to compare ``exact_engine`` with.

All galaxies advance together. Each ensemble starts from maxima of the posterior at several redshifts, is spread over the modes by
sequential tempering, and explores by affine-invariant moves with differential evolution. Under the population the walkers sample a Gaussian
mixture fitted to draws of the population, and the draws are then reweighted by the exact density; sampling that density directly costs the
papers 15 GPU-seconds per galaxy. Introduced in notebook 07.

References
----------
Thorp et al. (2024), arXiv:2406.19437; Thorp et al. (2025), arXiv:2506.12122, sect. 3.6.
"""

import math

import torch

from popcosmos_lib.galaxies import parameters, priors
from popcosmos_lib.population import log_ratio
from popcosmos_lib.sampling import ensemble
from popcosmos_lib.survey import forward_model, modes
from popcosmos_lib.survey.likelihood import log_likelihood, photometry

__all__ = ["Law", "Problem", "explore"]

_STARTS = 5  # redshifts followed up in each galaxy
_REFERENCE = 20.0  # N at which the emulator is asked [mag]; the light scales exactly
_EVEN = 0.03  # fractional error added to every band when the mean magnitude is formed
_NODES = 10  # of the exact density: error 0.02 nat
_INFLATE = 2.0  # of the Laplace covariances that start the annealing
_TAILS = 5  # degrees of freedom of the t components drawn from them
_OVERDRAW = 8  # starting draws per walker
_MOVES = 10  # ensemble steps at each temperature
_KEPT = 64  # steps of the chain kept for the diagnostics and draws


class Law:
    """A prior in the form that walkers need: a closed-form density to sample, a library of draws, the exact density for reweighting.

    Parameters
    ----------
    prior : {"pop-cosmos", "prospector"}
    population : Population or None
    emulator : object with ``magnitudes(theta)``
    n_library : int
        Number of prior draws, from which starting points are chosen and to which the mixture is fitted.
    generator : torch.Generator
    """

    def __init__(self, prior, population, emulator, n_library, generator):
        self.exact = population
        theta = priors.Prospector().library(n_library, generator)
        self.walk = priors.Prospector()
        if prior == "pop-cosmos":
            draws = population.sample(n_library, generator)
            self.walk = priors.Mixture(draws, generator)
            theta = torch.cat([draws, theta[: n_library // 2]])  # the second part for galaxies unlike any of the population
        self.library = modes.Library.of(theta, emulator)

    def correction(self, theta):
        """ln of exact prior over the one walked under, for theta (m, 16)."""
        if self.exact is None:
            return torch.zeros(len(theta))
        return log_ratio(self.exact, theta, self.walk.log_prob, steps=_NODES)


class Problem:
    """Posterior densities of a batch of galaxies, in coordinates whose first is the galaxy's mean magnitude.

    N is replaced by the mean model magnitude of the measured bands, weighted by their errors, because brightness is measured best and
    depends on almost every other parameter. The Jacobian of this map is one, since the light scales exactly with N.
    """

    def __init__(self, flux, flux_err, law, emulator, floor):
        self.flux, self.flux_err, self.law, self.emulator, self.floor = flux, flux_err, law, emulator, floor
        relative = (flux_err / flux) ** 2 + floor**2 + _EVEN**2
        weight = torch.where(flux > 3 * flux_err, 1 / relative, 0.0) + 1e-6
        self.weight = torch.where(flux.isfinite(), weight, 0.0)
        self.weight = (self.weight / self.weight.sum(1, keepdim=True))[:, None]

    def of(self, rows):
        """The same of some galaxies."""
        return Problem(self.flux[rows], self.flux_err[rows], self.law, self.emulator, self.floor)

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
            log_l = log_l - forward_model.log_passing(magnitude, self.flux[:, None], self.flux_err[:, None], self.floor)
        return log_l + self.law.walk.log_prob(phi)


def explore(problem, law, random, *, n_draws, n_walkers=64, n_steps=600, moves="mixed"):
    """Sample a batch of galaxies.

    Parameters
    ----------
    problem : Problem
    law : Law
    random : rng.Streams
        One for each galaxy.
    n_draws : int
        Draws returned for each galaxy.
    n_walkers, n_steps : int
        Number of walkers per galaxy (even, more than 32) and of updates after annealing. Unless the number of walkers is a multiple of 64,
        the last bits of the densities, and hence the draws, can depend on the other galaxies of the batch.
    moves : {"mixed", "stretch"}
        Differential evolution and stretch moves, or the papers' stretch move only.

    Returns
    -------
    theta : Tensor of shape (n, n_draws, 16)
        Draws of equal weight.
    scores : dict of str to Tensor of shape (n,)
        ``ess``, reduced by the reweighting to the exact prior, and ``rhat``, the largest of z, mass and SFR.
    """
    base, start = _laplace(problem, law, random, n_walkers * _OVERDRAW)

    def both(x, rows):
        part = problem.of(rows)
        phi, magnitude = part.latent(x)
        return torch.stack([base(phi, rows), part.log_posterior(phi, magnitude)])

    walkers = ensemble.anneal(both, problem.bright(start)[0], walkers=n_walkers, moves=_MOVES, random=random)
    thin = max(1, n_steps // _KEPT)
    chain, _ = ensemble.ensemble(
        lambda x: problem.log_posterior(*problem.latent(x)), walkers, steps=n_steps, random=random, thin=thin, kind=moves
    )
    n, steps = chain.shape[:2]
    theta = parameters.to_theta(problem.latent(chain.flatten(1, 2))[0]).unflatten(1, (steps, n_walkers))
    followed = parameters.column(theta, "z"), parameters.column(theta, "log10M_formed"), parameters.log_sfr(theta)
    rhat = torch.stack([ensemble.r_hat(x) for x in followed]).amax(0)
    ess = torch.stack([ensemble.effective_size(x) for x in followed]).amin(0)
    # thin at random, weigh by the exact prior, resample
    pick = random.uniform(steps * n_walkers).topk(min(2 * n_draws, steps * n_walkers), -1).indices
    theta = theta.flatten(1, 2).gather(1, pick[..., None].expand(-1, -1, 16))
    log_weight = law.correction(theta.flatten(0, 1)).unflatten(0, theta.shape[:2]).nan_to_num(-torch.inf)
    index, efficiency = ensemble.reweight(log_weight, n_draws, random.uniform(1))
    theta = theta.gather(1, index[..., None].expand(-1, -1, 16))
    return theta, {"ess": ess * efficiency, "rhat": rhat}


def _laplace(problem, law, random, n):
    """A t mixture at the posterior's modes: its ln density as a function of phi (m, k, 16) and galaxies (m,), and ``n`` draws of each."""
    # each galaxy on its own: gradients have other last bits in other company, and the ascent would turn them into other maxima
    each = (
        modes.local_maxima(flux, flux_err, law.walk, problem.emulator, law.library, n_starts=_STARTS, floor=problem.floor)
        for flux, flux_err in zip(problem.flux.split(1), problem.flux_err.split(1), strict=True)
    )
    found = modes.Modes(*(torch.cat(parts) for parts in zip(*each, strict=True)))
    factor = torch.linalg.cholesky(found.curvature / _INFLATE).float()
    log_volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_weight = torch.log_softmax(0.5 * (found.log_posterior - log_volume), -1)  # the root keeps lesser modes in play
    d = found.phi.shape[-1]

    def log_base(phi, rows):
        y = (phi[:, :, None] - found.phi[rows, None]).unsqueeze(-2) @ factor[rows, None]
        terms = (log_weight + log_volume)[rows, None] - 0.5 * (_TAILS + d) * torch.log1p((y**2).sum((-2, -1)) / _TAILS)
        return torch.logsumexp(terms, -1) + math.lgamma((_TAILS + d) / 2) - math.lgamma(_TAILS / 2) - d / 2 * math.log(_TAILS * math.pi)

    mode = ensemble.resample(log_weight, n, random.uniform(1))
    pick = torch.arange(len(mode))[:, None], mode
    normal = random.normal(n, d)[..., None]
    spread = (_TAILS / random.normal(n, _TAILS).square().sum(-1, keepdim=True)).sqrt()
    return log_base, found.phi[pick] + torch.linalg.solve_triangular(factor[pick].mT, normal, upper=True)[..., 0] * spread
