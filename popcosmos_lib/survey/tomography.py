"""Samples of a survey in tomographic bins: redshift distributions and mean redshifts. Used in notebook 06.

Bins are quartiles of one observed colour of the reference sample, r - i where the survey has both bands; a galaxy of another sample falls
in a bin by its own observed colour. No photometric redshift is involved, so that a bin tests the joint distribution of colour and redshift.
"""

from typing import NamedTuple

import numpy as np
import torch

from popcosmos_lib.galaxies import parameters, universe
from popcosmos_lib.synthesis import filters

__all__ = ["BINS", "Binned", "Galaxies", "binned", "edges", "galaxies", "pair"]

BINS = 4
_FAINTEST = 1e-4  # microjansky: what a negative flux counts as in a colour


class Galaxies(NamedTuple):
    """Galaxies that a survey selected.

    Attributes
    ----------
    z, log_mass : ndarray of shape (n,)
        True redshift and surviving stellar mass [log10 Msun].
    colour : ndarray of shape (n,)
        Observed, of the bands of ``pair`` [mag].
    """

    z: np.ndarray
    log_mass: np.ndarray
    colour: np.ndarray


class Binned(NamedTuple):
    """Statistics of all galaxies (row 0) and of each tomographic bin.

    Attributes
    ----------
    density : ndarray of shape (1 + BINS, k)
        n(z), of unit integral.
    sampling : ndarray of shape (1 + BINS, k)
        Its binomial standard deviation.
    moments : ndarray of shape (3, 1 + BINS)
        Mean redshift, its sampling error, number of galaxies.
    """

    density: np.ndarray
    sampling: np.ndarray
    moments: np.ndarray


def pair(bands):
    """The two bands whose colour makes the bins: r and i, or the two in the middle of the list where the survey lacks one of them.

    Parameters
    ----------
    bands : iterable of str
        Short names, from blue to red.

    Returns
    -------
    tuple of str

    Raises
    ------
    ValueError
        If there is one band only.
    """
    bands = list(bands)
    if len(bands) < 2:
        raise ValueError(f"tomographic bins are cuts in a colour: a survey needs two bands; got {', '.join(bands) or 'none'}")
    middle = len(bands) // 2
    return ("r", "i") if {"r", "i"} <= set(bands) else (bands[middle - 1], bands[middle])


def galaxies(theta, flux, bands):
    """A sample from its parameters and photometry.

    Parameters
    ----------
    theta : Tensor of shape (n, 16)
        SPS parameters.
    flux : Tensor of shape (n, n_band)
        Observed [µJy].
    bands : iterable of str
        Short names, in the order of the fluxes.

    Returns
    -------
    Galaxies
    """
    bands = list(bands)
    blue, red = (filters.magnitude_from_flux(flux[:, bands.index(band)].clamp_min(_FAINTEST)) for band in pair(bands))
    values = parameters.column(theta, "z"), universe.surviving_mass(theta), blue - red
    return Galaxies(*(torch.as_tensor(value).double().numpy() for value in values))


def edges(sample):
    """Colours that cut a sample into ``BINS`` equal parts, (BINS - 1,) [mag]."""
    return np.quantile(sample.colour, np.arange(1, BINS) / BINS)


def binned(sample, colours, z_edges):
    """Redshift distributions of a sample.

    Parameters
    ----------
    sample : Galaxies
    colours : ndarray of shape (BINS - 1,)
        Where to cut [mag].
    z_edges : ndarray of shape (k + 1,)

    Returns
    -------
    Binned

    Raises
    ------
    ValueError
        If a bin holds fewer than two galaxies.
    """
    label = np.searchsorted(colours, sample.colour, side="right")
    parts = [sample.z, *(sample.z[label == b] for b in range(BINS))]
    if min(map(len, parts)) < 2:
        raise ValueError(f"a tomographic bin is empty ({', '.join(str(len(part)) for part in parts)} galaxies): draw more galaxies")
    size = np.array([len(part) for part in parts])
    share = np.stack([np.histogram(part, z_edges)[0] for part in parts]) / size[:, None]
    moments = [[part.mean() for part in parts], [part.std(ddof=1) for part in parts] / np.sqrt(size), size]
    return Binned(share / np.diff(z_edges), np.sqrt(share * (1 - share) / size[:, None]) / np.diff(z_edges), np.array(moments))
