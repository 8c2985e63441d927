"""Hamiltonian Monte Carlo for many targets at once, each with its own metric and step: ``population.chains`` applies it to galaxies.

The sampler sees a log-density and its gradient, nothing else. Introduced in notebook 04.

References
----------
Neal (2011), arXiv:1206.1901.
"""

import torch

__all__ = ["FIRST_STEP", "core_width", "rows_at_once", "walk"]

_ROWS = 2048  # chains advanced at once on a CPU: their networks' activations stay in cache
FIRST_STEP = 0.1  # of a chain whose target is new
_TARGET = 0.75  # acceptance aimed at


def rows_at_once(like):
    """How many chains advance together on the device of a tensor: on a CPU their networks' activations stay in cache."""
    return _ROWS if like.device.type == "cpu" else 16 * _ROWS


def core_width(phi):
    """Robust standard deviation of each column."""
    quartiles = phi.quantile(phi.new_tensor([0.25, 0.75]), dim=0)
    return (quartiles[1] - quartiles[0]) / 1.349


def walk(start, log_density, whiten, step, generator, trajectories, leapfrogs, keep):
    """Run one Hamiltonian chain per target, all at once.

    Parameters
    ----------
    start : Tensor of shape (n, d)
        Starting points.
    log_density : callable
        ``log_density(x)`` returns ln of the target at x (n, d), shape (n,), differentiable; it may be -inf.
    whiten : Tensor of shape (n, d, d)
        Linear maps under which the targets are roughly round, such as ``population.chains.whitening``.
    step : Tensor of shape (n,)
        Initial step sizes in the whitened space; tuned over the first 60 % of the trajectories.
    generator : torch.Generator
    trajectories, leapfrogs, keep : int
        Number of trajectories, of gradients per trajectory, and of states to return, evenly spread over the second half of the chain.

    Returns
    -------
    draws : Tensor of shape (n, keep, d); the last one is the end of the chain
    acceptance, step : Tensor of shape (n,)
        Mean acceptance over the second half, and tuned step sizes.
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
