"""Exact posteriors of many galaxies: an amortised proposal, then importance sampling until the weights can be trusted.

Each galaxy is sampled in its own coordinates w, in which the proposal makes the posterior nearly a unit normal; importance weights correct
the remaining difference. Regions that the proposal rarely reaches can still be missed: notebook 07 measures how often. If the weights
cannot be trusted, or too few effective draws remain, although the galaxy is fitted well, Hamiltonian chains sample the same coordinates.
During sampling a flow approximates the density of the population; the draws that are kept are then weighted by the population itself, and
sampling continues until enough effective draws are left. Introduced in notebook 07.

References
----------
Thorp et al. (2025), arXiv:2506.12122 sect. 3.6 (likelihood and prior); for the methods see ``importance``, ``ensemble``, ``hamiltonian``.
"""

from typing import NamedTuple

import torch

from popcosmos_lib.fitting import goodness_of_fit
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.sampling import ensemble, hamiltonian, importance, mixtures
from popcosmos_lib.sampling.rng import Streams
from popcosmos_lib.survey import forward_model, likelihood

__all__ = ["ESS", "KHAT", "NODES", "RHAT", "Posterior", "Target", "posteriors"]

ESS, KHAT = 400.0, 0.7  # effective draws, and Pareto index of the weights, at which a posterior passes
_KNOWN = 0.002  # width that a known redshift gets, in 1 + z: far below that of photometry, far above that of spectra
_GALAXIES = {"cpu": 1, "cuda": 256}  # sampled at once; on a CPU arrays then have one shape, and draws the same bits, in any company
NODES = 8  # of the density of the population, good to 0.05 nat
_SPARE = 1.15  # what its weights mostly cost, in effective draws
_CHAINS, _OVERDRAW, _MOVES = 256, 4, 10  # of the annealing; a gradient of 256 chains costs 1.5 times that of 64
_STAGES, _LEAPFROGS, _KEPT = (10, 30, 60), 8, 10  # trajectories, gradients in each, states kept of each chain
RHAT = 1.1  # up to which chains are trusted; above it they walk another stage


class Posterior(NamedTuple):
    """Posterior of one galaxy.

    Attributes
    ----------
    theta : Tensor of shape (draws, 16)
        SPS parameters.
    weight : Tensor of shape (draws,)
        Weights of the draws; their sum is one.
    log_prior : Tensor of shape (draws,)
        ln density of the prior [nat per unit phi].
    ess, khat, rhat : float
        Effective number of draws; Pareto shape of the importance weights; largest split R-hat of z, mass and SFR (NaN without chains).
    engine : {"importance", "chains"}
    """

    theta: torch.Tensor
    weight: torch.Tensor
    log_prior: torch.Tensor
    ess: float
    khat: float
    rhat: float
    engine: str


class Target:
    """Posterior densities of galaxies in the coordinates w of a proposal.

    Parameters
    ----------
    flux, flux_err : Tensor of shape (n, 26)
        [µJy]; NaN where missing.
    floor : Tensor of shape (26,)
        Fractional error of the model flux, including that of the emulator.
    proposal : proposal.Proposal
        Proposal trained for this prior.
    population : Population or None
        Prior; None for the Prospector-like prior.
    emulator : object with ``magnitudes(theta)``
    redshift : Tensor of shape (n,), optional
        Known redshifts, to 0.2 per cent of 1 + z; NaN where unknown.
    """

    def __init__(self, flux, flux_err, floor, proposal, population, emulator, redshift=None):
        self.flux, self.flux_err, self.floor, self.redshift = flux, flux_err, floor, redshift
        self.proposal, self.population, self.emulator = proposal, population, emulator
        self.context = proposal.features(flux, flux_err, floor)

    def __call__(self, w, rows):
        """ln posterior density of w (k, n, 16) [nat per unit w, unnormalised] for the galaxies ``rows`` (k,), and theta (k, n, 16)."""
        data = self.flux[rows], self.flux_err[rows]
        phi, magnitude, log_p = self.proposal.decode(w, self.context[rows], *data, self.floor, self.emulator)
        theta = parameters.to_theta(phi)
        log_p = log_p + self.proposal.log_prior(phi, theta)
        data = [values[:, None] for values in data]
        log_p = log_p + likelihood.log_likelihood(magnitude, *data, self.floor)
        if self.population is not None:
            log_p = log_p - forward_model.log_passing(magnitude, *data, self.floor)
        if self.redshift is not None:
            known = self.redshift[rows][:, None]
            there = known.isfinite()
            known = torch.where(there, known, 0.0)  # before it meets z: a NaN would spoil the gradient even where it is left out
            apart = (parameters.column(theta, "z") - known) / (_KNOWN * (1 + known))
            log_p = log_p - torch.where(there, 0.5 * apart.square(), 0.0)
        return log_p, theta

    def amends(self, theta, weight):
        """Replace the flow by the density of the population in the weights of draws, and smooth the tail of the weights.

        Without smoothing, one draw at which the flow is far too low could outweigh all others.

        Parameters
        ----------
        theta : Tensor of shape (..., n, 16)
        weight : Tensor of shape (..., n)
            Weights under the flow; their sum over the draws of a galaxy is one.

        Returns
        -------
        weight : Tensor of shape (..., n)
            Weights under the population; their sum over the draws of a galaxy is one.
        share : Tensor of shape (...)
            Effective number of draws, as a fraction of that before.
        log_prior : Tensor of shape (..., n)
            ln density of the prior [nat per unit phi].
        """
        phi = parameters.to_latent(theta)
        flow = self.proposal.log_prior(phi, theta)
        if self.population is None:
            return weight, torch.ones_like(weight[..., 0]), flow
        log_prior = self.population.log_prob(theta, steps=NODES) + parameters.log_jacobian(phi)
        smoothed = importance.tilted(weight, log_prior - flow)
        square = torch.where(weight > 0, smoothed**2 / weight, 0.0)
        return smoothed, 1 / square.sum(-1), log_prior

    def plausible(self, posterior, row):
        """Whether the draws of a `Posterior` reproduce its galaxy ``row`` (1,); chains cannot mend the fit of what is no galaxy."""
        draws = posterior.theta[None], posterior.weight[None]
        found = goodness_of_fit.goodness(*draws, self.flux[row], self.flux_err[row], self.floor, self.emulator)
        return bool(goodness_of_fit.combined(found["p_fit"], found["p_band"], torch.ones(1).to(self.flux)) >= goodness_of_fit.UNLIKELY)


@torch.no_grad()
def posteriors(
    flux, flux_err, floor, *, proposal, population, emulator, seeds, n_draws, redshift=None, draws=1024, rounds=34,
    ess=ESS, progress=None,
):  # fmt: skip
    """Sample the posterior of every galaxy.

    Parameters
    ----------
    flux, flux_err, floor, proposal, population, emulator, redshift
        As for `Target`.
    seeds : sequence of int
        One seed per galaxy.
    n_draws : int
        Number of weighted draws returned per galaxy.
    draws, rounds : int
        Draws per round, and maximum number of rounds, of ``importance.sample``.
    ess : float
        Number of effective draws at which a galaxy is finished.
    progress : callable, optional
        Called with the number of galaxies finished.

    Returns
    -------
    list of Posterior
    """
    found = []
    for rows in torch.arange(len(flux)).split(_GALAXIES[flux.device.type]):
        known = None if redshift is None else redshift[rows]
        target = Target(flux[rows], flux_err[rows], floor, proposal, population, emulator, known)
        settled = _Settled(target, Streams([seeds[i] for i in rows.tolist()], flux.device), n_draws, min(ess, ESS))
        spare = 1.0 if population is None else _SPARE
        importance.sample(target, settled.streams, draws=draws, rounds=rounds, ess=ess, khat=KHAT, count=settled, spare=spare)
        found += [settled.posteriors[row] for row in range(len(rows))]
        if progress:
            progress(len(rows))
    return found


class _Settled:
    """Posteriors of the galaxies whose importance sampling has ended; called, it adds some and gives their effective draws."""

    def __init__(self, target, streams, n_draws, enough):
        self.target, self.streams, self.n_draws, self.enough, self.posteriors = target, streams, n_draws, enough, {}

    def __call__(self, rows, results):
        part = [self._kept(row[None], result) for row, result in zip(rows, results, strict=True)]
        theta = torch.stack([one.theta for one in part])
        weight, share, log_prior = (x.cpu() for x in self.target.amends(theta, torch.stack([one.weight for one in part])))
        for i, (row, one) in enumerate(zip(rows.tolist(), part, strict=True)):
            one = one._replace(theta=one.theta.cpu(), weight=weight[i], log_prior=log_prior[i], ess=one.ess * float(share[i]))
            self.posteriors[row] = one
        return torch.tensor([self.posteriors[row].ess for row in rows.tolist()])

    def _kept(self, row, result):
        """Draws of one galaxy under the flow that stands for the population; from chains, where weights fail and the fit does not."""
        stream = self.streams.of(row.tolist())
        kept, weight = importance.thin(result.log_weight, self.n_draws, float(stream.uniform(1)))
        one = Posterior(result.extra[kept], weight, None, result.ess, result.khat, torch.nan, "importance")
        if (result.khat >= KHAT or result.ess < self.enough) and self.target.plausible(one, row):
            one = _walk(self.target, row, result, stream, self.n_draws)
        return one


def _walk(target, row, result, stream, n_draws):
    """What importance sampling left: annealing from a mixture that fits its draws, then Hamiltonian chains."""
    mixture = mixtures.fit(result.w[None], result.log_weight[None], stream)
    generator = torch.Generator(result.w.device).manual_seed(stream.generators[0].initial_seed() // 2)
    both = lambda w, _: torch.stack([mixture.log_prob(w), target(w, row)[0]])  # noqa: E731
    start = mixture.sample(_CHAINS * _OVERDRAW, stream)
    chain = ensemble.anneal(both, start, walkers=_CHAINS, moves=_MOVES, random=stream)  # (1, chains, 16)
    log_density = lambda w: target(w[None], row)[0][0]  # noqa: E731
    for trajectories in _STAGES:  # the covariance of each gives the metric of the next; the first is never the last
        width = torch.linalg.cholesky(torch.cov(chain.flatten(0, 1).T) + 1e-4 * torch.eye(chain.shape[-1]).to(chain))
        step = torch.full((_CHAINS,), hamiltonian.FIRST_STEP).to(chain)
        settings = width.expand(_CHAINS, -1, -1), step, generator, trajectories, _LEAPFROGS, _KEPT
        chain = hamiltonian.walk(chain[-1], log_density, *settings)[0].transpose(0, 1)  # (kept, chains, 16)
        if trajectories == _STAGES[0]:
            continue  # its draws are left out
        theta = target(chain, row.expand(len(chain)))[1][None]
        followed = [parameters.column(theta, "z"), parameters.column(theta, "log10M_formed"), parameters.log_sfr(theta)]
        rhat = max(float(ensemble.r_hat(values)) for values in followed)
        if rhat <= RHAT:
            break
    ess = min(float(ensemble.effective_size(values)) for values in followed)
    theta = theta.flatten(0, 2)
    kept = torch.randperm(len(theta), generator=generator)[torch.arange(n_draws) % len(theta)]
    return Posterior(theta[kept], torch.full((n_draws,), 1 / n_draws).to(theta), None, ess, result.khat, rhat, "chains")
