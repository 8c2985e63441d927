"""The denoising network of the diffusion model, with the exact trace of its Jacobian. Introduced in notebook 04.

References
----------
Karras et al. (2022), arXiv:2206.00364 (preconditioning); Alsing et al. (2024) sect. 3.2 and Thorp et al. (2025) sect. 3.3 (4 x 128 SiLU).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["ScoreNet"]


class ScoreNet(nn.Module):
    """Denoiser D(x, sigma) with the preconditioning of Karras et al. (2022); the score is (D - x) / sigma^2.

    Parameters
    ----------
    dim : int
        Dimensions of x.
    width, depth : int
        Units per hidden layer and number of hidden layers (SiLU).
    context : int
        Numbers per point that the density is conditioned on, standardised; see ``given``.
    generator : torch.Generator, optional
        Source of the initial weights.
    """

    def __init__(
        self, dim: int = 16, width: int = 128, depth: int = 4, *, context: int = 0, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        sizes = [dim + 1 + 2 * self._WAVES + context, *[width] * depth, dim]
        self.dim = dim
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        with torch.no_grad():
            for layer in self.layers:
                bound = 1.0 / math.sqrt(layer.in_features)
                layer.weight.uniform_(-bound, bound, generator=generator).mul_(1.7)
                layer.bias.zero_()
            self.layers[-1].weight.mul_(0.1)

    _WAVES = 4  # sines and cosines of ln sigma, so that the network can change quickly with noise

    def _prepare(self, x, sigma, context):
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(x.shape[:-1])[..., None]
        level = sigma.log() / 4
        phases = level * torch.arange(1, self._WAVES + 1, dtype=x.dtype, device=x.device)
        total = sigma**2 + 1.0
        features = [x / total.sqrt(), level, phases.sin(), phases.cos(), *([] if context is None else [context])]
        return torch.cat(features, -1), 1.0 / total, sigma / total.sqrt(), 1.0 / total.sqrt()

    def given(self, context: torch.Tensor) -> _Given:
        """The denoiser of the density conditioned on ``context`` (n, n_context), as ``decode``, ``encode`` and ``log_prob`` take it."""
        return _Given(self, context)

    def forward(self, x: torch.Tensor, sigma: float | torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Denoised x.

        Parameters
        ----------
        x : Tensor of shape (..., dim)
            Noised point, standardised space.
        sigma : float or Tensor broadcastable to (...)
            Its noise level.
        context : Tensor of shape (..., n_context), optional
            What the density is conditioned on.

        Returns
        -------
        Tensor of shape (..., dim)
            Mean of the clean point given the noised one.
        """
        hidden, skip, out, _ = self._prepare(x, sigma, context)
        for layer in self.layers[:-1]:
            hidden = nn.functional.silu(layer(hidden))
        return skip * x + out * self.layers[-1](hidden)

    def with_trace(
        self, x: torch.Tensor, sigma: float | torch.Tensor, context: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Denoised x and the exact trace of its Jacobian.

        The Jacobian of the network is carried through the layers analytically (dim columns at once), so the
        result is exact and differentiable.

        Parameters
        ----------
        x : Tensor of shape (n, dim)
            Noised points.
        sigma : float or Tensor broadcastable to (n,)
            Noise level.
        context : Tensor of shape (n, n_context), optional

        Returns
        -------
        denoised : Tensor of shape (n, dim)
        trace : Tensor of shape (n,)
            tr dD/dx.
        """
        hidden, skip, out, into = self._prepare(x, sigma, context)
        columns = self.layers[0].weight[:, : self.dim].T.expand(len(x), -1, -1)  # (n, dim, width): d(layer)/dx
        for i, layer in enumerate(self.layers[:-1]):
            before = layer(hidden)
            gate = before.sigmoid()
            hidden = before * gate
            columns = columns * (gate * (1 + before * (1 - gate)))[:, None, :]
            if i < len(self.layers) - 2:
                columns = columns @ self.layers[i + 1].weight.T
        trace = (columns * self.layers[-1].weight).sum((-2, -1))
        denoised = skip * x + out * self.layers[-1](hidden)
        return denoised, skip[:, 0] * self.dim + (out * into)[:, 0] * trace


@dataclass(frozen=True)
class _Given:
    net: ScoreNet
    context: torch.Tensor

    def __call__(self, x, sigma):
        return self.net(x, sigma, self.context)

    def with_trace(self, x, sigma):
        return self.net.with_trace(x, sigma, self.context)
