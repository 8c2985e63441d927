"""Posterior draws of every galaxy of a catalogue by Hamiltonian Monte Carlo, all galaxies at once.

From fits under a prior of closed form, where expectation-maximisation begins, and in its iterations (``expectation_maximisation``).
Introduced in notebook 04.

References
----------
Neal (2011), arXiv:1206.1901; Thorp et al. (2025), arXiv:2506.12122 sect. 3.6 (Student-t likelihood).
"""

import math

import torch
from tqdm import tqdm

from popcosmos_lib.galaxies import parameters
from popcosmos_lib.sampling import hamiltonian
from popcosmos_lib.survey import likelihood

__all__ = ["posterior_draws", "whitening"]

_DIFFERENCE = 0.01  # step of the finite differences behind the metric, in units of the latent


def posterior_draws(theta, flux, flux_err, *, emulator, prior, generator, trajectories=50, leapfrogs=8, keep=4, floor=0.0):
    """Draws from each galaxy's posterior by Hamiltonian Monte Carlo, from a fit.

    Each galaxy is whitened by its own Gauss-Newton metric at the start, and has its own step, tuned over the first 60 %
    of the trajectories. Chains are local: a galaxy stays in the redshift mode that its start found.

    Parameters
    ----------
    theta : Tensor of shape (n, 16)
        Starting points, such as maximum-posterior fits.
    flux, flux_err : Tensor of shape (n, n_band)
        Photometry and errors [µJy]; a band where either is not finite is left out.
    emulator : object with ``magnitudes(theta)``
    prior : Prospector or Broad
        Supplies ``log_prob(phi)`` and ``sample``.
    generator : torch.Generator
    trajectories, leapfrogs : int
        Length of the chain, and gradients per trajectory.
    keep : int
        States kept, evenly spread over the second half of the chain.
    floor : float or Tensor of shape (n_band,)
        Fractional floor of the model flux; the emulator's error is added.

    Returns
    -------
    draws : Tensor of shape (n, keep, 16)
        theta.
    acceptance : Tensor of shape (n,)
        Mean acceptance of each galaxy over the second half.
    """
    floor = likelihood.fractional_error(floor, emulator).to(flux)
    spread = hamiltonian.core_width(parameters.to_latent(prior.sample(4096, generator).to(flux)))
    rows = torch.arange(len(flux), device=flux.device).split(hamiltonian.rows_at_once(flux))

    def walked(rows):
        data, start = (flux[rows], flux_err[rows]), parameters.to_latent(theta[rows])

        def log_density(phi):
            magnitude = likelihood.photometry(emulator, parameters.to_theta(phi))
            return likelihood.log_likelihood(magnitude, *data, floor) + prior.log_prob(phi)

        whiten = whitening(start, *data, emulator, spread, floor)
        step = torch.full_like(start[:, 0], hamiltonian.FIRST_STEP)
        draws, acceptance, _ = hamiltonian.walk(start, log_density, whiten, step, generator, trajectories, leapfrogs, keep)
        return parameters.to_theta(draws), acceptance

    parts = [walked(part) for part in tqdm(rows, desc="posteriors", disable=None)]
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def whitening(phi, flux, flux_err, emulator, spread, floor):
    """Linear maps under which posteriors are about round: inverse roots of their Gauss-Newton metrics.

    Parameters
    ----------
    phi : Tensor of shape (n, 16)
        Where the metric is taken.
    flux, flux_err : Tensor of shape (n, n_band)
        Photometry and errors [µJy].
    emulator : object with ``magnitudes(theta)``
    spread : Tensor of shape (16,)
        Width of the prior in each direction.
    floor : Tensor of shape (n_band,)
        Fractional error of the model flux.

    Returns
    -------
    Tensor of shape (n, 16, 16)
        A, such that phi + A z has roughly unit covariance in z.
    """
    with torch.no_grad():
        magnitude = likelihood.photometry(emulator, parameters.to_theta(phi))
        slopes = []
        for k in range(phi.shape[-1]):
            moved = phi.clone()
            moved[:, k] += _DIFFERENCE
            slopes.append((likelihood.photometry(emulator, parameters.to_theta(moved)) - magnitude) / _DIFFERENCE)
        jacobian = torch.stack(slopes, -1).nan_to_num(0.0, 0.0, 0.0).double()  # (n, band, 16)
        model = likelihood.model_flux(magnitude)
        scale = (flux_err**2 + (floor * model) ** 2).sqrt()
        weight = likelihood.STUDENT_INFORMATION * (0.4 * math.log(10) * model / scale) ** 2  # per mag^2
        weight = torch.where(torch.isfinite(flux) & torch.isfinite(flux_err), weight, 0.0).double()
        metric = jacobian.mT @ (weight[..., None] * jacobian) + torch.diag(spread.double() ** -2)
        root = torch.linalg.cholesky(metric)
        identity = torch.eye(phi.shape[-1], dtype=root.dtype, device=root.device).expand_as(root)
        return torch.linalg.solve_triangular(root.mT, identity, upper=True).to(phi)
