"""Spectra through bands: exact integrals of a spectrum that is linear between the pixels of a grid uniform in ln wavelength.

A redshift only shifts such a grid, so the weight of a pixel in a band depends on where it falls between two positions of the grid, and is
tabulated. Integrals, not quadrature nodes, because a node that hops from pixel to pixel makes magnitudes ripple with redshift.
Introduced in notebook 01.
"""

import math

import numpy as np
import torch
from torch import nn

from popcosmos_lib import interpolation

__all__ = ["AB_ZERO", "Passbands"]

AB_ZERO = -2.5 * math.log10(1e-15 * 3.828e33 / (4 * math.pi * (10 * 3.0856775814913673e18) ** 2)) - 48.60  # AB of 1e-15 Lsun/Hz at 10 pc

_PHASES = 16  # positions between two pixels at which weights are tabulated
_FINE = 8  # samples per phase of the integrals behind the table


class Passbands(nn.Module):
    """Mean flux density of redshifted spectra in a set of bands.

    Parameters
    ----------
    bands : filters.Filters
    wave : Tensor of shape (n_wave,)
        Rest wavelength of the pixels [Angstrom], uniform in ln wavelength.

    Attributes
    ----------
    reach : int
        Pixels that the bands look at, at any redshift.
    edges : Tensor of shape (n_band, 2)
        First and last wavelength of each band [Angstrom].
    effective : Tensor of shape (n_band,)
        Mean wavelength, weighted by the transmission per unit of ln wavelength [Angstrom].
    """

    def __init__(self, bands, wave):
        super().__init__()
        start, self.step = math.log(wave[0]), math.log(wave[-1] / wave[0]) / (len(wave) - 1)
        kernels = [_kernel(*curve, start, self.step) for curve in zip(bands.wave, bands.transmission, strict=True)]
        pixels, weights = zip(*kernels, strict=True)
        self.reach = int(max(pixel[-1] for pixel in pixels)) + 1
        self.register_buffer("pixel", torch.as_tensor(np.concatenate(pixels)), persistent=False)
        member = torch.block_diag(*(torch.ones(len(pixel), 1) for pixel in pixels))
        density = bands.transmission.sum(-1)
        tables = {
            "table": torch.as_tensor(np.concatenate(weights, -1)),  # (phase, column)
            "member": member,
            "edges": bands.wave[:, [0, -1]],
            "effective": (bands.transmission * bands.wave).sum(-1) / density,
        }
        for name, value in tables.items():
            self.register_buffer(name, value.to(torch.float32), persistent=False)

    def at(self, z):
        """What the bands see of a spectrum at a redshift.

        Parameters
        ----------
        z : Tensor of shape (n,)

        Returns
        -------
        pixel : Tensor of shape (n, n_column), int64
            Pixels of the rest-frame grid.
        weight : Tensor of shape (n, n_column)
            Their weights; ``(light[pixel] * weight) @ member`` is the mean flux density of each band. Differentiable in z.
        """
        shift = torch.log1p(z) / self.step
        whole = shift.detach().floor()
        index, weight = interpolation.spline((shift - whole) * _PHASES + 1, len(self.table))
        return (self.pixel - whole.long()[:, None]).clamp_min(0), interpolation.weighted_rows(index, self.table, weight)

    def forward(self, light, z):
        """Mean of spectra (n, n_wave) seen at redshifts (n,), (n, n_band), in the unit of ``light``; 1 + z of its interval is left out."""
        pixel, weight = self.at(z)
        return (light.gather(1, pixel) * weight) @ self.member


def _kernel(wave, transmission, start, step):
    """Pixels (n,) that a band can touch, counted at rest, and their weights (phase, n), each row summing to one."""
    fine = step / (_PHASES * _FINE)
    blue, red = ((math.log(edge) - start) / step for edge in (wave[0], wave[-1]))
    first, last = math.floor(blue) - 2, math.ceil(red) + 1
    grid = np.arange(first - 2, last + 3, 1 / (_PHASES * _FINE))  # in pixels
    response = np.interp(np.exp(start + grid * step), wave, transmission, left=0.0, right=0.0)
    hat = 1 - np.abs(np.arange(-_PHASES * _FINE, _PHASES * _FINE + 1)) * fine / step
    smooth = np.convolve(response, hat, "same")
    pixel = np.arange(first, last + 1)
    phase = np.arange(-1, _PHASES + 2)[:, None] / _PHASES
    weight = smooth[np.rint((pixel + phase - grid[0]) * _PHASES * _FINE).astype(int)]
    return pixel, weight / weight.sum(-1, keepdims=True)
