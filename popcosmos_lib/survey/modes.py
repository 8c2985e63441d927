"""Maxima of a galaxy's posterior: a library of starting points, and batched quasi-Newton ascent.

``maximum_posterior`` gives notebook 04 its starting population; the ensemble of notebook 07 starts from the local maxima.

References
----------
Thorp et al. (2025), arXiv:2506.12122, sect. 3.6 (likelihood); Alsing et al. (2024), arXiv:2402.00935, sect. 4.1 (fits as a start).
"""

from typing import NamedTuple

import torch

from popcosmos_lib.galaxies import parameters
from popcosmos_lib.survey import likelihood

__all__ = ["TOLERANCE", "Library", "MaximumPosterior", "Modes", "local_maxima", "maximum_posterior"]

_CUT = 512  # galaxies compared with the whole library at a time
_SHORTLIST = 1024  # library galaxies ranked by the full posterior
_SHORTLIST_FLOOR = 0.05  # smallest fractional error while choosing them
_APART = 0.08  # dz/(1+z) between starting points
_DIFFERENCE = 0.01  # step of the numerical derivatives, in units of phi
_DIFFERENCE_Z = 0.001  # the same in redshift, where a line crosses a band within 0.02
_RESTART = 25  # steps after which the curvature is computed anew
_SOFTEST = 0.1  # smallest curvature granted to the prior in any direction (1 for a uniform one)
TOLERANCE = 0.05  # gain promised by a further full step below which a fit has converged [nat]


class Library(NamedTuple):
    """Model galaxies with their photometry, against which every observed galaxy is compared once.

    Attributes
    ----------
    phi : Tensor of shape (n, 16)
        Latent parameters.
    magnitude : Tensor of shape (n, n_band)
        Apparent magnitudes (AB).
    """

    phi: torch.Tensor
    magnitude: torch.Tensor

    @classmethod
    def of(cls, theta, emulator):
        """Photometry of ``theta`` (n, 16) through an emulator; galaxies it cannot represent are dropped."""
        with torch.no_grad():
            phi, magnitude = parameters.to_latent(theta), likelihood.photometry(emulator, theta)
        good = torch.isfinite(magnitude).all(-1) & torch.isfinite(phi).all(-1)
        return cls(phi[good], magnitude[good])

    @torch.no_grad()
    def nearest(self, flux, flux_err, floor, n):
        """The library galaxies that fit best once each is rescaled to the observed brightness.

        A Gaussian fit of one amplitude by matrix products, with a model error of at least 5 % so that no single band decides;
        the robust likelihood is for the caller to apply to this shortlist.

        Parameters
        ----------
        flux, flux_err : Tensor of shape (m, n_band)
            Photometry [µJy]; not finite where missing.
        floor : float or Tensor of shape (n_band,)
            Fractional model error.
        n : int
            How many to return for each galaxy.

        Returns
        -------
        index : Tensor of shape (m, n)
            Rows of the library, the best first.
        shift : Tensor of shape (m, n)
            Magnitudes to add to N and to the photometry [mag].
        """
        middle = self.magnitude.median(-1, keepdim=True).values
        template = likelihood.model_flux(self.magnitude - middle + likelihood.ZERO_POINT)  # about 1 µJy, so that sums stay within float32
        floor = torch.as_tensor(floor).to(flux).clamp_min(_SHORTLIST_FLOOR)
        index, shift = [], []
        for f, e in zip(flux.split(_CUT), flux_err.split(_CUT), strict=True):
            there = torch.isfinite(f) & torch.isfinite(e)
            weight = torch.where(there, 1 / (e**2 + (floor * f) ** 2), 0.0)
            cross, square = (weight * torch.where(there, f, 0.0)) @ template.T, weight @ (template**2).T
            best = (cross.clamp_min(0.0) ** 2 / square.clamp_min(1e-30)).topk(min(n, len(self.phi)), dim=-1).indices
            amplitude = (cross.gather(1, best) / square.gather(1, best).clamp_min(1e-30)).clamp_min(1e-6)
            index.append(best)
            shift.append(likelihood.ZERO_POINT - middle[best, 0] - 2.5 * amplitude.log10())
        return torch.cat(index), torch.cat(shift)


class MaximumPosterior(NamedTuple):
    """Most probable parameters of each galaxy.

    Attributes
    ----------
    theta : Tensor of shape (n, 16)
        SPS parameters.
    log_posterior : Tensor of shape (n,)
        ln likelihood + ln prior density in phi at ``theta`` [nat].
    chi_square : Tensor of shape (n,)
        Sum of squared scaled residuals.
    converged : Tensor of shape (n,), bool
        Whether a further full step promises less than ``TOLERANCE``.
    """

    theta: torch.Tensor
    log_posterior: torch.Tensor
    chi_square: torch.Tensor
    converged: torch.Tensor


def _distinct(score, z, n):
    """Columns of the ``n`` best scores at redshifts that differ by more than ``_APART`` in dz/(1+z), the best again if none is left."""
    chosen = [score.argmax(-1)]
    for _ in range(n - 1):
        at = z.gather(1, chosen[-1][:, None])
        score = score.masked_fill((z - at).abs() < _APART * (1 + at), -torch.inf)
        left = torch.isfinite(score).any(-1)
        chosen.append(torch.where(left, score.argmax(-1), chosen[0]))
    return torch.stack(chosen, 1)


def _log_posterior(phi, flux, flux_err, floor, prior, emulator):
    magnitude = likelihood.photometry(emulator, parameters.to_theta(phi))
    return likelihood.log_likelihood(magnitude, flux, flux_err, floor) + prior.log_prob(phi)


def _slope(function, phi):
    """Value and gradient of a function of phi, one value a row; minus infinity and zero where they are not finite."""
    with torch.enable_grad():
        phi = phi.detach().requires_grad_()
        value = function(phi)
        gradient = torch.autograd.grad(value.sum(), phi)[0]
    return value.detach().nan_to_num(-torch.inf, torch.inf, -torch.inf), gradient.nan_to_num(0.0, 0.0, 0.0)


def _definite(matrix):
    """The nearest symmetric matrix without eigenvalues below ``_SOFTEST``."""
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    return (vectors * values.clamp_min(_SOFTEST)[..., None, :]) @ vectors.mT


def _curvature(phi, flux, flux_err, floor, prior, emulator):
    """Positive curvature (n, 16, 16) of ln posterior, float64: Gauss-Newton for the data, clipped Hessian for the prior.

    Derivatives are forward differences: 16 more evaluations of the emulator are cheaper than its 26 backward passes.
    """
    n, d = phi.shape
    step = torch.full((d,), _DIFFERENCE).to(phi)
    step[parameters.INDEX["z"]] = _DIFFERENCE_Z
    near = (phi[:, None] + torch.diag(step)).reshape(-1, d)
    magnitude = likelihood.photometry(emulator, parameters.to_theta(phi))
    residual, scale, there = likelihood.residual_and_scale(magnitude, flux, flux_err, floor)
    model = likelihood.model_flux(magnitude)
    neighbour = likelihood.model_flux(likelihood.photometry(emulator, parameters.to_theta(near))).reshape(n, d, -1)
    jacobian = ((neighbour - model[:, None]) / (step[:, None] * scale[:, None])).nan_to_num(0.0, 0.0, 0.0).double()
    weight = torch.where(there, 3 / (2 + residual**2), 0.0).double()
    slope = _slope(prior.log_prob, phi)[1]
    hessian = (slope[:, None] - _slope(prior.log_prob, near)[1].reshape(n, d, d)) / step[:, None]
    # stiff directions reach 1e7: in float32 their rounding would outweigh the soft ones
    return _definite(hessian.double()) + (jacobian * weight[:, None]) @ jacobian.mT


def _climb(phi, flux, flux_err, floor, prior, emulator, steps):
    """Quasi-Newton (BFGS) ascent, each row its own problem; returns phi, ln posterior and what a further full step would gain [nat].

    The inverse curvature starts as Gauss-Newton's and learns from exact gradients what that leaves out, which is what bends the narrow
    ridges between dust, age and redshift; every ``_RESTART`` steps it starts anew.
    """
    phi = phi.clone()
    value, gradient = _slope(lambda x: _log_posterior(x, flux, flux_err, floor, prior, emulator), phi)
    promise = torch.full_like(value, torch.inf)
    for start in range(0, steps + _RESTART, _RESTART):
        rows = (promise > TOLERANCE).nonzero()[:, 0]
        data = flux[rows], flux_err[rows], floor, prior, emulator
        inverse = torch.linalg.inv(_curvature(phi[rows], *data)).to(phi)
        promise[rows] = 0.5 * torch.einsum("ni,nij,nj->n", gradient[rows], inverse, gradient[rows])
        rows, inverse = rows[promise[rows] > TOLERANCE], inverse[promise[rows] > TOLERANCE]
        if not len(rows) or start >= steps:
            break
        data = flux[rows], flux_err[rows], floor, prior, emulator
        length = torch.ones_like(value[rows])
        for _ in range(min(_RESTART, steps - start)):
            old = gradient[rows]
            step = (inverse @ old[..., None])[..., 0]
            step = length[:, None] * step / step.abs().amax(-1, keepdim=True).clamp_min(1.0)
            new, slope = _slope(lambda x, data=data: _log_posterior(x, *data), phi[rows] + step)
            inverse = _learn(inverse, step, old - slope)
            better = new > value[rows] + 1e-4 * (old * step).sum(-1)
            up = rows[better]
            phi[up] += step[better]
            value[up], gradient[up] = new[better], slope[better]
            length = torch.where(better, 1.0, 0.3 * length)
    return phi, value, promise


def _learn(inverse, step, change):
    """BFGS update of inverse curvatures (n, 16, 16) with a step and minus the change of the gradient along it; none where not convex."""
    along = (step * change).sum(-1)
    convex = along > 1e-6 * step.norm(dim=-1) * change.norm(dim=-1)
    rate = torch.where(convex, 1 / torch.where(convex, along, 1.0), 0.0)[:, None, None]
    project = torch.eye(step.shape[-1]).to(step) - rate * step[:, :, None] * change[:, None]
    return project @ inverse @ project.mT + rate * step[:, :, None] * step[:, None]


class Modes(NamedTuple):
    """Local maxima of the posterior of each galaxy.

    Attributes
    ----------
    phi : Tensor of shape (n, k, 16)
        Latent parameters of the maxima; several starts may end in one.
    log_posterior : Tensor of shape (n, k)
        ln likelihood + ln prior density in phi [nat].
    curvature : Tensor of shape (n, k, 16, 16)
        Minus the second derivatives there, made positive definite; float64.
    converged : Tensor of shape (n, k), bool
        Whether a further full step promises less than ``TOLERANCE``.
    """

    phi: torch.Tensor
    log_posterior: torch.Tensor
    curvature: torch.Tensor
    converged: torch.Tensor


@torch.no_grad()
def local_maxima(flux, flux_err, prior, emulator, library, *, n_starts=4, steps=150, floor=0.0):
    """Maxima of the posterior, by batched ascent from several redshifts.

    Parameters
    ----------
    flux, flux_err : Tensor of shape (n, n_band)
        Photometry and errors [µJy]; a band where either is not finite is left out.
    prior : object with ``log_prob(phi)``
    emulator : object with ``magnitudes(theta)``
    library : Library
        Starts are its best galaxies, each rescaled to the observed brightness, at ``n_starts`` different redshifts.
    n_starts : int
    steps : int
        Largest number of steps; each costs one emulator evaluation with its gradient per start.
    floor : float or Tensor of shape (n_band,)
        Fractional error of the model flux, emulator error included.

    Returns
    -------
    Modes
    """
    parts = []
    for f, e in zip(flux.split(_CUT), flux_err.split(_CUT), strict=True):
        index, shift = library.nearest(f, e, floor, _SHORTLIST)
        phi = library.phi[index]
        phi[..., 0] += shift
        score = likelihood.log_likelihood(library.magnitude[index] + shift[..., None], f[:, None], e[:, None], floor) + prior.log_prob(phi)
        start = _distinct(score, parameters.column(parameters.to_theta(phi), "z"), n_starts)
        phi = phi.gather(1, start[..., None].expand(-1, -1, 16)).reshape(-1, 16)
        data = f.repeat_interleave(n_starts, 0), e.repeat_interleave(n_starts, 0), floor, prior, emulator
        phi, value, promise = _climb(phi, *data, steps)
        curvature = _definite(_curvature(phi, *data))
        parts.append([x.reshape(len(f), n_starts, *x.shape[1:]) for x in (phi, value, curvature, promise < TOLERANCE)])
    return Modes(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


@torch.no_grad()
def maximum_posterior(flux, flux_err, prior, emulator, generator, *, n_starts=4, steps=150, floor=0.0, n_library=50_000):
    """Most probable parameters: the best of ``local_maxima`` from a library of prior draws.

    The papers descend with Adam; on these narrow curved ridges Adam needs thousands of steps and stops short unnoticed, so
    quasi-Newton steps are taken instead, and the gain still to be had is the convergence test.

    Parameters
    ----------
    flux, flux_err : Tensor of shape (n, n_band)
        Photometry and errors [µJy]; a band where either is not finite is left out.
    prior : Prospector or Broad
        Supplies ``log_prob(phi)`` and ``library``.
    emulator : object with ``magnitudes(theta)``
        Model photometry; its ``error`` is added to the floor where it has one.
    generator : torch.Generator
        Draws the library.
    n_starts, steps : int
        As for ``local_maxima``.
    floor : float or Tensor of shape (n_band,)
        Fractional floor of the model flux.
    n_library : int
        Size of the library.

    Returns
    -------
    MaximumPosterior
    """
    floor = likelihood.fractional_error(floor, emulator).to(flux)
    library = Library.of(prior.library(n_library, generator).to(flux), emulator)
    found = local_maxima(flux, flux_err, prior, emulator, library, n_starts=n_starts, steps=steps, floor=floor)
    row, best = torch.arange(len(flux), device=flux.device), found.log_posterior.argmax(-1)
    theta = parameters.to_theta(found.phi[row, best])
    chi = likelihood.scaled_residual(likelihood.photometry(emulator, theta), flux, flux_err, floor).square().sum(-1)
    return MaximumPosterior(theta, found.log_posterior[row, best], chi, found.converged[row, best])
