"""Score-based diffusion model of a density: variance-exploding noise, probability-flow ODE, exact trace.

Everything here lives in a *standardised* space x (mean 0, variance about 1 in every direction); ``population``
adds the shift, scale and probit that lead to physical parameters. Densities returned here are per unit x.
Introduced in notebook 04.

References
----------
Song et al. (2021), arXiv:2011.13456 (probability-flow ODE, VE SDE); Karras et al. (2022), arXiv:2206.00364
(preconditioning, noise grid, Heun); Lu et al. (2022), arXiv:2211.01095 (DPM-Solver++); Alsing et al. (2024)
sect. 3.2 and Thorp et al. (2025) sect. 3.3 (VE from 0.01 to 10, network of 4 x 128 SiLU).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

__all__ = ["VE", "ScoreNet", "decode", "encode", "log_prob", "train"]

_CURVATURE = 7.0  # exponent of the noise grid of Karras et al.: dense at low noise, where the density has its detail


@dataclass(frozen=True)
class VE:
    """Variance-exploding diffusion, x_sigma = x + sigma * noise.

    Attributes
    ----------
    sigma_min, sigma_max : float
        Smallest and largest noise, in units of the standardised space.
    """

    sigma_min: float = 0.01
    sigma_max: float = 10.0

    def sigma(self, t):
        """Noise at time t in [0, 1]: sigma_min (sigma_max / sigma_min)^t (Alsing+24 sect. 3.2)."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    @property
    def base_scale(self):
        """Standard deviation of the base draws.

        The papers use sigma_max; a cloud of unit variance noised by sigma_max has sqrt(sigma_max^2 + 1), which
        is what we use: with sigma_max alone every direction of the model comes out 0.5 % too narrow.
        """
        return math.sqrt(self.sigma_max**2 + 1.0)

    def grid(self, steps, like):
        """Noise levels from sigma_max down to sigma_min, shape (steps + 1,), on the device and dtype of ``like``."""
        fraction = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
        high, low = self.sigma_max ** (1 / _CURVATURE), self.sigma_min ** (1 / _CURVATURE)
        return ((high + fraction * (low - high)) ** _CURVATURE).to(like)


class ScoreNet(nn.Module):
    """Denoiser D(x, sigma) with the preconditioning of Karras et al. (2022); the score is (D - x) / sigma^2.

    Parameters
    ----------
    dim : int
        Dimensions of x.
    width, depth : int
        Units per hidden layer and number of hidden layers (SiLU).
    generator : torch.Generator, optional
        Source of the initial weights.
    """

    def __init__(self, dim=16, width=128, depth=4, *, generator=None):
        super().__init__()
        sizes = [dim + 1 + 2 * self._WAVES, *[width] * depth, dim]
        self.dim = dim
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        with torch.no_grad():
            for layer in self.layers:
                bound = 1.0 / math.sqrt(layer.in_features)
                layer.weight.uniform_(-bound, bound, generator=generator).mul_(1.7)
                layer.bias.zero_()
            self.layers[-1].weight.mul_(0.1)

    _WAVES = 4  # sines and cosines of ln sigma, so that the network can change quickly with noise

    def _prepare(self, x, sigma):
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(x.shape[:-1])[..., None]
        level = sigma.log() / 4
        phases = level * torch.arange(1, self._WAVES + 1, dtype=x.dtype, device=x.device)
        total = sigma**2 + 1.0
        features = torch.cat([x / total.sqrt(), level, phases.sin(), phases.cos()], -1)
        return features, 1.0 / total, sigma / total.sqrt(), 1.0 / total.sqrt()

    def forward(self, x, sigma):
        """Denoised x.

        Parameters
        ----------
        x : Tensor of shape (..., dim)
            Noised point, standardised space.
        sigma : float or Tensor broadcastable to (...)
            Its noise level.

        Returns
        -------
        Tensor of shape (..., dim)
            Mean of the clean point given the noised one.
        """
        hidden, skip, out, _ = self._prepare(x, sigma)
        for layer in self.layers[:-1]:
            hidden = nn.functional.silu(layer(hidden))
        return skip * x + out * self.layers[-1](hidden)

    def with_trace(self, x, sigma):
        """Denoised x and the exact trace of its Jacobian.

        The Jacobian of the network is carried through the layers analytically (dim columns at once), so the
        result is exact and differentiable.

        Parameters
        ----------
        x : Tensor of shape (n, dim)
            Noised points.
        sigma : float or Tensor broadcastable to (n,)
            Noise level.

        Returns
        -------
        denoised : Tensor of shape (n, dim)
        trace : Tensor of shape (n,)
            tr dD/dx.
        """
        hidden, skip, out, into = self._prepare(x, sigma)
        columns = self.layers[0].weight[:, : self.dim].T.expand(len(x), -1, -1)  # (n, dim, width): d(layer)/dx
        for i, layer in enumerate(self.layers[:-1]):
            before = layer(hidden)
            gate = before.sigmoid()
            hidden = before * gate
            columns = columns * (gate * (1 + before * (1 - gate)))[:, None, :]
            columns = columns @ self.layers[i + 1].weight.T
        trace = columns.diagonal(dim1=-2, dim2=-1).sum(-1)
        denoised = skip * x + out * self.layers[-1](hidden)
        return denoised, skip[:, 0] * self.dim + (out * into)[:, 0] * trace


def decode(model, u, *, sde=None, solver="dpm++", steps=None):
    """Base noise to points of the density, along the probability-flow ODE.

    Parameters
    ----------
    model : callable
        Denoiser ``model(x, sigma)``: a ``ScoreNet`` or any exact one.
    u : Tensor of shape (..., dim)
        Unit-normal base noise; scaled by ``sde.base_scale`` here.
    sde : VE, optional
        Noise schedule.
    solver : {"dpm++", "heun"}
        DPM-Solver++(2M), one evaluation a step, or Heun, two.
    steps : int, optional
        Steps; by default 16 (dpm++) or 15 (heun).

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
    if solver == "heun":
        return _heun(model, x, sde.grid(steps or 15, u))
    if solver == "dpm++":
        return _dpm(model, x, sde.grid(steps or 16, u))
    raise ValueError(f"solver must be 'dpm++' or 'heun', not {solver!r}")


def encode(model, x, *, sde=None, steps=None, corrections=4):
    """Points of the density to base noise: the inverse of ``decode`` with its DPM-Solver++ default.

    A latent belongs to the one discretised map that made it. Heun run backwards gives a first guess; each correction then
    adds the difference that a round trip leaves, so that ``decode(model, encode(model, x))`` returns x.

    Parameters
    ----------
    model : callable
        Denoiser.
    x : Tensor of shape (..., dim)
        Points in the standardised space.
    sde : VE, optional
        Noise schedule.
    steps : int, optional
        Steps of the ``decode`` to be inverted (default 16).
    corrections : int
        Rounds of correction.

    Returns
    -------
    u : Tensor of shape (..., dim)
        Unit-normal base noise.
    """
    sde = sde or VE()
    rising = sde.grid(steps or 16, x).flip(0)
    u = _heun(model, x, rising) / sde.base_scale
    guess = u
    for _ in range(corrections):
        u = u + guess - _heun(model, decode(model, u, sde=sde, steps=steps), rising) / sde.base_scale
    return u


def log_prob(model, x, *, sde=None, steps=24):
    """Log-density by the probability-flow ODE with the exact trace.

    Parameters
    ----------
    model : object with ``with_trace(x, sigma)``
        Denoiser that also returns the trace of its Jacobian.
    x : Tensor of shape (n, dim)
        Points in the standardised space.
    sde : VE, optional
        Noise schedule.
    steps : int
        Runge-Kutta steps of fourth order, four evaluations each.

    Returns
    -------
    Tensor of shape (n,)
        ln p(x) [nat per unit of the standardised space]; differentiable.
    """
    sde = sde or VE()
    dim = x.shape[-1]
    grid = sde.grid(steps, x).flip(0)
    volume = torch.zeros_like(x[..., 0])

    def slope(point, level):  # d/d(ln sigma) of the point and of ln |dx_sigma / dx|
        denoised, trace = model.with_trace(point, level)
        return point - denoised, dim - trace

    for low, high in zip(grid, grid[1:], strict=False):
        step, middle = (high / low).log(), (low * high).sqrt()
        k1, v1 = slope(x, low)
        k2, v2 = slope(x + 0.5 * step * k1, middle)
        k3, v3 = slope(x + 0.5 * step * k2, middle)
        k4, v4 = slope(x + step * k3, high)
        x = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        volume = volume + step / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
    u = x / sde.base_scale
    return -0.5 * (u**2).sum(-1) - dim * (0.5 * math.log(2 * math.pi) + math.log(sde.base_scale)) + volume


def train(net, x, *, generator, steps, batch=512, lr=2e-3, ema=0.999, sde=None):
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
        Adam steps and points a step.
    lr : float
        Peak learning rate; warmed up over 2 % of the steps, then cosine to zero.
    ema : float
        Longest memory of the exponential moving average of the weights.
    sde : VE, optional
        Noise schedule; noise levels are uniform in ln sigma.

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
        clean = x[torch.randint(len(x), (batch,), **draw).to(x.device)]
        # levels are stratified over the batch: less noise in the loss at no cost
        sigma = sde.sigma((torch.arange(batch).to(x) + torch.rand(batch, **draw).to(x)) / batch)
        noised = clean + sigma[:, None] * torch.randn(clean.shape, **draw).to(x)
        weight = (sigma**2 + 1.0) / sigma**2
        loss = (weight[:, None] * (net(noised, sigma) - clean) ** 2).mean()
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


def _heun(model, x, grid):
    """Heun in sigma along ``grid`` (rising or falling), two evaluations a step."""
    for start, stop in zip(grid, grid[1:], strict=False):
        slope = (x - model(x, start)) / start
        guess = x + (stop - start) * slope
        x = x + 0.5 * (stop - start) * (slope + (guess - model(guess, stop)) / stop)
    return x


def _dpm(model, x, grid):
    """DPM-Solver++(2M) down ``grid``: exact in the linear part, two-step in the denoiser."""
    previous, last_step = None, None
    for start, stop in zip(grid, grid[1:], strict=False):
        denoised, step = model(x, start), (start / stop).log()
        target = denoised
        if previous is not None:
            target = denoised + 0.5 * step / last_step * (denoised - previous)
        x = stop / start * x + (1 - stop / start) * target
        previous, last_step = denoised, step
    return x
