"""Draws from the posterior of every galaxy by Hamiltonian Monte Carlo, all galaxies at once.

From fits under a prior of closed form, where expectation-maximisation begins, and in its iterations (``em``). Introduced in notebook 04.

References
----------
Neal (2011), arXiv:1206.1901.
"""

import math

import torch
from tqdm import tqdm

from popcosmos_lib import likelihood, parameters

__all__ = ["FIRST_STEP", "core_width", "galaxies_at_once", "posterior_draws", "walk", "whitening"]

_GALAXIES = 2048  # sampled at once on a CPU: their networks' activations stay in cache
FIRST_STEP = 0.1  # of a chain whose target is new
_TARGET = 0.75  # acceptance aimed at
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
    spread = core_width(parameters.to_latent(prior.sample(4096, generator).to(flux)))
    rows = torch.arange(len(flux), device=flux.device).split(galaxies_at_once(flux))
    settings = emulator, prior, spread, floor, generator, trajectories, leapfrogs, keep
    parts = [
        _from_fits(parameters.to_latent(theta[r]), flux[r], flux_err[r], *settings) for r in tqdm(rows, desc="posteriors", disable=None)
    ]
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def _from_fits(phi, flux, flux_err, emulator, prior, spread, floor, generator, trajectories, leapfrogs, keep):
    def log_density(phi):
        magnitude = likelihood.photometry(emulator, parameters.to_theta(phi))
        return likelihood.log_likelihood(magnitude, flux, flux_err, floor) + prior.log_prob(phi)

    whiten = whitening(phi, flux, flux_err, emulator, spread, floor)
    step = torch.full_like(phi[:, 0], FIRST_STEP)
    draws, acceptance, _ = walk(phi, log_density, whiten, step, generator, trajectories, leapfrogs, keep)
    return parameters.to_theta(draws), acceptance


def galaxies_at_once(like):
    """How many galaxies walk together on the device of a tensor: on a CPU their networks' activations stay in cache."""
    return _GALAXIES if like.device.type == "cpu" else 16 * _GALAXIES


def core_width(phi):
    """Robust standard deviation of each column."""
    quartiles = phi.quantile(phi.new_tensor([0.25, 0.75]), dim=0)
    return (quartiles[1] - quartiles[0]) / 1.349


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


def walk(start, log_density, whiten, step, generator, trajectories, leapfrogs, keep):
    """Hamiltonian chains, one for each galaxy, all at once.

    Parameters
    ----------
    start : Tensor of shape (n, 16)
        Latent parameters.
    log_density : callable
        ``log_density(phi)`` gives ln of the target of each galaxy, (n,), differentiable in phi (n, 16); it may be -inf.
    whiten : Tensor of shape (n, 16, 16)
        From ``whitening``.
    step : Tensor of shape (n,)
        Steps to begin with, in the whitened space; tuned over the first 60 % of the trajectories.
    generator : torch.Generator
    trajectories, leapfrogs, keep : int
        As for ``posterior_draws``.

    Returns
    -------
    draws : Tensor of shape (n, keep, 16)
        phi; the last one is where the chain ends.
    acceptance, step : Tensor of shape (n,)
    """
    random = {"generator": generator, "device": generator.device}

    def latent(z):
        return start + (whiten @ z[..., None])[..., 0]

    def value_and_slope(z):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_p = log_density(latent(z))
            slope = torch.autograd.grad(log_p.sum(), z)[0]
        return log_p.detach(), slope.nan_to_num(0.0, 0.0, 0.0)

    z = torch.zeros_like(start)
    log_p, slope = value_and_slope(z)
    wanted = {trajectories - 1 - (i * trajectories) // (2 * keep) for i in range(keep)}
    kept, acceptance = [], torch.zeros_like(log_p)
    for t in range(trajectories):
        momentum = torch.randn(start.shape, **random).to(start)
        energy = log_p - 0.5 * (momentum**2).sum(-1)
        length = (step * (0.8 + 0.4 * torch.rand(len(start), **random).to(start)))[:, None]
        new, new_slope = z, slope
        for _ in range(leapfrogs):
            momentum = momentum + 0.5 * length * new_slope
            new = new + length * momentum
            new_log_p, new_slope = value_and_slope(new)
            momentum = momentum + 0.5 * length * new_slope
        odds = (new_log_p - 0.5 * (momentum**2).sum(-1) - energy).nan_to_num(-torch.inf, -torch.inf, -torch.inf).clamp_max(0.0).exp()
        taken = torch.rand(len(start), **random).to(start) < odds
        z, slope = torch.where(taken[:, None], new, z), torch.where(taken[:, None], new_slope, slope)
        log_p = torch.where(taken, new_log_p, log_p)
        if t < 0.6 * trajectories:
            step = (step * torch.exp(0.6 * (odds - _TARGET) / (1 + t) ** 0.3)).clamp(0.005, 1.0)
        if t >= trajectories // 2:
            acceptance += odds / (trajectories - trajectories // 2)
        if t in wanted:
            kept.append(latent(z))
    return torch.stack(kept, 1), acceptance, step
