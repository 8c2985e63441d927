"""Smooth stand-ins for the emulator, the population and the survey, and galaxies observed through them."""

import math

import torch

from popcosmos_lib.galaxies import parameters, priors
from popcosmos_lib.survey import likelihood
from popcosmos_lib.synthesis import filters

__all__ = ["Colours", "Normal", "Sky", "Toy", "observed"]


class Toy:
    """Magnitudes that respond to every parameter, and exactly to the mass."""

    error = None

    def __init__(self, bands=26):
        g = torch.Generator().manual_seed(11)
        self.slope = 0.8 * torch.randn(16, bands, generator=g)
        self.bend = 0.1 * torch.randn(16, bands, generator=g)

    def magnitudes(self, theta):
        lower, upper = parameters.BOUNDS.to(theta).T
        x = (theta - lower) / (upper - lower)
        x = torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], -1)
        normalisation = 46 + 2 * torch.log1p(theta[:, -1:]) - 2.5 * theta[:, :1]
        return normalisation + x @ self.slope.to(x) + x**2 @ self.bend.to(x)


class Colours:
    """A differentiable stand-in for an emulator: brightness from N, redder with redshift and dust, in 26 bands."""

    def magnitudes(self, theta):
        slope = torch.linspace(1, -1, len(filters.COSMOS26)).to(theta)
        z, dust = parameters.column(theta, "z"), parameters.column(theta, "dust2")
        brightness = parameters.to_latent(theta)[:, 0]
        return (brightness + 5)[:, None] + (0.4 * z + 0.3 * dust)[:, None] * slope + 0.2 * torch.sin(3 * z[:, None] * slope)


class Normal:
    """A population whose density is a normal in phi: what the diffusion model is to the library, exactly known."""

    def __init__(self):
        self.shift, self.scale = torch.zeros(16), torch.full((16,), 0.5)
        self.shift[0], self.scale[0] = 20.0, 1.5

    def from_base(self, u):
        return parameters.to_theta(self.shift + self.scale * u)

    def sample(self, n, generator):
        return self.from_base(torch.randn(n, 16, generator=generator))

    def log_prob(self, theta, steps=0):
        phi = parameters.to_latent(theta)
        log_p = -0.5 * ((phi - self.shift) / self.scale) ** 2 - self.scale.log() - 0.5 * math.log(2 * math.pi)
        return log_p.sum(-1) - parameters.log_jacobian(phi)


class Sky:
    """Flux errors of five per cent, and of no less than a hundredth of a microjansky."""

    def sigma(self, flux, generator):
        return 0.05 * flux + 0.01


def observed(n, error=0.02, seed=3):
    """theta, flux and error [µJy] of galaxies of the Prospector-like library, with Gaussian noise."""
    g = torch.Generator().manual_seed(seed)
    theta = priors.Prospector().library(n, g)
    flux = likelihood.model_flux(Toy().magnitudes(theta))
    return theta, flux * (1 + error * torch.randn(flux.shape, generator=g)), error * flux
