"""The table of the 26 bands, and asinh magnitudes, which stay finite for a galaxy measured at negative flux.

Fluxes are microjanskys (AB zero point 23.9). `survey` offers both under its own name. Introduced in notebook 03;
Thorp et al. (2025) sect. 2.1, after Lupton, Gunn & Szalay (1999).
"""

import csv
import math
from importlib import resources

import torch

__all__ = ["BANDS", "asinh_magnitude", "flux_from_asinh"]

_TEXT = ("short", "filter", "column", "group")
_POGSON = 2.5 / math.log(10.0)


def _read():
    lines = (resources.files("popcosmos_lib") / "resources" / "cosmos26.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    table = {name: [row[name] for row in rows] for name in rows[0]}
    return {k: v if k in _TEXT else torch.tensor([float(x) for x in v], dtype=torch.float64) for k, v in table.items()}


BANDS = _read()  # column of resources/cosmos26.csv -> list of str, or Tensor of shape (26,) in float64; units in its header


def asinh_magnitude(flux, softening=None):
    """Magnitude on a scale that stays finite through zero flux.

    Parameters
    ----------
    flux : Tensor of shape (..., n_band)
        Flux [µJy]; any sign; NaN marks a missing band and stays NaN.
    softening : Tensor of shape (n_band,), optional
        Flux at which the scale turns from logarithmic to linear [µJy], > 0; by default that of the 26 bands.

    Returns
    -------
    Tensor of shape (..., n_band)
        AB magnitude; equals the logarithmic one to 0.003 mag above 20 softenings.

    Raises
    ------
    ValueError
        If a softening is not positive: the scale is then undefined.

    References
    ----------
    Thorp et al. (2025), arXiv:2506.12122, eq. 1.
    """
    softening = _softening(softening, flux)
    return 23.9 - _POGSON * (torch.asinh(flux / (2 * softening)) + softening.log())


def flux_from_asinh(magnitude, softening=None):
    """The inverse of `asinh_magnitude`: AB asinh magnitude to flux [µJy], same shapes."""
    softening = _softening(softening, magnitude)
    return 2 * softening * torch.sinh((23.9 - magnitude) / _POGSON - softening.log())


def _softening(softening, like):
    softening = (BANDS["softening"] if softening is None else torch.as_tensor(softening)).to(like)
    if not (softening > 0).all():
        raise ValueError(f"softening must be positive in every band; got minimum {softening.min():.3g}")
    return softening
