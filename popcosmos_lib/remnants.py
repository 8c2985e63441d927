"""Mass locked in white dwarfs, neutron stars and black holes.

The BC03 tables count living stars only; FSPS, and with it pop-cosmos, counts remnants too. This module adds them for a Kroupa (2001) mass
function with the initial-final mass relation of Renzini & Ciotti (1993), the one FSPS uses. Introduced in notebook 01.
"""

import numpy as np
import torch

__all__ = ["mass_fraction"]

_LOWER, _BREAK, _UPPER = 0.1, 0.5, 100.0  # Msun
_MASSES = np.geomspace(_LOWER, _UPPER, 4000)


def _lifetime(mass):
    """Stellar lifetime [yr] against initial mass [Msun], solar metallicity; Raiteri, Villata & Navarro (1996), eq. 3."""
    x = np.log10(mass)
    return 10 ** (9.978 - 3.417 * x + 0.843 * x**2)  # their polynomials in log Z at Z = 0.02


def _remnant(mass):
    """Remnant mass [Msun] against initial mass [Msun]; Renzini & Ciotti (1993)."""
    return np.where(mass >= 40.0, 0.5 * mass, np.where(mass >= 8.5, 1.4, 0.077 * mass + 0.48))


def mass_fraction(age):
    """Mass in remnants per mass formed.

    Parameters
    ----------
    age : Tensor of shape (n,)
        Age of the population [yr].

    Returns
    -------
    Tensor of shape (n,)
        Fraction, rising with age to about 0.13 at 10 Gyr.
    """
    number = np.where(_MASSES < _BREAK, (_MASSES / _BREAK) ** -1.3, (_MASSES / _BREAK) ** -2.3)
    mass = np.trapezoid(number * _MASSES, _MASSES)
    dead = _lifetime(_MASSES)[:, None] < age.numpy()
    return torch.as_tensor(np.trapezoid(dead * (number * _remnant(_MASSES))[:, None], _MASSES, axis=0) / mass)
