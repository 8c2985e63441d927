"""A first guess of every posterior: a flow from unit normals to a galaxy's parameters, given its photometry.

Posteriors are sought in coordinates x where the prior is simple: for the population its base noise, where the prior is N(0, I) and no
density of the diffusion model is ever needed; for a prior of closed form the standardised latent. The flow is trained on mocks of the
prior with all levels of noise, all error floors and random bands missing, so that one serves any catalogue in these bands; what it gets
wrong, importance weights put right (``exact``). Introduced in notebook 07.

References
----------
Papamakarios & Murray (2016), arXiv:1605.06376 (amortised posteriors); Thorp et al. (2025), arXiv:2506.12122 sect. 3.6 (likelihood).
"""

import math

import torch
from torch import nn

from popcosmos_lib import filters, flows, likelihood, parameters, priors, store, survey
from popcosmos_lib.population import SELECTION, inside

__all__ = ["NAMES", "Proposal", "compact", "learn", "load", "restore"]

NAMES = {"pop-cosmos": "proposal", "prospector": "proposal_prospector"}  # artefacts
_FAINTEST = 26.0  # r of the mocks of a prior of closed form, which has no selection of its own [mag]
_FLOORS = (0.005, 0.12)  # range of the fractional floors of the mocks
_FLOOR_SCATTER, _ERROR_SCATTER = 0.3, 0.2  # ln, between the bands of one galaxy
_ERRORS = 3.0  # range of the common factor of the errors of half of the mocks, up and down
_MISSING = 0.7  # largest chance of a band to be missing, in half of the mocks
_RATE = 3e-3  # peak of the learning rate: with 1e-3 the fit is 0.5 nat behind after the same steps
_FEATURES = 3 * len(filters.COSMOS26)
_R = filters.SHORT.index("r")
_ROWS = 4096  # points that the population decodes at once: larger pieces fall out of cache


class Proposal(nn.Module):
    """Coordinates w of each galaxy in which its posterior is close to a unit normal.

    w leads to x by the flow, given the photometry; x leads to theta by the prior. The density of w under the posterior needs no
    diffusion density: ln p(w | data) = ln prior(x) + ln L(theta) + ln |dx / dw|.

    Parameters
    ----------
    flow : flows.Flow
        Of x, given the features.
    softening : Tensor of shape (26,)
        Of the asinh fluxes among the features [µJy].
    centre, spread : Tensor of shape (16,)
        Of x: phi = centre + spread x for a prior of closed form; zeros and ones for base noise.
    """

    def __init__(self, flow, softening, centre, spread):
        super().__init__()
        self.flow = flow
        for name, value in (("softening", softening), ("centre", centre), ("spread", spread)):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        self.register_buffer("shift", torch.zeros(_FEATURES))
        self.register_buffer("scale", torch.ones(_FEATURES))

    def raw_features(self, flux, flux_err, floor):
        """Asinh flux, ln of the total error and 0 for a measured band; 0, 0 and 1 for a missing one; (n, 78)."""
        there = flux.isfinite() & flux_err.isfinite()
        flux, flux_err = torch.where(there, flux, 0.0), torch.where(there, flux_err, 1.0)
        error = (flux_err**2 + (floor * flux) ** 2).sqrt()
        return torch.where(there, torch.asinh(flux / (2 * self.softening)), 0.0), torch.where(there, error.log(), 0.0), 1.0 - there.to(flux)

    def features(self, flux, flux_err, floor):
        """What the flow is given.

        Parameters
        ----------
        flux, flux_err : Tensor of shape (n, 26)
            [µJy]; not finite where missing.
        floor : Tensor broadcastable to (n, 26)
            Fractional error of the model flux.

        Returns
        -------
        Tensor of shape (n, 78)
        """
        *values, missing = self.raw_features(flux, flux_err, floor)
        shift, scale = self.shift.view(3, -1), self.scale.view(3, -1)
        values = [torch.where(missing > 0, 0.0, ((v - s) / r).clamp(-8.0, 8.0)) for v, s, r in zip(values, shift, scale, strict=False)]
        return torch.cat([*values, missing], -1)

    def standardise(self, flux, flux_err, floor):
        """Take the standardisation of the features from galaxies."""
        *values, missing = self.raw_features(flux, flux_err, floor)
        for i, value in enumerate(values):
            value = torch.where(missing > 0, torch.nan, value)
            part = slice(i * value.shape[1], (i + 1) * value.shape[1])
            self.shift[part] = value.nanmean(0)
            self.scale[part] = (value - self.shift[part]).square().nanmean(0).sqrt().clamp_min(1e-3)

    def theta(self, x, population=None):
        """Coordinates x (n, 16) to parameters (n, 16); through ``population`` where that is the prior. Differentiable."""
        if population is None:
            return parameters.to_theta(self.centre + self.spread * x)
        return torch.cat([population.from_base(rows) for rows in x.split(_ROWS)])

    def log_prior(self, x, theta, population=None):
        """ln prior density [nat per unit x] at x (n, 16), whose parameters are ``theta``; (n,)."""
        if population is None:
            return priors.Prospector().log_prob(self.centre + self.spread * x) + self.spread.log().sum()
        return torch.where(inside(theta), flows.log_normal(x), -torch.inf)


class _Mocks:
    """Galaxies of a prior, observed anew in every batch."""

    def __init__(self, population, emulator, sky, n, generator):
        kept, missing = [], n
        while missing > 0:
            x, theta = self._draw(population, min(max(missing, 4096), 131_072), generator)
            flux = likelihood.model_flux(likelihood.photometry(emulator, theta))
            good = flux.isfinite().all(-1)
            if population is None:
                good &= flux[:, _R] > likelihood.model_flux(torch.tensor(_FAINTEST))
            kept.append((x[good][:missing], flux[good][:missing]))
            missing -= len(kept[-1][0])
        self.x, self.flux = (torch.cat(columns) for columns in zip(*kept, strict=True))
        self.selected, self.generator = population is not None, generator
        self.error = torch.cat([sky.sigma(rows, generator) for rows in self.flux.split(8192)])

    @staticmethod
    def _draw(population, n, generator):
        if population is None:
            theta = priors.Prospector().sample(n, generator)
            return parameters.to_latent(theta), theta
        u = torch.randn(n, 16, generator=generator)
        theta = torch.cat([population.from_base(rows) for rows in u.split(8192)])
        good = inside(theta)
        return u[good], theta[good]

    def batch(self, n):
        """x, flux, flux_err and floor of about ``n`` mocks; NaN where a band is missing."""
        g, half = self.generator, n // 2
        rows = torch.randint(len(self.x), (n,), generator=g)
        floor = _FLOORS[0] * (_FLOORS[1] / _FLOORS[0]) ** torch.rand(n, 1, generator=g)
        floor = floor * (_FLOOR_SCATTER * torch.randn(n, 26, generator=g)).exp()
        factor = (math.log(_ERRORS) * (2 * torch.rand(n, 1, generator=g) - 1)).exp()
        factor[:half] = 1.0
        error = self.error[rows] * factor * (_ERROR_SCATTER * torch.randn(n, 26, generator=g)).exp()
        scale = (error**2 + (floor * self.flux[rows]) ** 2).sqrt()
        flux = self.flux[rows] + scale * survey.student_t((n, 26), g)
        passed = survey.select(flux, SELECTION) if self.selected else torch.ones(n, dtype=torch.bool)
        chance = _MISSING * torch.rand(n, 1, generator=g)
        chance[::2] = 0.0  # every other mock is complete
        flux = torch.where(torch.rand(n, 26, generator=g) < chance, torch.nan, flux)
        return self.x[rows][passed], flux[passed], error[passed], floor[passed]


def learn(population, emulator, sky, *, n_simulated, steps, generator, batch=512, width=128, depth=6):
    """Train the proposal of a prior.

    Parameters
    ----------
    population : Population or None
        The prior; None for ``priors.Prospector``, whose mocks end at r = 26.
    emulator : object with ``magnitudes(theta)``
    sky : survey.Survey
        Flux errors.
    n_simulated : int
        Galaxies; their noise, floors and missing bands are drawn anew in every batch.
    steps, batch : int
        Adam steps and galaxies in each.
    generator : torch.Generator
        On the CPU.
    width, depth : int
        Of the flow.

    Returns
    -------
    proposal : Proposal
    history : Tensor of shape (steps,)
        -ln density of the truth, mean of each batch [nat per unit x].
    """
    with torch.no_grad():
        mocks = _Mocks(population, emulator, sky, n_simulated, generator)
        base = population is not None
        centre, spread = (torch.zeros(16), torch.ones(16)) if base else (mocks.x.mean(0), mocks.x.std(0))
        mocks.x = (mocks.x - centre) / spread
        flow = flows.Flow(context=_FEATURES, width=width, depth=depth, generator=generator)
        proposal = Proposal(flow, mocks.error.median(0).values, centre, spread)
        proposal.standardise(*mocks.batch(min(n_simulated, 20_000))[1:])

    def batches(_):
        x, *seen = mocks.batch(batch)
        return x, proposal.features(*seen)

    history = flows.train(flow, batches, generator=generator, steps=steps, lr=_RATE, label="proposal")
    return proposal.eval().requires_grad_(False), history


def compact(proposal):
    """State dict of a proposal with its matrices in half precision: half the file, and a rounding that importance weights undo."""
    return {name: value.half() if name.endswith("weight") else value for name, value in proposal.state_dict().items()}


def restore(state):
    """The proposal that a state dict (name -> Tensor) describes; its size is read from the tensors."""
    depth = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("flow.couplings."))
    width, bins = len(state["flow.couplings.0.own.bias"]), (len(state["flow.couplings.0.knots.bias"]) // 8 + 1) // 3
    blocks, embedding = sum(name.endswith("first.bias") for name in state), len(state["flow.embedding.0.bias"])
    flow = flows.Flow(context=_FEATURES, width=width, depth=depth, bins=bins, embedding=embedding, blocks=blocks)
    proposal = Proposal(flow, state["softening"], state["centre"], state["spread"])
    proposal.load_state_dict(dict(state))
    return proposal.eval().requires_grad_(False)


def load(prior="pop-cosmos", profile="published"):
    """The trained proposal of a prior.

    Parameters
    ----------
    prior : {"pop-cosmos", "prospector"}
    profile : str
        ``"published"``, trained at full size and shipped with the package, or the profile in which notebook 07 trained another.

    Returns
    -------
    Proposal
        In evaluation mode, on the CPU.

    Raises
    ------
    store.Missing
        If notebook 07 has not been run; the message says how.
    """
    return restore(store.load(NAMES[prior], profile).data)
