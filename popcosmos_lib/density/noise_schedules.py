"""Noise schedules of a diffusion model: noise against time, and the noise levels at which solvers of the ODE stop.

Variance-exploding and variance-preserving noise, both written as x_sigma = x + sigma * noise. Introduced in notebook 04.

References
----------
Song et al. (2021), arXiv:2011.13456 (VE and VP); Karras et al. (2022), arXiv:2206.00364 (VP as VE in other units, a grid of levels);
Alsing et al. (2024), arXiv:2402.00935 sect. 3.2 (VE from 0.01 to 10).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["VE", "VP"]


class _Noise:
    """What the two kinds of noise share: x_sigma = x + sigma * noise, from ``sigma_max`` down to ``sigma_min``."""

    @property
    def base_scale(self):
        """Standard deviation of the base draws.

        The papers use sigma_max for VE; a cloud of unit variance noised by sigma_max has sqrt(sigma_max^2 + 1), which
        is what we use: with sigma_max alone every direction of the model comes out 0.5 % too narrow.
        """
        return math.sqrt(self.sigma_max**2 + 1.0)

    def grid(self, steps, curvature=None):
        """Noise levels of the solvers.

        Parameters
        ----------
        steps : int
        curvature : float, optional
            Exponent of the grid of Karras et al. (2022), which takes shorter steps at high noise; by default even in ln sigma.

        Returns
        -------
        list of float
            ``steps + 1`` levels, from sigma_max down to sigma_min.
        """
        fraction = [i / steps for i in range(steps + 1)]
        if curvature is None:
            return [self.sigma_max * (self.sigma_min / self.sigma_max) ** f for f in fraction]
        high, low = self.sigma_max ** (1 / curvature), self.sigma_min ** (1 / curvature)
        return [(high + f * (low - high)) ** curvature for f in fraction]

    def nodes(self, n, curvature=7.0):
        """Nodes and weights of Gauss for an integral over ln sigma, denser at high noise like the ``grid`` of the same curvature.

        Parameters
        ----------
        n : int
        curvature : float

        Returns
        -------
        levels, weights : list of float
            ``n`` each; the levels rise.
        """
        points, weights = np.polynomial.legendre.leggauss(n)
        low, high = self.sigma_min ** (1 / curvature), self.sigma_max ** (1 / curvature)
        root = low + (high - low) * (points + 1) / 2
        return (root**curvature).tolist(), (weights / 2 * (high - low) * curvature / root).tolist()


@dataclass(frozen=True)
class VE(_Noise):
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


@dataclass(frozen=True)
class VP(_Noise):
    """Variance-preserving diffusion, rescaled to x_sigma = x + sigma * noise so that the functions for VE apply.

    The usual variable is m x + s noise with m^2 + s^2 = 1; divided by m it is x + sigma noise with sigma = s / m, with the same
    probability-flow ODE. It differs from VE in the time spent at each noise level and in the largest noise.

    Attributes
    ----------
    beta_min, beta_max : float
        Rate of the noise at times 0 and 1, linear between.
    first : float
        Earliest time; the density is smoothed by the noise there.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    first: float = 1e-3

    def integral(self, time):
        """Integral of beta from 0 to ``time``: -2 ln m."""
        return self.beta_min * time + 0.5 * (self.beta_max - self.beta_min) * time**2

    def time(self, sigma):
        """Time at which the noise over m is ``sigma``, the inverse of the integral; sigma a Tensor."""
        slope = self.beta_max - self.beta_min
        return ((self.beta_min**2 + 2 * slope * torch.log1p(sigma**2)).sqrt() - self.beta_min) / slope

    def sigma(self, t):
        """Noise over m at t in [0, 1], the fraction of the way from ``first`` to time 1; t a Tensor."""
        return torch.expm1(self.integral(self.first + (1 - self.first) * t)).sqrt()

    @property
    def sigma_min(self):
        """Noise over m at the earliest time, 0.0105."""
        return math.sqrt(math.expm1(self.integral(self.first)))

    @property
    def sigma_max(self):
        """Noise over m at time 1, 152."""
        return math.sqrt(math.expm1(self.integral(1.0)))
