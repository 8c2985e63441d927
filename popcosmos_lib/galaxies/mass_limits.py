"""Limits of surviving stellar mass against redshift, as cubic Hermite segments; ``universe`` offers them under its own name.

Introduced in notebook 03.

References
----------
Thorp et al. (2025), arXiv:2506.12122, sect. 4.6 and appendix E.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["hermite_limit", "mass_completeness", "mass_limit", "mass_mask"]


def hermite_limit(z: torch.Tensor, knot: float, values: Sequence[float], slopes: Sequence[float]) -> torch.Tensor:
    """A mass limit drawn as two cubic Hermite segments over 0 < z < 6 (Thorp+25 appendix E).

    Parameters
    ----------
    z : Tensor of shape (...)
        Redshift, 0 to 6.
    knot : float
        Redshift at which the segments meet.
    values, slopes : sequence of 3 floats
        log10 mass [Msun] and its derivative in z at z = 0, ``knot`` and 6.

    Returns
    -------
    Tensor of shape (...)
        log10 mass [Msun].
    """
    knots, values, slopes = (torch.as_tensor(x, dtype=z.dtype, device=z.device) for x in ((0.0, knot, 6.0), values, slopes))
    left = (z >= knot).long()
    start, width = knots[left], knots.diff()[left]
    t = (z - start) / width
    ends = values[left] * (2 * t**3 - 3 * t**2 + 1) + values[left + 1] * (3 * t**2 - 2 * t**3)
    return ends + width * (slopes[left] * (t**3 - 2 * t**2 + t) + slopes[left + 1] * (t**3 - t**2))


def mass_completeness(z: torch.Tensor) -> torch.Tensor:
    """Surviving mass above which IRAC Ch1 < 26 is complete, log10 [Msun] (Thorp+25 sect. 4.6, appendix E)."""
    return hermite_limit(z, 0.7404, (6.5184, 8.5429, 9.6966), (6.9873, 0.5549, 0.2956))


def mass_mask(z: torch.Tensor) -> torch.Tensor:
    """Surviving mass below which 99.5 % of the Ch1 < 26 galaxies lie, log10 [Msun] (Thorp+25 appendix E)."""
    return hermite_limit(z, 0.7948, (9.7108, 11.6535, 11.3251), (6.4555, 0.0, 0.0))


def mass_limit(z: torch.Tensor) -> torch.Tensor:
    """Lowest surviving mass that `sample` draws, log10 [Msun]: 1.2 dex below the Ch1 < 26 completeness, never below 7.

    Notebook 03 shows that the selected mock does not reach down to it, so that nothing visible is lost.
    """
    return (mass_completeness(z) - 1.2).clamp_min(7.0)
