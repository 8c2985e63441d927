"""The 16 stellar-population-synthesis parameters of pop-cosmos and the spaces they live in.

``theta`` is the physical vector, shape ``(..., 16)`` in the order of ``NAMES``. ``phi`` is the latent vector on
which the diffusion model acts: slot 0 is N = mu(z) - 2.5 log10 M, every other slot the probit of the parameter
inside its bounds, so a uniform prior in theta is a unit normal in phi. Introduced in notebook 01.

References
----------
Alsing et al. (2024), arXiv:2402.00935, table 1; Thorp et al. (2025), arXiv:2506.12122, table 2 and appendix C
(the age edges follow the released code, which is logarithmic; the printed eq. C1 is linear).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from popcosmos_lib.galaxies import cosmology

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "BOUNDS", "INDEX", "LABELS", "NAMES", "UNITS", "age_edges", "check", "column", "log_jacobian", "log_sfr",
    "log_ssfr", "mass_fractions", "mass_weighted_age", "to_latent", "to_theta",
]  # fmt: skip

# name, lower, upper, LaTeX label, unit
_TABLE = [
    ("log10M_formed", 7.0, 13.0, r"$\log_{10} M_\mathrm{form}$", "dex(Msun)"),
    ("log10Z", -1.98, 0.19, r"$\log_{10} Z_\star$", "dex(Zsun)"),
    *[(f"log10SFR_ratio{i}", -5.0, 5.0, rf"$\Delta\log_{{10}}\mathrm{{SFR}}_{i}$", "dex") for i in range(1, 7)],
    ("dust2", 0.0, 4.0, r"$\tau_2$", ""),
    ("dust_index", -1.0, 0.4, r"$n$", ""),
    ("dust1_fraction", 0.0, 2.0, r"$\tau_1/\tau_2$", ""),
    ("lnfAGN", math.log(1e-5), math.log(3.0), r"$\ln f_\mathrm{AGN}$", ""),
    ("lntauAGN", math.log(5.0), math.log(150.0), r"$\ln \tau_\mathrm{AGN}$", ""),
    ("log10Zgas", -2.0, 0.5, r"$\log_{10} Z_\mathrm{gas}$", "dex(Zsun)"),
    ("log10Ugas", -4.0, -1.0, r"$\log_{10} U_\mathrm{gas}$", "dex"),
    ("z", 0.0, 6.0, r"$z$", ""),
]
NAMES = [row[0] for row in _TABLE]
BOUNDS = torch.tensor([row[1:3] for row in _TABLE], dtype=torch.float64)  # (16, 2)
LABELS = [row[3] for row in _TABLE]
UNITS = [row[4] for row in _TABLE]
INDEX = {name: i for i, name in enumerate(NAMES)}
_RATIOS = slice(INDEX["log10SFR_ratio1"], INDEX["log10SFR_ratio6"] + 1)
_LATENT_MAX = 5.0  # |phi| beyond which the probit is flat in float32; the upstream generator clamps here too


def column(theta: torch.Tensor, name: str) -> torch.Tensor:
    """One parameter of a batch, by name: ``column(theta, "z")`` has shape ``theta.shape[:-1]``."""
    return theta[..., INDEX[name]]


def check(theta: ArrayLike) -> torch.Tensor:
    """Return ``theta`` as a floating tensor, or say what is wrong with it.

    Parameters
    ----------
    theta : array_like of shape (..., 16)
        SPS parameters in the order of ``NAMES``.

    Raises
    ------
    ValueError
        If the last axis is not 16 long, or a parameter is not finite or lies outside its bounds.
    """
    theta = torch.as_tensor(theta)
    theta = theta if theta.is_floating_point() else theta.to(torch.get_default_dtype())
    if theta.shape[-1:] != (len(NAMES),):
        raise ValueError(f"theta needs {len(NAMES)} columns in the order of parameters.NAMES; got shape {tuple(theta.shape)}")
    lower, upper = BOUNDS.to(theta).T
    margin = 1e-4 * (upper - lower)
    bad = ~((theta >= lower - margin) & (theta <= upper + margin)).reshape(-1, len(NAMES)).all(0)
    if bad.any():
        i = int(bad.nonzero()[0])
        raise ValueError(f"{NAMES[i]} must be finite and within [{lower[i]:.4g}, {upper[i]:.4g}]; clip it or drop those galaxies")
    return theta


def to_latent(theta: torch.Tensor) -> torch.Tensor:
    """Physical parameters to latent ones.

    Parameters
    ----------
    theta : Tensor of shape (..., 16)
        SPS parameters; values at a bound map to +-5.

    Returns
    -------
    phi : Tensor of shape (..., 16)
        Slot 0 is N [mag], the others are probits.
    """
    lower, upper = BOUNDS.to(theta).T
    fraction = (theta - lower) / (upper - lower)
    phi = torch.special.ndtri(fraction.double().clamp(1e-12, 1 - 1e-12)).clamp(-_LATENT_MAX, _LATENT_MAX).to(theta)
    magnitude = cosmology.distance_modulus(column(theta, "z")) - 2.5 * column(theta, "log10M_formed")
    return torch.cat([magnitude[..., None], phi[..., 1:]], -1)


def to_theta(phi: torch.Tensor) -> torch.Tensor:
    """Latent parameters to physical ones; the inverse of ``to_latent``.

    Parameters
    ----------
    phi : Tensor of shape (..., 16)
        Slot 0 is N [mag], the others are probits.

    Returns
    -------
    theta : Tensor of shape (..., 16)
        SPS parameters. log10M_formed follows from N and z and is *not* bounded (as upstream).
    """
    lower, upper = BOUNDS.to(phi).T
    theta = lower + (upper - lower) * torch.special.ndtr(phi.clamp(-_LATENT_MAX, _LATENT_MAX))
    mass = 0.4 * (cosmology.distance_modulus(column(theta, "z")) - phi[..., 0])
    return torch.cat([mass[..., None], theta[..., 1:]], -1)


def log_jacobian(phi: torch.Tensor) -> torch.Tensor:
    """ln |d theta / d phi|, so that ln p(theta) = ln p(phi) - log_jacobian(phi).

    Parameters
    ----------
    phi : Tensor of shape (..., 16)
        Latent parameters.

    Returns
    -------
    Tensor of shape (...)
        Log-determinant [nat]; the (N, z) to (log10 M, z) block contributes ln 0.4.
    """
    width = (BOUNDS[1:, 1] - BOUNDS[1:, 0]).to(phi)
    normal = -0.5 * phi[..., 1:] ** 2 - 0.5 * math.log(2 * math.pi)
    return (width.log() + normal).sum(-1) + math.log(0.4)


def age_edges(z: torch.Tensor) -> torch.Tensor:
    """Lookback-time edges of the seven star-formation bins.

    Parameters
    ----------
    z : Tensor of shape (...)
        Redshift.

    Returns
    -------
    Tensor of shape (..., 8)
        0, 0.03, 0.1, then logarithmic to 0.85 of the age of the universe, then that age [Gyr].
    """
    universe = cosmology.age(z)
    last = torch.log10(0.85 * universe)
    steps = [10 ** (-1.0 + k / 4 * (last + 1.0)) for k in range(5)]
    zero = torch.zeros_like(universe)
    return torch.stack([zero, zero + 0.03, *steps, universe], -1)


def _relative_sfr(theta):
    """Star-formation rate of each bin relative to the youngest, (..., 7)."""
    total = torch.cumsum(theta[..., _RATIOS], -1)
    return torch.cat([torch.ones_like(total[..., :1]), 10.0 ** (-total)], -1)


def mass_fractions(theta: torch.Tensor) -> torch.Tensor:
    """Fraction of the formed mass in each age bin.

    Parameters
    ----------
    theta : Tensor of shape (..., 16)
        SPS parameters; the ratios are log10(SFR_i / SFR_{i+1}), youngest first.

    Returns
    -------
    Tensor of shape (..., 7)
        Fractions, summing to one (Thorp+25 eq. C2-C3).
    """
    mass = _relative_sfr(theta) * age_edges(column(theta, "z")).diff(dim=-1)
    return mass / mass.sum(-1, keepdim=True)


def log_ssfr(theta: torch.Tensor) -> torch.Tensor:
    """Specific star-formation rate over the last 100 Myr per *formed* mass, log10 [1/yr], clipped at -18 (Thorp+25 eq. C4)."""
    recent = mass_fractions(theta)[..., :2].sum(-1)
    return torch.log10(recent / 1e8).clamp_min(-18.0)


def log_sfr(theta: torch.Tensor) -> torch.Tensor:
    """Star-formation rate averaged over the last 100 Myr, log10 [Msun/yr]."""
    return log_ssfr(theta) + column(theta, "log10M_formed")


def mass_weighted_age(theta: torch.Tensor) -> torch.Tensor:
    """Mean age of the stars formed, weighted by formed mass [Gyr] (Thorp+25 appendix C)."""
    edges = age_edges(column(theta, "z"))
    return (mass_fractions(theta) * 0.5 * (edges[..., 1:] + edges[..., :-1])).sum(-1)
