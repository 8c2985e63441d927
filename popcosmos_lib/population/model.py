"""The population model: a density of the 16 parameters, and the photometry that a survey would take of it.

What is modelled is p(theta | r < 25), the galaxies that *pass the selection*, not p(theta) of the universe: the two differ
near the limit and nothing is known beyond it. The density lives on the latent phi of ``parameters`` (N and 15 probits),
standardised; every density returned here is per unit theta, all Jacobians included. Introduced in notebook 04.

References
----------
Alsing et al. (2024), arXiv:2402.00935 sect. 3.2 and 4; Thorp et al. (2025), arXiv:2506.12122 sect. 3.3, 3.5 and 3.7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from popcosmos_lib.artefacts import store
from popcosmos_lib.density import diffusion
from popcosmos_lib.galaxies import parameters

__all__ = ["Ensemble", "Population", "inside", "load", "load_ensemble", "log_ratio"]

_ROWS = 8192  # rows evaluated at once on a CPU: larger ones fall out of cache


def inside(theta: torch.Tensor) -> torch.Tensor:
    """Which galaxies lie within ``parameters.BOUNDS``: theta of shape (..., 16) to bool of shape (...)."""
    lower, upper = parameters.BOUNDS.to(theta).T
    return ((theta >= lower) & (theta <= upper)).all(-1)


def log_ratio(law: object, theta: torch.Tensor, log_q: Callable[[torch.Tensor], torch.Tensor], steps: int = 24) -> torch.Tensor:
    """ln of the density of a population over another that stood in for it.

    Parameters
    ----------
    law : Population
        Or anything with its ``log_prob``.
    theta : Tensor of shape (..., 16)
        Galaxies.
    log_q : callable
        ln density of the other [nat per unit phi] at phi (..., 16).
    steps : int
        As for ``Population.log_prob``.

    Returns
    -------
    Tensor of shape (...)
        [nat].
    """
    phi = parameters.to_latent(theta)
    return law.log_prob(theta, steps=steps) + parameters.log_jacobian(phi) - log_q(phi)


class Population(nn.Module):
    """Diffusion model of p(theta | r < 25).

    Parameters
    ----------
    net : diffusion.ScoreNet
        Denoiser on the standardised latent x = (phi - shift) / scale.
    shift, scale : Tensor of shape (16,)
        Standardisation of phi.
    """

    def __init__(self, net: diffusion.ScoreNet, shift: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("shift", torch.as_tensor(shift))
        self.register_buffer("scale", torch.as_tensor(scale))

    @classmethod
    def fit(
        cls, theta: torch.Tensor, *, generator: torch.Generator, steps: int, batch: int = 768, lr: float = 4e-3, width: int = 128
    ) -> tuple[Population, torch.Tensor]:
        """Learn the density of points by denoising score matching.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            Galaxies.
        generator : torch.Generator
            Initial weights, batches and noise.
        steps, batch, lr : int, int, float
            As for ``diffusion.train``.
        width : int
            Units per hidden layer.

        Returns
        -------
        population : Population
        history : Tensor of shape (steps,)
            Loss of each step.
        """
        phi = parameters.to_latent(theta)
        shift, scale = phi.mean(0), phi.std(0)
        net = diffusion.ScoreNet(width=width, generator=generator).to(phi)
        history = diffusion.train(net, (phi - shift) / scale, generator=generator, steps=steps, batch=batch, lr=lr)
        return cls(net, shift, scale), history

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> Population:
        """The model that a state dict (name -> Tensor) describes; its size is read from the tensors."""
        depth = sum(name.endswith(".weight") for name in state) - 1
        net = diffusion.ScoreNet(width=len(state["net.layers.0.bias"]), depth=depth)
        population = cls(net, torch.zeros(16), torch.ones(16))
        population.load_state_dict(dict(state))
        return population.eval().requires_grad_(False)

    def from_base(self, u: torch.Tensor) -> torch.Tensor:
        """Base noise to galaxies along the probability-flow ODE (Adams, 16 evaluations).

        Parameters
        ----------
        u : Tensor of shape (n, 16)
            Unit-normal draws.

        Returns
        -------
        theta : Tensor of shape (n, 16)
            Inside the bounds, except that log10 M follows from N and z and may stray outside; differentiable.
        """
        return parameters.to_theta(diffusion.decode(self.net, u) * self.scale + self.shift)

    def to_base(self, theta: torch.Tensor) -> torch.Tensor:
        """Galaxies to base noise: the inverse of ``from_base``.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            SPS parameters.

        Returns
        -------
        u : Tensor of shape (n, 16)
            Base noise; ``from_base(u)`` returns theta. It belongs to this model only: keep theta, never u.
        """
        return diffusion.encode(self.net, (parameters.to_latent(theta) - self.shift) / self.scale)

    def log_prob(self, theta: torch.Tensor, steps: int = 24) -> torch.Tensor:
        """Density of galaxies.

        Parameters
        ----------
        theta : Tensor of shape (..., 16)
            SPS parameters.
        steps : int
            Nodes of the quadrature, see ``diffusion.log_prob``.

        Returns
        -------
        Tensor of shape (...)
            ln p(theta | r < 25) [nat per unit theta]: standardisation, probit and mass Jacobians included; -inf outside the
            bounds. Differentiable in theta. The part of the model beyond the mass bounds (below 1e-3) is not renormalised.
        """
        flat = theta.reshape(-1, theta.shape[-1])
        parts = [self._log_prob(rows, steps) for rows in flat.split(_ROWS)]
        return torch.where(inside(flat), torch.cat(parts), -torch.inf).reshape(theta.shape[:-1])

    def _log_prob(self, theta, steps):
        phi = parameters.to_latent(theta)
        log_p = diffusion.log_prob(self.net, (phi - self.shift) / self.scale, steps=steps)
        return log_p - self.scale.log().sum() - parameters.log_jacobian(phi)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Draw galaxies.

        Parameters
        ----------
        n : int
            Number of galaxies.
        generator : torch.Generator
            Source of the base draws.

        Returns
        -------
        theta : Tensor of shape (n, 16)
            Inside ``parameters.BOUNDS``: the few draws whose mass falls outside 7 to 13 dex are replaced by fresh ones.
        """
        kept, missing = [], n
        while missing > 0:
            u = torch.randn(min(max(missing, 64), _ROWS), 16, generator=generator, device=generator.device, dtype=self.shift.dtype)
            theta = self.from_base(u.to(self.shift.device))
            kept.append(theta[inside(theta)][:missing])
            missing -= len(kept[-1])
        return torch.cat(kept) if kept else torch.empty(0, 16)


class Ensemble(nn.Module):
    """Populations learned from resampled data: their mixture is the population, their spread its uncertainty.

    Parameters
    ----------
    members : sequence of Population

    Attributes
    ----------
    members : ModuleList of Population
    """

    def __init__(self, members: Sequence[Population]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> Ensemble:
        """The ensemble that a state dict (name -> Tensor) describes."""
        parts = {}
        for name, value in state.items():
            _, number, rest = name.split(".", 2)  # "members.0.net.layers.0.weight"
            parts.setdefault(int(number), {})[rest] = value
        return cls([Population.from_state(parts[i]) for i in sorted(parts)]).eval()

    def log_prob(self, theta: torch.Tensor, steps: int = 24) -> torch.Tensor:
        """ln of the mean density of the members, shape (...); arguments and unit as for ``Population.log_prob``."""
        each = torch.stack([member.log_prob(theta, steps) for member in self.members])
        return each.logsumexp(0) - math.log(len(self.members))

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Draw ``n`` galaxies, (n, 16), as many from each member as from another, in random order."""
        share = [n // len(self.members) + (i < n % len(self.members)) for i in range(len(self.members))]
        theta = torch.cat([member.sample(k, generator) for member, k in zip(self.members, share, strict=True)])
        return theta[torch.randperm(n, generator=generator, device=generator.device).to(theta.device)]


def load(profile: str = "published") -> Population:
    """The calibrated population.

    Parameters
    ----------
    profile : str
        ``"published"``, calibrated at full size and shipped with the package, or the profile in which notebook 04 calibrated another;
        ``"fast"`` is that of ``make figures``.

    Returns
    -------
    Population
        In evaluation mode, on the CPU.

    Raises
    ------
    store.Missing
        If notebook 04 has not been run; the message says how.
    """
    return Population.from_state(store.load("population", profile).data)


def load_ensemble(profile: str = "published") -> Ensemble:
    """The calibrated population with its uncertainty: an `Ensemble` of the artefact ``population_ensemble``; arguments as for ``load``."""
    return Ensemble.from_state(store.load("population_ensemble", profile).data)
