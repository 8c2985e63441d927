"""Score networks of the released diffusion models, evaluated as denoisers for ``density.diffusion``.

Variance-preserving noise is written in the units of the exploding kind: where it maps x to m x + s noise, x / m has had noise s / m added.
``release_models`` has the two models.

References
----------
Thorp et al. (2025), arXiv:2506.12122 sect. 3.3 (population) and 3.4 (flux errors); Song et al. (2021), arXiv:2011.13456.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from popcosmos_lib.density import diffusion
from popcosmos_lib.emulation import release_pickles

__all__ = ["ROWS", "STEPS", "Score", "of_class", "parsed"]

_ACTIVATIONS = {  # value, and slope
    "Tanh": (lambda x: 2 * torch.sigmoid(2 * x) - 1, lambda x: 1 - x.tanh() ** 2),  # twice as fast as torch.tanh on a CPU
    "SiLU": (nn.functional.silu, lambda x: x.sigmoid() * (1 + x * (1 - x.sigmoid()))),
}
ROWS = 512  # galaxies evaluated at once: larger ones fall out of cache
STEPS = 32  # of the solvers


@dataclass(frozen=True)
class _ReleasedVE(diffusion.VE):
    """Variance-exploding noise with base draws scaled as the released code has it: by sigma_max alone."""

    @property
    def base_scale(self):
        return self.sigma_max


class Score(nn.Module):
    """A released score network, as a denoiser of x / m with noise sigma = s / m.

    Parameters
    ----------
    state : dict of str to Tensor
        ``W``, the frequencies of the time features, and ``NN.i.weight`` and ``NN.i.bias`` of layer i; the network's inputs are sines and
        cosines of time, then x, then what it is conditioned on.
    about : dict
        ``sde`` ("VE" or "VP"), its constants (``sigma_min`` and ``sigma_max``, or ``beta_min`` and ``beta_max``) and its earliest time
        ``epsilon``; ``activation`` ("Tanh" or "SiLU"); ``no_sigma``, whether the network is the score rather than s times it.

    Attributes
    ----------
    sde : diffusion.VE or diffusion.VP
        Noise schedule, from the noise at ``epsilon`` to that at time 1.
    contraction : float
        m at ``epsilon``: what is denoised there is x / m. One for VE.
    """

    def __init__(self, state, about):
        super().__init__()
        self.about = about
        self.depth = sum(name.endswith(".weight") for name in state)
        for name, value in state.items():
            self.register_buffer(name.replace(".", ""), value)
        self.dim = len(state[f"NN.{self.depth - 1}.bias"])
        if about["sde"] == "VE":
            low, high = about["sigma_min"], about["sigma_max"]
            self.sde, self.contraction = _ReleasedVE(low * (high / low) ** about["epsilon"], high), 1.0
        else:
            self.sde = diffusion.VP(about["beta_min"], about["beta_max"], about["epsilon"])
            self.contraction = math.exp(-0.5 * self.sde.integral(about["epsilon"]))

    def _time_and_contraction(self, sigma):
        if self.about["sde"] == "VE":
            low, high = self.about["sigma_min"], self.about["sigma_max"]
            return (sigma / low).log() / math.log(high / low), torch.ones_like(sigma)
        return self.sde.time(sigma), torch.rsqrt(1 + sigma**2)

    def _prepare(self, x, sigma, condition):
        """Inputs of the network, m, and what turns its output into (D - x / m): sigma^2 m score."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))[:, None]
        time, contraction = self._time_and_contraction(sigma)
        phase = 2 * math.pi * time * self.W
        inputs = [phase.sin(), phase.cos(), contraction * x]
        factor = sigma**2 * contraction if self.about["no_sigma"] else sigma
        return torch.cat(inputs if condition is None else [*inputs, condition], -1), contraction, factor

    def _layer(self, i):
        return getattr(self, f"NN{i}weight"), getattr(self, f"NN{i}bias")

    def forward(self, x, sigma, condition=None):
        """Denoised point.

        Parameters
        ----------
        x : Tensor of shape (n, dim)
            Noised point over m.
        sigma : float or Tensor of shape () or (n,)
            Its noise.
        condition : Tensor of shape (n, n_condition), optional
            What the density is conditioned on, standardised.

        Returns
        -------
        Tensor of shape (n, dim)
            Mean of the clean point given the noised one.
        """
        hidden, _, factor = self._prepare(x, sigma, condition)
        activation, _ = _ACTIVATIONS[self.about["activation"]]
        for i in range(self.depth - 1):
            hidden = activation(nn.functional.linear(hidden, *self._layer(i)))
        return x + factor * nn.functional.linear(hidden, *self._layer(self.depth - 1))

    def with_trace(self, x, sigma):
        """Denoised point and the exact trace of its Jacobian, (n, dim) and (n,); arguments as ``forward_model`` has them."""
        hidden, contraction, factor = self._prepare(x, sigma, None)
        activation, slope = _ACTIVATIONS[self.about["activation"]]
        start = 2 * len(self.W)
        columns = self._layer(0)[0][:, start : start + self.dim].T.expand(len(x), -1, -1)  # (n, dim, width): d(layer)/dx
        for i in range(self.depth - 1):
            before = nn.functional.linear(hidden, *self._layer(i))
            hidden = activation(before)
            columns = (columns * slope(before)[:, None, :]) @ self._layer(i + 1)[0].T
        trace = columns.diagonal(dim1=-2, dim2=-1).sum(-1)
        denoised = x + factor * nn.functional.linear(hidden, *self._layer(self.depth - 1))
        return denoised, self.dim + (factor * contraction)[:, 0] * trace


def of_class(whole, name, path):
    if type(whole).__name__ != name:
        raise ValueError(f"{path} holds a {type(whole).__name__}, not a {name}: is it the right file?")
    return whole


def parsed(wrapper):
    """Tensors and description of a flowfusion model."""
    network, sde = wrapper["model"], wrapper["sde"]
    kind = type(sde).__name__.removesuffix("SDE")
    constants = ("sigma_min", "sigma_max") if kind == "VE" else ("beta_min", "beta_max")
    about = {name: float(sde[name]) for name in (*constants, "epsilon", "T")}
    if about.pop("T") != 1:
        raise ValueError("the diffusion of this file does not end at time 1, as that of every published one does")
    about |= {"sde": kind, "activation": type(network["activation"]).__name__, "no_sigma": bool(wrapper["score_model"]["no_sigma"])}
    state = {name: value for name, value in release_pickles.tensors(network).items() if name == "W" or name.startswith("NN.")}
    scalings = ("shift", "scale", "conditional_shift", "conditional_scale")
    return state | {name: value for name, value in release_pickles.tensors(wrapper).items() if name in scalings}, about
