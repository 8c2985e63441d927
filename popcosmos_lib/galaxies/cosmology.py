"""Planck 2018 distances, ages and volumes as smooth torch functions of redshift.

astropy computes each quantity at a few hundred redshifts, a spline fills a fine table; the functions here interpolate it, so they are
batched, differentiable and agree with astropy to 1e-5. Introduced in notebook 01; the cosmology is the one
of Thorp et al. (2025) appendix C (flat Planck18, H0 = 67.66 km/s/Mpc, Om0 = 0.3097).
"""

from functools import cache

import numpy as np
import torch

__all__ = ["Z_MAX", "age", "comoving_volume", "distance_modulus", "luminosity_distance"]

Z_MAX = 20.0  # end of the tables
_NODES = 20_001  # spacing 0.001 in redshift
_COMPUTED = 300  # by astropy, evenly spaced in ln(1 + z): all nodes would take every process four seconds and change 1e-7


@cache
def _tables():
    """Smooth quantities on a uniform redshift grid; each is divided by its small-z behaviour so that linear interpolation is safe."""
    from astropy.cosmology import Planck18
    from scipy.interpolate import CubicSpline

    log = np.linspace(1e-6, np.log1p(Z_MAX), _COMPUTED)
    z = np.expm1(log)
    per_z = Planck18.luminosity_distance(z).value / z  # Mpc, finite at z = 0
    volume = Planck18.differential_comoving_volume(z).value / z**2  # Mpc^3 / sr, finite at z = 0
    ages = Planck18.age(z).value  # Gyr
    fine = np.log1p(np.linspace(0.0, Z_MAX, _NODES))
    return {name: torch.from_numpy(CubicSpline(log, y)(fine)) for name, y in (("distance", per_z), ("volume", volume), ("age", ages))}


def _interpolate(name, z):
    table = _tables()[name].to(z)
    position = (z * ((_NODES - 1) / Z_MAX)).clamp(0.0, _NODES - 1.001)
    below = position.detach().nan_to_num().floor().long().clamp(max=_NODES - 2)
    weight = position - below
    return table[below] * (1 - weight) + table[below + 1] * weight


def age(z):
    """Age of the universe.

    Parameters
    ----------
    z : Tensor of shape (...)
        Redshift, 0 to ``Z_MAX``; values outside are held at the edge.

    Returns
    -------
    Tensor of shape (...)
        Age [Gyr].
    """
    return _interpolate("age", z)


def luminosity_distance(z):
    """Luminosity distance.

    Parameters
    ----------
    z : Tensor of shape (...)
        Redshift; zero gives zero.

    Returns
    -------
    Tensor of shape (...)
        Distance [Mpc].
    """
    return z * _interpolate("distance", z)


def distance_modulus(z):
    """Distance modulus, mu = 5 log10(D_L / 10 pc).

    Parameters
    ----------
    z : Tensor of shape (...)
        Redshift; below 1e-6 it is held there so that the result stays finite.

    Returns
    -------
    Tensor of shape (...)
        Distance modulus [mag].
    """
    return 5.0 * torch.log10(luminosity_distance(z.clamp_min(1e-6))) + 25.0


def comoving_volume(z):
    """Differential comoving volume over the whole sky.

    Parameters
    ----------
    z : Tensor of shape (...)
        Redshift.

    Returns
    -------
    Tensor of shape (...)
        dV/dz [Mpc^3] over 4 pi steradian.
    """
    return 4.0 * np.pi * z**2 * _interpolate("volume", z)
