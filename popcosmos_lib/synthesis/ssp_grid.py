"""The grid of simple stellar populations that ``sps`` sums: constants, wavelength pixels, and where it is kept.

Units: luminosity density 1e-15 Lsun/Hz (so that float32 neither overflows nor underflows), ionising photons 1e46/s, both per Msun formed.
Used by the providers ``ssp_bagpipes`` and ``ssp_fsps``. Introduced in notebook 01.
"""

import numpy as np

from popcosmos_lib.artefacts import store
from popcosmos_lib.synthesis import filters

__all__ = ["BIRTH_CLOUD", "LYMAN_LIMIT", "SOLAR_GAS", "SOLAR_STARS", "pixel_edges", "stored", "to_pixels"]

SOLAR_STARS = 0.0142  # mass fraction of metals that log10Z = 0 means (MIST, Thorp+25 sect. 3.2)
SOLAR_GAS = 0.02  # and that log10Zgas = 0 means: the Cloudy grids scale from the bagpipes solar value
BIRTH_CLOUD = 1e7  # stars younger than this [yr] sit in their birth cloud and power the nebular emission
LYMAN_LIMIT = 911.75  # [Angstrom]

_WAVE_MIN, _WAVE_MAX = 300.0, 1e7  # Angstrom: the u band at z = 6 starts at 450, dust emission ends near 1 mm


def stored(provider, resolution, compute, version, inputs):
    """The grid of a provider from ``artefacts/shared``, or computed and kept there; arguments as for ``store.load_or_compute``."""
    return store.load_or_compute(
        f"ssp_{provider}_R{resolution}",
        compute,
        profile="shared",
        kind="npz",
        version=version,
        parameters={"resolution": resolution},
        inputs=inputs,
    )


def pixel_edges(resolution):
    """Edges of the wavelength pixels, uniform in ln wavelength, shape (n_wave + 1,) [Angstrom]."""
    n = int(np.log(_WAVE_MAX / _WAVE_MIN) * resolution)
    return _WAVE_MIN * np.exp(np.arange(n + 1) / resolution)


def to_pixels(wave, density, edges):
    """Luminosity per Angstrom (..., n) to the mean L_nu of each pixel [1e-15 Lsun/Hz], conserving the energy of every pixel."""
    step = np.diff(wave) * 0.5 * (density[..., 1:] + density[..., :-1])
    total = np.concatenate([np.zeros_like(step[..., :1]), np.cumsum(step, -1)], -1)
    position = np.interp(edges, wave, np.arange(len(wave)))
    below = np.minimum(position.astype(int), len(wave) - 2)
    part = position - below  # the integral of a straight line is a parabola within its interval
    height = density[..., below] + 0.5 * part * (density[..., below + 1] - density[..., below])
    integral = total[..., below] + part * (wave[below + 1] - wave[below]) * height
    return 1e15 * np.diff(integral, axis=-1) / -np.diff(filters.LIGHT / edges)
