"""Emission lines: the 44 whose strengths the calibration scales, and what a line adds to a band.

Lines cross the edges of narrow bands within a hundredth in redshift, so they are kept apart from the continuum and
weighted by each transmission curve at their observed wavelength. Introduced in notebook 01.

References
----------
Leistedt et al. (2023), arXiv:2207.07673, sect. 3.4; Thorp et al. (2025), arXiv:2506.12122, table 6.
"""

import math

import numpy as np
import torch

from popcosmos_lib.galaxies import interpolation
from popcosmos_lib.synthesis import filters, igm

__all__ = ["CALIBRATED", "RESOLUTION", "band_flux", "matched", "response"]

# Vacuum wavelengths [Angstrom] of the lines that the papers correct, in their order.
CALIBRATED = (
    1215.67, 1906.68, 1908.73, 2321.66, 2326.11, 2661.15, 2669.95, 2796.35, 2803.53, 3722.75, 3727.10, 3729.86, 3798.99, 3836.49, 3869.86,
    3889.75, 3890.17, 3968.59, 3971.20, 4069.75, 4102.89, 4341.69, 4364.44, 4472.73, 4862.71, 4960.30, 5008.24, 5877.25, 6302.05, 6313.81,
    6549.86, 6564.60, 6585.27, 6679.99, 6718.29, 6732.67, 7067.14, 7137.77, 7753.19, 9017.80, 9071.10, 9232.20, 9533.20, 9548.80,
)  # fmt: skip
RESOLUTION = 4000  # samples of the response per unit of ln wavelength; 2 Angstrom in NB711
_SAME = 4e-4  # relative difference below which two wavelengths name one line (blends are listed at slightly different means)


def matched(wave):
    """Positions of ``CALIBRATED`` in a list of lines.

    Parameters
    ----------
    wave : Tensor of shape (n_line,)
        Vacuum wavelength [Angstrom].

    Returns
    -------
    Tensor of shape (44,), int64

    Raises
    ------
    ValueError
        If a line is not in the list.
    """
    wanted = torch.tensor(CALIBRATED, dtype=torch.float64, device=wave.device)
    distance = (wave.double() / wanted[:, None] - 1).abs()
    if (distance.amin(-1) > _SAME).any():
        missing = wanted[distance.amin(-1) > _SAME].tolist()
        raise ValueError(f"the nebular grid has no line at {', '.join(f'{x:g}' for x in missing)} Angstrom, which the calibration scales")
    return distance.argmin(-1)


def response(bands):
    """Table through which lines meet the curves.

    Parameters
    ----------
    bands : filters.Filters

    Returns
    -------
    start : float
        ln of its first wavelength [Angstrom].
    table : Tensor of shape (n_wave, n_band)
        Response per unit of its integral over ln wavelength, at ``RESOLUTION``; float64.
    """
    start, stop = math.log(bands.wave.min()) - 4 / RESOLUTION, math.log(bands.wave.max()) + 4 / RESOLUTION  # lines outside meet zeros
    grid = np.exp(np.arange(start, stop, 1 / RESOLUTION))
    columns = []
    for wave, transmission in zip(bands.wave.numpy(), bands.transmission.numpy(), strict=True):
        norm = np.trapezoid(transmission, np.log(wave))
        columns.append(np.interp(grid, wave, transmission, left=0.0, right=0.0) / norm)
    return start, torch.as_tensor(np.stack(columns, -1))


def band_flux(luminosity, wave, z, table, start):
    """What lines add to the mean flux density of each band, after the intergalactic medium.

    Parameters
    ----------
    luminosity : Tensor of shape (n, n_line)
        Line luminosities [Lsun].
    wave : Tensor of shape (n_line,)
        Vacuum rest wavelength [Angstrom], increasing.
    z : Tensor of shape (n,)
    table, start
        Results of ``response``.

    Returns
    -------
    Tensor of shape (n, n_band)
        Mean flux density [1e-15 Lsun/Hz], without the factor 1 + z of the redshifted frequency interval.
    """
    blue = int((wave < igm.LYMAN_ALPHA * 1.0001).sum())
    density = luminosity * wave * (1e15 / filters.LIGHT)  # L / nu
    if blue:  # a Lyman line sits on the edge of its own absorption
        sides = [igm.transmission(wave[:blue] * side, z) for side in (1 - 1e-5, 1 + 1e-5)]
        density = torch.cat([density[:, :blue] * 0.5 * (sides[0] + sides[1]), density[:, blue:]], -1)
    position = (wave.log() - start + torch.log1p(z)[:, None]) * RESOLUTION
    index, weight = interpolation.spline(position, len(table))
    return interpolation.weighted_rows(index, table, density[..., None] * weight)
