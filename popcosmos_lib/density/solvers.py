"""Solvers of the probability-flow ODE dx/dσ = (x - D(x, σ)) / σ of a diffusion model with denoiser D.

``heun``, ``dpm`` and ``adams`` follow a fixed grid of noise levels, rising or falling; ``dopri5`` chooses its own and is the reference.
``rk4`` leads from one node of a quadrature to the next. ``diffusion`` calls them; benchmarks/solvers.py measures their error against their
cost. Introduced in notebook 04.

References
----------
Karras et al. (2022), arXiv:2206.00364 (Heun); Lu et al. (2022), arXiv:2211.01095 (DPM-Solver++); Zhao et al. (2023), arXiv:2302.04867,
and Xue et al. (2023), arXiv:2309.05019 (a corrector that costs no evaluation; Adams in the denoiser); Chen (2018), torchdiffeq (dopri5).
"""

import math
from functools import lru_cache

import numpy as np
import torch

__all__ = ["adams", "dopri5", "dpm", "heun", "rk4"]


def heun(model, x, grid):
    """Heun in sigma, of second order, two evaluations a step.

    Parameters
    ----------
    model : callable
        Denoiser ``model(x, sigma)``.
    x : Tensor of shape (..., dim)
        Point at the first noise level.
    grid : sequence of float
        Noise levels, rising or falling.

    Returns
    -------
    Tensor of shape (..., dim)
        Point at the last noise level; differentiable.
    """
    for start, stop in zip(grid, grid[1:], strict=False):
        slope = (x - model(x, start)) / start
        guess = x + (stop - start) * slope
        x = x + 0.5 * (stop - start) * (slope + (guess - model(guess, stop)) / stop)
    return x


def dpm(model, x, grid):
    """DPM-Solver++(2M): exact in the linear part, two-step in the denoiser, one evaluation a step. Arguments as for ``heun``."""
    previous, last_step = None, None
    for start, stop in zip(grid, grid[1:], strict=False):
        denoised, step = model(x, start), math.log(start / stop)
        target = denoised
        if previous is not None:
            target = denoised + 0.5 * step / last_step * (denoised - previous)
        x = stop / start * x + (1 - stop / start) * target
        previous, last_step = denoised, step
    return x


def adams(model, x, grid):
    """Adams predictor and corrector in the denoiser, exact in the linear part, one evaluation a step. Arguments as for ``heun``.

    The denoiser is taken as a polynomial in ln sigma through its last three values; the value found at the predicted point
    then corrects the step that led there, at no cost.
    """
    weights = _adams_weights(tuple(grid))
    known = [model(x, grid[0])]  # denoised points, latest first
    for i, (start, stop) in enumerate(zip(grid, grid[1:], strict=False)):
        predictor, corrector = weights[i]
        here = stop / start * x
        x = here + sum(w * d for w, d in zip(predictor, known, strict=False))
        if i == len(grid) - 2:
            return x
        known = [model(x, stop), *known[:_ORDER]]
        x = here + sum(w * d for w, d in zip(corrector, known, strict=True))
    return x


_ORDER = 3  # values of the denoiser that the predictor uses; the corrector uses one more


@lru_cache(maxsize=64)
def _adams_weights(grid):
    """Weights of predictor and corrector for each step: integrals of e^(t' - t) times Lagrange polynomials in t = -ln sigma."""
    time = -np.log(grid)
    nodes, gauss = np.polynomial.legendre.leggauss(12)

    def weights(known, start, stop):
        t = start + (stop - start) * (nodes + 1) / 2
        kernel = gauss * np.exp(t - stop) * (stop - start) / 2
        return [float((kernel * np.prod([(t - b) / (a - b) for b in known if b != a], axis=0)).sum()) for a in known]

    steps = []
    for i in range(len(time) - 1):
        known = list(time[max(0, i - _ORDER + 1) : i + 1][::-1])
        steps.append((weights(known, time[i], time[i + 1]), weights([time[i + 1], *known], time[i], time[i + 1])))
    return steps


def rk4(slope, x, grid):
    """Runge-Kutta of fourth order in ln sigma, four evaluations a step.

    Parameters
    ----------
    slope : callable
        Derivative of x with respect to ln sigma, ``slope(x, sigma)``.
    x : Tensor
        At the first noise level.
    grid : sequence of float
        Noise levels, rising or falling.

    Returns
    -------
    Tensor
        At the last noise level; differentiable.
    """
    for start, stop in zip(grid, grid[1:], strict=False):
        step, middle = math.log(stop / start), math.sqrt(start * stop)
        k1 = slope(x, start)
        k2 = slope(x + step / 2 * k1, middle)
        k3 = slope(x + step / 2 * k2, middle)
        x = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + step * k3, stop))
    return x


def dopri5(slope, state, start, stop, tolerance):
    """Adaptive Runge-Kutta of fifth order (Dormand and Prince), through torchdiffeq, in ln sigma.

    Parameters
    ----------
    slope : callable
        Derivatives of the state with respect to ln sigma, a tuple: ``slope(state, sigma)``.
    state : tuple of Tensor
        At noise ``start``.
    start, stop : float
        Noise levels.
    tolerance : float
        Relative and absolute error allowed in a step, root mean square over the whole state.

    Returns
    -------
    tuple of Tensor
        At noise ``stop``; differentiable.
    """
    from torchdiffeq import odeint  # imports scipy.integrate, which no other solver needs

    span = torch.tensor([math.log(start), math.log(stop)], dtype=torch.float64, device=state[0].device)
    inside = {"step_t": span[1:], "first_step": 0.1}  # no evaluation at a noise that the network has not learned
    path = odeint(lambda level, now: slope(now, level.exp()), state, span, rtol=tolerance, atol=tolerance, method="dopri5", options=inside)
    return tuple(part[-1] for part in path)
