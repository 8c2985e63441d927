"""Score-based diffusion model of a density: training, and sampling and log-density by the probability-flow ODE.

All functions work in a *standardised* space x (mean 0 and variance about 1 in every direction); ``population.model`` adds the shift, scale
and probit that lead to physical parameters. Densities are per unit x. The network is in ``score_net``, the solvers of the ODE in
``solvers``, and the noise schedules in ``noise_schedules``. Introduced in notebook 04.

References
----------
Song et al. (2021), arXiv:2011.13456 (probability-flow ODE, VE and VP SDEs); Karras et al. (2022), arXiv:2206.00364 (noise grid, VP as VE in
other units); Hutchinson (1990) and Grathwohl et al. (2019), arXiv:1810.01367 (estimate of the trace); Alsing et al. (2024) sect. 3.2 and
Thorp et al. (2025) sect. 3.3 (VE from 0.01 to 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from tqdm import tqdm

from popcosmos_lib.density import solvers
from popcosmos_lib.density.noise_schedules import VE, VP
from popcosmos_lib.density.score_net import ScoreNet

__all__ = ["VE", "VP", "ScoreNet", "decode", "encode", "log_prob", "train"]


_SOLVERS = {  # with their default steps and the curvature of the grid that suits them best (benchmarks/solvers.py)
    "adams": (solvers.adams, 16, None),
    "dpm++": (solvers.dpm, 16, None),
    "heun": (solvers.heun, 15, 7.0),
}


def decode(
    model: Callable[..., torch.Tensor],
    u: torch.Tensor,
    *,
    sde: VE | VP | None = None,
    solver: str = "adams",
    steps: int | None = None,
    tolerance: float = 1e-5,
) -> torch.Tensor:
    """Base noise to points of the density, along the probability-flow ODE.

    Parameters
    ----------
    model : callable
        Denoiser ``model(x, sigma)``: a ``ScoreNet`` or any exact one.
    u : Tensor of shape (..., dim)
        Unit-normal base noise; scaled by ``sde.base_scale`` here.
    sde : VE or VP, optional
        Noise schedule; VE unless given.
    solver : {"adams", "dpm++", "heun", "dopri5"}
        Adams of third order or DPM-Solver++(2M), one evaluation a step; Heun, two; or the adaptive reference.
    steps : int, optional
        Steps; by default 16, for Heun 15. Not for dopri5. Sixteen of Adams leave a unit normal 0.01 % too wide (VP: 0.24 %) and
        a component of width 0.05 in a mixture 0.1 % too narrow (VP: 1 % too wide); see benchmarks/solvers.py.
    tolerance : float
        Of dopri5.

    Returns
    -------
    x : Tensor of shape (..., dim)
        Points of the density smoothed by sigma_min; differentiable in u and in the weights.

    Raises
    ------
    ValueError
        If the solver is unknown.
    """
    sde = sde or VE()
    x = u * sde.base_scale
    if solver == "dopri5":
        slope = lambda state, sigma: (state[0] - model(state[0], sigma),)  # noqa: E731
        return solvers.dopri5(slope, (x,), sde.sigma_max, sde.sigma_min, tolerance)[0]
    if solver not in _SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(_SOLVERS)} or dopri5, not {solver!r}")
    solve, default, curvature = _SOLVERS[solver]
    return solve(model, x, sde.grid(steps or default, curvature))


def encode(
    model: Callable[..., torch.Tensor],
    x: torch.Tensor,
    *,
    sde: VE | VP | None = None,
    solver: str = "adams",
    steps: int | None = None,
    corrections: int = 4,
    tolerance: float = 1e-5,
) -> torch.Tensor:
    """Points of the density to base noise: the inverse of ``decode`` with the same solver and steps.

    A latent belongs to the one discretised map that made it. The ODE solved backwards gives a first guess; each correction then
    adds the difference that a round trip leaves, so that ``decode(model, encode(model, x))`` returns x.

    Parameters
    ----------
    model : callable
        Denoiser.
    x : Tensor of shape (..., dim)
        Points in the standardised space.
    sde, solver, steps, tolerance
        Of the ``decode`` to be inverted.
    corrections : int
        Rounds of correction: 4 return x to 1e-4 with the default, and DPM-Solver++ under VP needs 8. dopri5, which is the map of
        the ODE itself to its tolerance, has none.

    Returns
    -------
    u : Tensor of shape (..., dim)
        Unit-normal base noise.

    Raises
    ------
    ValueError
        If the solver is unknown.
    """
    sde = sde or VE()

    if solver == "dopri5":
        both = lambda state, sigma: (state[0] - model(state[0], sigma),)  # noqa: E731
        return solvers.dopri5(both, (x,), sde.sigma_min, sde.sigma_max, tolerance)[0] / sde.base_scale
    slope = lambda point, sigma: point - model(point, sigma)  # noqa: E731
    rising = sde.grid(steps or 16)[::-1]
    u = guess = solvers.rk4(slope, x, rising) / sde.base_scale
    for _ in range(corrections):
        back = decode(model, u, sde=sde, solver=solver, steps=steps)
        u = u + guess - solvers.rk4(slope, back, rising) / sde.base_scale
    return u


def log_prob(
    model: Callable[..., torch.Tensor], x: torch.Tensor, *, sde: VE | VP | None = None, solver: str = "gauss", steps: int | None = None,
    tolerance: float = 1e-5, trace: str = "exact", generator: torch.Generator | None = None,
) -> torch.Tensor:  # fmt: skip
    """Log-density by the probability-flow ODE.

    Parameters
    ----------
    model : callable
        Denoiser ``model(x, sigma)``, for the exact trace also with ``with_trace(x, sigma)``.
    x : Tensor of shape (n, dim)
        Points in the standardised space.
    sde : VE or VP, optional
        Noise schedule; VE unless given.
    solver : {"gauss", "dopri5"}
        "gauss": fourth-order Runge-Kutta for the path of the point, and Gauss quadrature along it for the trace, which costs ``dim`` times
        as much. "dopri5": the adaptive reference.
    steps, tolerance : int (optional), float
        Gauss nodes at which the trace is taken, by default 24 for VE and 34 for VP, whose noise spans more; tolerance of dopri5.
    trace : {"exact", "hutchinson"}
        Exact trace of the Jacobian, or its **noisy** estimate from one random direction per point: unbiased in ln p, with an
        error that no number of steps removes (2 to 3 nat for a model of 16 parameters); for networks whose exact trace is too costly.
    generator : torch.Generator, optional
        Source of the random directions.

    Returns
    -------
    Tensor of shape (n,)
        ln p(x) [nat per unit of the standardised space]; differentiable.

    Raises
    ------
    ValueError
        If the solver or the trace is unknown, or the noisy trace has no generator.
    """
    sde = sde or VE()
    dim = x.shape[-1]
    denoise = _with_trace(model, x, trace, generator)
    if solver == "dopri5":

        def slope(state, sigma):  # d/d(ln sigma) of the point and of ln |dx_sigma / dx|
            denoised, traced = denoise(state[0], sigma)
            return state[0] - denoised, dim - traced

        end, volume = solvers.dopri5(slope, (x, torch.zeros_like(x[..., 0])), sde.sigma_min, sde.sigma_max, tolerance)
    elif solver == "gauss":
        slope = lambda point, sigma: point - model(point, sigma)  # noqa: E731
        levels, weights = sde.nodes(steps or round(3.5 * math.log(sde.sigma_max / sde.sigma_min)))
        end, level, volume = x, sde.sigma_min, 0.0
        for node, weight in zip(levels, weights, strict=True):
            end, level = solvers.rk4(slope, end, (level, math.sqrt(level * node), node)), node
            volume = volume + weight * (dim - denoise(end, node)[1])
        end = solvers.rk4(slope, end, (level, sde.sigma_max))
    else:
        raise ValueError(f"solver must be gauss or dopri5, not {solver!r}")
    u = end / sde.base_scale
    return -0.5 * (u**2).sum(-1) - dim * (0.5 * math.log(2 * math.pi) + math.log(sde.base_scale)) + volume


def _with_trace(model, x, trace, generator):
    """The denoiser with the exact trace of its Jacobian, or with Hutchinson's estimate of it along one direction per point."""
    if trace == "exact":
        return model.with_trace
    if trace != "hutchinson":
        raise ValueError(f"trace must be exact or hutchinson, not {trace!r}")
    if generator is None:
        raise ValueError("the Hutchinson trace is random: pass a generator")
    signs = torch.randint(0, 2, x.shape, generator=generator, device=generator.device).to(x) * 2 - 1

    def estimate(point, sigma):
        denoised, change = torch.func.jvp(lambda y: model(y, sigma), (point.contiguous(),), (signs,))
        return denoised, (signs * change).sum(-1)

    return estimate


def train(
    net: ScoreNet, x: torch.Tensor, *, generator: torch.Generator, steps: int, batch: int = 512, lr: float = 2e-3, ema: float = 0.999,
    sde: VE | VP | None = None, context: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Fit the denoiser to points by denoising score matching; the averaged weights are left in ``net``.

    Parameters
    ----------
    net : ScoreNet
        Network to train in place.
    x : Tensor of shape (n, dim)
        Points, standardised.
    generator : torch.Generator
        Source of batches and noise.
    steps, batch : int
        Number of Adam steps, and points per step.
    lr, ema : float
        Peak learning rate, warmed up over 2 % of the steps, then cosine to zero; decay of the exponential moving average of the weights.
    sde : VE or VP, optional
        Noise schedule, uniform in its time (for VE, the default, in ln sigma); the same then goes to ``decode`` and ``log_prob``.
    context : Tensor of shape (n, n_context), optional
        What each point is conditioned on.

    Returns
    -------
    history : Tensor of shape (steps,)
        Loss of each step (1 for a network that predicts nothing).

    Raises
    ------
    ValueError
        If a point is not finite.
    """
    sde = sde or VE()
    if not x.isfinite().all():
        raise ValueError("the points to learn from must be finite: drop failed fits first")
    optimiser = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.99), fused=True)
    average = [p.detach().clone() for p in net.parameters()]
    history = torch.zeros(steps, device=x.device)
    draw = {"generator": generator, "device": generator.device}
    for step in tqdm(range(steps), desc="score matching", disable=None):
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / (0.02 * steps + 1)) * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = torch.randint(len(x), (batch,), **draw).to(x.device)
        clean, given = x[rows], None if context is None else context[rows]
        # levels are stratified over the batch: less noise in the loss at no cost
        sigma = sde.sigma((torch.arange(batch).to(x) + torch.rand(batch, **draw).to(x)) / batch)
        noised = clean + sigma[:, None] * torch.randn(clean.shape, **draw).to(x)
        weight = (sigma**2 + 1.0) / sigma**2
        loss = (weight[:, None] * (net(noised, sigma, given) - clean) ** 2).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        decay = min(ema, (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in net.parameters()], 1 - decay)
        history[step] = loss.detach()
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), average, strict=True):
            parameter.copy_(value)
    return history.cpu()
