"""A first guess of every posterior: a flow from unit normals to a galaxy's parameters, given its photometry.

Posteriors are sampled in the latent parameters phi. The first, N, only scales the fluxes of a model, so it need not be learned: given the
other fifteen, Newton's method finds the best N of each draw, and w_0 measures the distance from it. This removes brightness, the direction
in which posteriors are narrowest and most curved. A normalising flow proposes the other fifteen. It is trained on mocks of the prior with
all noise levels, all error floors and random missing bands, so that one flow serves any catalogue in these bands; ``exact_engine`` corrects
its errors by importance weights. A second flow approximates the density of the population, because the diffusion model takes milliseconds
per point; ``exact_engine`` corrects this approximation for the draws that it keeps. Introduced in notebook 07.

References
----------
Papamakarios & Murray (2016), arXiv:1605.06376 (amortised posteriors); Thorp et al. (2025), arXiv:2506.12122 sect. 3.6 (likelihood).
"""

import math

import torch
from torch import nn

from popcosmos_lib import survey
from popcosmos_lib.artefacts import store
from popcosmos_lib.artefacts.checkpoint import Checkpoint
from popcosmos_lib.density import flows
from popcosmos_lib.galaxies import parameters, priors
from popcosmos_lib.population import SELECTION, inside
from popcosmos_lib.survey import likelihood
from popcosmos_lib.synthesis import filters

__all__ = ["NAMES", "Proposal", "brightness", "compact", "faint", "learn", "load", "restore"]

NAMES = {"pop-cosmos": "proposal", "prospector": "proposal_prospector"}  # artefacts
_DETECTED = slice(filters.SHORT.index("i"), filters.SHORT.index("Ks") + 1)  # the bands in which COSMOS2020 finds its sources
_FAINTEST = 26.5  # mocks of a prior without a selection end there in the brightest of them [mag]; a cut in r would leave out z > 4
_FLOORS = (0.005, 0.12)  # range of the fractional floors of the mocks
_FLOOR_SCATTER, _ERROR_SCATTER = 0.3, 0.2  # ln, between the bands of one galaxy
_ERRORS = 3.0  # range of the common factor of the errors of half of the mocks, up and down
_MISSING = 0.7  # largest chance of a band to be missing, in half of the mocks
_RATE = 3e-3  # peak of the learning rate: with 1e-3 the fit is 0.5 nat behind after the same steps
_EVEN = 0.05  # fractional error added to each band for the first guess of N
_NEWTON, _LONGEST = 5, 0.5  # steps from there to the best N, none longer than this [mag]
_FEATURES = 3 * len(filters.COSMOS26)


class Proposal(nn.Module):
    """Coordinates w of each galaxy in which its posterior is close to a unit normal.

    Parameters
    ----------
    flow : flows.Flow
        Density of x_1 to x_15 given the features, where x = (phi - centre) / spread.
    density : flows.Flow or None
        Density of all sixteen x under the population; None for the Prospector-like prior, whose density has a closed form.
    softening : Tensor of shape (26,)
        Softening of the asinh fluxes among the features [µJy].
    centre, spread : Tensor of shape (16,)
        Mean and standard deviation of phi under the prior.
    """

    def __init__(self, flow, density, softening, centre, spread):
        super().__init__()
        self.flow, self.density = flow, density
        for name, value in (("softening", softening), ("centre", centre), ("spread", spread)):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32))
        self.register_buffer("shift", torch.zeros(2, len(filters.COSMOS26)))
        self.register_buffer("scale", torch.ones(2, len(filters.COSMOS26)))

    def raw_features(self, flux, flux_err, floor):
        """Asinh flux, ln of the total error and 0 for a measured band; 0, 0 and 1 for a missing one; (n, 78)."""
        there = flux.isfinite() & flux_err.isfinite()
        flux, flux_err = torch.where(there, flux, 0.0), torch.where(there, flux_err, 1.0)
        error = (flux_err**2 + (floor * flux) ** 2).sqrt()
        return torch.where(there, torch.asinh(flux / (2 * self.softening)), 0.0), torch.where(there, error.log(), 0.0), 1.0 - there.to(flux)

    def features(self, flux, flux_err, floor):
        """Features of the photometry on which the flow is conditioned.

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
        pairs = zip(values, self.shift, self.scale, strict=True)
        values = [torch.where(missing > 0, 0.0, ((v - s) / r).clamp(-8.0, 8.0)) for v, s, r in pairs]
        return torch.cat([*values, missing], -1)

    def standardise(self, flux, flux_err, floor):
        """Take the standardisation of the features from galaxies."""
        *values, missing = self.raw_features(flux, flux_err, floor)
        for i, value in enumerate(values):
            value = torch.where(missing > 0, torch.nan, value)
            self.shift[i] = value.nanmean(0)
            self.scale[i] = (value - self.shift[i]).square().nanmean(0).sqrt().clamp_min(1e-3)

    def decode(self, w, given, flux, flux_err, floor, emulator):
        """Map coordinates w to latent parameters and photometry; differentiable.

        Parameters
        ----------
        w : Tensor of shape (g, n, 16)
        given : Tensor of shape (g, 78)
            Features of the galaxies.
        flux, flux_err : Tensor of shape (g, 26)
            [µJy]; not finite where missing.
        floor : Tensor of shape (26,)
            Fractional error of the model flux.
        emulator : object with ``magnitudes(theta)``

        Returns
        -------
        phi : Tensor of shape (g, n, 16)
        magnitude : Tensor of shape (g, n, 26)
        log_det : Tensor of shape (g, n)
            ln |d phi / d w|.
        """
        x, log_slope = self.flow.from_base(w[..., 1:], given[:, None])
        lost = ~x.isfinite().all(-1)  # a trajectory of the chains that has run away; no emulator takes NaN
        x, log_slope = x.masked_fill(lost[..., None], 0.0), log_slope.masked_fill(lost, torch.inf)
        rest = self.centre[1:] + self.spread[1:] * x
        phi = torch.cat([torch.zeros_like(w[..., :1]), rest], -1)
        shape = likelihood.photometry(emulator, parameters.to_theta(phi).flatten(0, 1)).unflatten(0, w.shape[:2])
        peak, width = brightness(shape, flux[:, None], flux_err[:, None], floor, self.centre[0], self.spread[0])
        n = peak + width * w[..., 0]
        phi = torch.cat([n[..., None], rest], -1)
        return phi, shape + n[..., None], self.spread[1:].log().sum() + width.log() - log_slope

    def log_prior(self, phi, theta):
        """ln prior density [nat per unit phi] at phi (..., 16), whose parameters are ``theta``; (...)."""
        if self.density is None:
            return priors.Prospector().log_prob(phi)
        log_p = self.density.log_prob((phi - self.centre) / self.spread) - self.spread.log().sum()
        return torch.where(inside(theta), log_p, -torch.inf)


def brightness(shape, flux, flux_err, floor, centre, spread):
    """The value of N that fits a spectrum of given shape best, and its error.

    Parameters
    ----------
    shape : Tensor of shape (..., n_band)
        Magnitudes of the model at N = 0.
    flux, flux_err, floor
        As for ``likelihood.log_likelihood``.
    centre, spread : float or Tensor of shape ()
        Mean and width of a normal prior on N [mag], which constrains N where there is little photometry.

    Returns
    -------
    peak, width : Tensor of shape (...)
        Maximum and width of likelihood times prior [mag]. Where bands disagree the Student-t likelihood has several maxima; one is found.
    """
    there = flux.isfinite() & flux_err.isfinite()
    flux, flux_err = torch.where(there, flux, 0.0), torch.where(there, flux_err, 1.0)
    at = lambda n: torch.where(there, likelihood.model_flux(shape + n), 0.0)  # noqa: E731
    model, weight = at(centre), there / (flux_err**2 + (_EVEN * flux) ** 2)
    power = (weight * model**2).sum(-1)
    scale = torch.where(power > 0, (weight * model * flux).sum(-1) / power.clamp_min(1e-30), 1.0)
    n = centre - 2.5 * torch.log10(scale.clamp(1e-3, 1e6))

    def slope_and_residual(n):
        model = at(n[..., None])
        sigma = (flux_err**2 + (floor * model) ** 2).sqrt()
        return 0.4 * math.log(10) * model / sigma, (flux - model) / sigma

    for _ in range(_NEWTON):
        slope, residual = slope_and_residual(n)
        pull = 1.5 / (1 + residual**2 / 2)
        push = -(slope * pull * residual).sum(-1) - (n - centre) / spread**2
        n = n + (push / ((slope**2 * pull).sum(-1) + spread**-2)).clamp(-_LONGEST, _LONGEST)
    slope = slope_and_residual(n)[0]
    return n, (likelihood.STUDENT_INFORMATION * (slope**2).sum(-1) + spread**-2) ** -0.5


class _Mocks:
    """Galaxies of a prior, observed anew in every batch."""

    def __init__(self, population, emulator, sky, n, generator):
        kept, missing = [], n
        while missing > 0:
            law = population or priors.Prospector()
            theta = law.sample(min(max(missing, 4096), 131_072), generator)
            flux = likelihood.model_flux(likelihood.photometry(emulator, theta))
            good = flux.isfinite().all(-1)
            if population is None:
                good &= ~faint(flux)
            kept.append((parameters.to_latent(theta[good])[:missing], flux[good][:missing]))
            missing -= len(kept[-1][0])
        self.x, self.flux = (torch.cat(columns) for columns in zip(*kept, strict=True))
        self.selected, self.generator = population is not None, generator
        self.error = torch.cat([sky.sigma(rows, generator) for rows in self.flux.split(8192)])

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


def learn(population, emulator, sky, *, n_simulated, steps, generator, batch=256, width=128, depth=6, checkpoint=None):
    """Train the proposal of a prior.

    Parameters
    ----------
    population : Population or None
        The prior; None for ``priors.Prospector``, whose mocks end at 26.5 mag in the brightest band from i to Ks.
    emulator : object with ``magnitudes(theta)``
    sky : survey.Survey
        Flux errors.
    n_simulated : int
        Number of galaxies; noise, floors and missing bands are drawn anew in every batch.
    steps, batch : int
        Number of Adam steps and batch size; the density of the population is trained with half the steps and twice the batch size.
    generator : torch.Generator
        On the CPU.
    width, depth : int
        Size of the flow; the density has two more couplings.
    checkpoint : checkpoint.Checkpoint, optional
        Lets an interrupted training resume.

    Returns
    -------
    proposal : Proposal
    history : Tensor of shape (steps,)
        Mean of -ln density of the true x_1 to x_15 in each batch [nat].
    """
    with torch.no_grad():
        mocks = _Mocks(population, emulator, sky, n_simulated, generator)
        centre, spread = mocks.x.mean(0), mocks.x.std(0)
        mocks.x = (mocks.x - centre) / spread
        flow = flows.Flow(dim=15, context=_FEATURES, width=width, depth=depth, generator=generator)
        density = None if population is None else flows.Flow(width=width, depth=depth + 2, generator=generator)
        proposal = Proposal(flow, density, mocks.error.median(0).values, centre, spread)
        proposal.standardise(*mocks.batch(min(n_simulated, 20_000))[1:])

    def batches(_):
        x, *seen = mocks.batch(batch)
        return x[:, 1:], proposal.features(*seen)

    def galaxies(_):
        return mocks.x[torch.randint(len(mocks.x), (2 * batch,), generator=generator)], None

    checkpoint, options = checkpoint or Checkpoint(None, {}), {"generator": generator, "lr": _RATE}
    if density is not None:
        flows.train(density, galaxies, steps=steps // 2, label="density", checkpoint=checkpoint.stage("density"), **options)
    history = flows.train(flow, batches, steps=steps, label="proposal", checkpoint=checkpoint.stage("flow"), **options)
    for name in ("density", "flow"):
        checkpoint.stage(name).clear()
    return proposal.eval().requires_grad_(False), history


def faint(flux):
    """Which galaxies (n, 26) [µJy] are fainter than all mocks of a prior without a selection, in every band from i to Ks: (n,), bool."""
    seen = flux[:, _DETECTED]
    return seen.isfinite().any(1) & ~(seen > likelihood.model_flux(torch.tensor(_FAINTEST))).any(1)


def compact(proposal):
    """State dict of a proposal with its matrices in half precision: half the file, and a rounding that importance weights undo."""
    return {name: value.half() if name.endswith("weight") else value for name, value in proposal.state_dict().items()}


def restore(state):
    """The proposal that a state dict (name -> Tensor) describes; its size is read from the tensors."""
    density = flows.restore(state, "density.") if "density.affine.bias" in state else None
    proposal = Proposal(flows.restore(state, "flow."), density, state["softening"], state["centre"], state["spread"])
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
