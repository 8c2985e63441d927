"""Priors on the 16 parameters that have a closed form: the Prospector-like comparison prior, and a broad one.

Densities are with respect to the latent vector phi of ``parameters`` (slot 0 is N, the others probits), all
Jacobians included, so they can be added to a log-likelihood and sampled in phi. Introduced in notebook 07; the
Prospector-like prior also starts the calibration of notebook 04.

References
----------
Thorp et al. (2025), arXiv:2506.12122, sect. 3.3 and 3.6; Leja et al. (2019, 2020); Gallazzi et al. (2005);
Wang et al. (2023) for holding the mass function at its edges outside 0.2 < z < 3.
"""

import math
from functools import cache

import torch

from popcosmos_lib.galaxies import cosmology, parameters, universe

__all__ = ["Broad", "Mixture", "Prospector", "log_mass_function"]

_LAST = 3.0  # redshift up to which Leja+20 measured the mass function
_CELLS = (1200, 480)  # cells in redshift and mass of the sampling table
_WIDEN, _SPANNING = 2.0, 0.01  # covariance (of all draws = 1) and least weight of the spanning component of ``Mixture``
_LEAST_VARIANCE = 1e-3  # of its other components, in units of the draws' variance
_WALL = 0.05  # dex over which the density falls outside the mass bounds: keeps gradients pointing back inside

_RATIOS = slice(parameters.INDEX["log10SFR_ratio1"], parameters.INDEX["log10SFR_ratio6"] + 1)
_SCALE = 0.3  # scale of the Student-t (nu = 2) on the star-formation ratios [dex]
_INSIDE = (5 / _SCALE) / math.sqrt(2 + (5 / _SCALE) ** 2)  # fraction of that t within +-5 dex
_UNIFORM = ("lnfAGN", "lntauAGN", "log10Zgas", "log10Ugas")
_LIMITS = {name: tuple(parameters.BOUNDS[i].tolist()) for name, i in parameters.INDEX.items()}


def log_mass_function(log_mass, z):
    """Galaxy stellar mass function of Leja et al. (2020).

    Parameters
    ----------
    log_mass : Tensor of shape (...)
        log10 of the stellar mass [Msun].
    z : Tensor of shape (...)
        Redshift; outside 0.2 to 3.0 the function of the nearest edge is used (Wang+23).

    Returns
    -------
    Tensor of shape (...)
        ln of the number density [1 / Mpc^3 / dex].
    """
    return math.log(10) * universe.mass_function(log_mass, z.clamp(max=_LAST))


def _normals(theta):
    """Mean and width of the parameters with a truncated normal prior, given the parameters they depend on."""
    log_mass, dust2 = parameters.column(theta, "log10M_formed").clamp(*_LIMITS["log10M_formed"]), parameters.column(theta, "dust2")
    one = torch.ones_like(dust2)
    return {
        # Gallazzi+05 with the width doubled, as fitted in steppz
        "log10Z": (-0.2593 + 0.3839 * torch.tanh(2.0229 * log_mass - 20.373), 0.6884 - 0.3712 * torch.tanh(2.4763 * log_mass - 25.741)),
        "dust2": (0.3 * one, one),
        "dust1_fraction": (one, 0.3 * one),
        "dust_index": (-0.095 + 0.111 * dust2 - 0.0066 * dust2**2, 0.4 * one),
    }


def _log_truncated_normal(x, mean, sd, lower, upper):
    inside = torch.special.ndtr((upper - mean) / sd) - torch.special.ndtr((lower - mean) / sd)
    return -0.5 * ((x - mean) / sd) ** 2 - torch.log(sd * inside) - 0.5 * math.log(2 * math.pi)


def _truncated_normal_quantile(u, mean, sd, lower, upper):
    low, high = (torch.special.ndtr((edge - mean) / sd) for edge in (lower, upper))
    return (mean + sd * torch.special.ndtri(low + u * (high - low))).clamp(lower, upper)


def _log_wall(log_mass):
    """Zero inside the mass bounds, a steep half-normal fall outside [nat]."""
    lower, upper = _LIMITS["log10M_formed"]
    outside = (lower - log_mass).clamp_min(0.0) + (log_mass - upper).clamp_min(0.0)
    return -0.5 * (outside / _WALL) ** 2


@cache
def _mass_redshift():
    """Mass function x volume: ln of its integral over the bounds, and its cumulative sum over ``_CELLS`` (float64)."""
    edges = [torch.linspace(*_LIMITS[name], n + 1, dtype=torch.float64) for name, n in zip(("z", "log10M_formed"), _CELLS, strict=True)]
    z, log_mass = (0.5 * (edge[1:] + edge[:-1]) for edge in edges)
    density = (log_mass_function(log_mass[None], z[:, None]).exp() * cosmology.comoving_volume(z)[:, None]).flatten()
    area = float((z[1] - z[0]) * (log_mass[1] - log_mass[0]))
    return math.log(float(density.sum()) * area), (density / density.sum()).cumsum(0)


class Prospector:
    """Prospector-alpha-like prior: mass function x volume, continuity star-formation history, mass-metallicity, dust.

    Star-formation ratios are Student-t (nu = 2, scale 0.3 dex; Leja+19); log10 Z is normal about Gallazzi+05 at the
    galaxy's mass and the dust terms are normal as in steppz, each normalised on its own interval; torus and gas
    parameters are uniform. (steppz and the public pop-cosmos prior put log10 Z where the mean belongs in the
    normaliser of the metallicity term; here it is the truncated normal that they describe.)
    """

    def log_prob(self, phi):
        """Density with respect to phi.

        Parameters
        ----------
        phi : Tensor of shape (..., 16)
            Latent parameters; slot 0 is N [mag].

        Returns
        -------
        Tensor of shape (...)
            ln p(phi) [nat]. Outside the mass bounds it falls as a half-normal of 0.05 dex, so that gradients point back inside.
        """
        theta = parameters.to_theta(phi)
        log_mass, z = parameters.column(theta, "log10M_formed"), parameters.column(theta, "z")
        log_p = log_mass_function(log_mass.clamp(*_LIMITS["log10M_formed"]), z) + cosmology.comoving_volume(z).log()
        log_p = log_p - _mass_redshift()[0] + _log_wall(log_mass)
        ratio = theta[..., _RATIOS] / _SCALE
        log_p = log_p - (1.5 * torch.log1p(ratio**2 / 2) + math.log(2 * math.sqrt(2) * _SCALE * _INSIDE)).sum(-1)
        for name, (mean, sd) in _normals(theta).items():
            log_p = log_p + _log_truncated_normal(parameters.column(theta, name), mean, sd, *_LIMITS[name])
        log_p = log_p - sum(math.log(_LIMITS[name][1] - _LIMITS[name][0]) for name in _UNIFORM)
        return log_p + parameters.log_jacobian(phi)

    def sample(self, n, generator):
        """Draw galaxies.

        Parameters
        ----------
        n : int
            Number of galaxies.
        generator : torch.Generator
            Source of randomness; the draws are on its device.

        Returns
        -------
        theta : Tensor of shape (n, 16)
            SPS parameters, float32.
        """
        u = torch.rand(n, 17, generator=generator, device=generator.device, dtype=torch.float64)
        lower, upper = parameters.BOUNDS.to(u).T
        cell = torch.searchsorted(_mass_redshift()[1].to(u), u[:, 16].contiguous()).clamp_max(_CELLS[0] * _CELLS[1] - 1)
        z = lower[15] + (upper[15] - lower[15]) * (cell // _CELLS[1] + u[:, 15]) / _CELLS[0]
        log_mass = lower[0] + (upper[0] - lower[0]) * (cell % _CELLS[1] + u[:, 0]) / _CELLS[1]
        return _given_mass_redshift(log_mass, z, u)

    def library(self, n, generator):
        """As ``sample`` but uniform in mass and in ln(1+z): covers the bright galaxies that the mass function hides behind dwarfs."""
        u = torch.rand(n, 16, generator=generator, device=generator.device, dtype=torch.float64)
        lower, upper = parameters.BOUNDS.to(u).T
        z = (1 + lower[15]) * ((1 + upper[15]) / (1 + lower[15])) ** u[:, 15] - 1
        return _given_mass_redshift(lower[0] + (upper[0] - lower[0]) * u[:, 0], z, u)


def _given_mass_redshift(log_mass, z, u):
    """Turn uniform deviates (n, 16+) into galaxies of given masses and redshifts."""
    lower, upper = parameters.BOUNDS.to(u).T
    theta = lower + (upper - lower) * u[:, :16]
    theta[:, 0], theta[:, 15] = log_mass, z
    p = (2 * u[:, _RATIOS] - 1) * _INSIDE  # the quantiles of a t with nu = 2 are closed-form
    theta[:, _RATIOS] = _SCALE * p * torch.sqrt(2 / (1 - p**2))
    for name in ("log10Z", "dust2", "dust1_fraction", "dust_index"):  # dust_index last: it follows the dust2 just drawn
        i = parameters.INDEX[name]
        theta[:, i] = _truncated_normal_quantile(u[:, i], *_normals(theta)[name], *_LIMITS[name])
    return theta.float()


class Broad:
    """Uniform prior within the bounds of all 16 parameters.

    In phi the 15 probits are N(0, 1); N follows from mass and redshift and is wide (90 % within 12 to 31 mag).
    """

    def log_prob(self, phi):
        """Density with respect to phi, of shape (...) for ``phi`` of shape (..., 16) [nat]; mass bounds as in ``Prospector``."""
        log_mass = parameters.column(parameters.to_theta(phi), "log10M_formed")
        widths = (parameters.BOUNDS[:, 1] - parameters.BOUNDS[:, 0]).log().sum()
        return parameters.log_jacobian(phi) - float(widths) + _log_wall(log_mass)

    def sample(self, n, generator):
        """Draw ``n`` galaxies: theta of shape (n, 16), float32, on the generator's device."""
        lower, upper = parameters.BOUNDS.float().to(generator.device).T
        return lower + (upper - lower) * torch.rand(n, 16, generator=generator, device=generator.device)

    library = sample  # nothing is rare in it


class Mixture:
    """Gaussian mixture on phi, fitted to draws: a closed-form stand-in for a population whose exact density is expensive.

    A sampler explores the mixture, and the draws that it keeps are reweighted by the exact density. One component spans all draws, so that
    no galaxy lies in the tail of all components.

    Parameters
    ----------
    theta : Tensor of shape (n, 16)
        Draws of the population.
    generator : torch.Generator
        Chooses the first centres.
    components : int
        Number of Gaussians, full covariances.
    iterations : int
        Iterations of expectation-maximisation.
    """

    def __init__(self, theta, generator, components=48, iterations=20):
        phi = parameters.to_latent(theta)
        self.shift, self.scale = phi.mean(0), phi.std(0)
        x = (phi - self.shift) / self.scale
        n, d = x.shape
        chosen = torch.randperm(n, generator=generator)[: components - 1]
        self.mean = torch.cat([torch.zeros(1, d).to(x), x[chosen]])
        self.log_weight = torch.full((components,), -math.log(components)).to(x)
        covariance = 0.5 * torch.eye(d).to(x).expand(components, d, d).clone()
        whole = _WIDEN * torch.cov(x.T)
        for _ in range(iterations):
            covariance[0], self.mean[0] = whole, 0.0
            self.factor = torch.linalg.cholesky(torch.linalg.inv(covariance))
            share = torch.cat([torch.softmax(self._terms(rows), -1) for rows in x.split(4096)])
            total = share.sum(0) + 1e-3
            self.log_weight = (total / total.sum()).log()
            self.mean = (share.T @ x) / total[:, None]
            for k in range(components):
                offset = x - self.mean[k]
                covariance[k] = (share[:, k, None] * offset).T @ offset / total[k] + _LEAST_VARIANCE * torch.eye(d).to(x)
        covariance[0], self.mean[0] = whole, 0.0
        self.log_weight[0] = torch.maximum(self.log_weight[0], self.log_weight.new_tensor(_SPANNING).log())
        self.factor = torch.linalg.cholesky(torch.linalg.inv(covariance))

    def _terms(self, x):
        """ln of weight x density of each component at standardised points, (n, components)."""
        y = torch.einsum("nd,kde->nke", x, self.factor) - torch.einsum("kd,kde->ke", self.mean, self.factor)
        log_norm = self.factor.diagonal(dim1=1, dim2=2).log().sum(-1) - 0.5 * x.shape[-1] * math.log(2 * math.pi)
        return self.log_weight + log_norm - 0.5 * (y**2).sum(-1)

    def log_prob(self, phi):
        """Density with respect to phi, of shape (...) for ``phi`` of shape (..., 16) [nat]."""
        flat = ((phi - self.shift) / self.scale).reshape(-1, phi.shape[-1])
        log_p = torch.cat([torch.logsumexp(self._terms(rows), -1) for rows in flat.split(4096)])
        return log_p.reshape(phi.shape[:-1]) - self.scale.log().sum()
