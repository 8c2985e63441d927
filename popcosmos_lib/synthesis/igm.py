"""Absorption by intergalactic hydrogen on the way to a galaxy: Madau (1995, ApJ 441, 18), as FSPS implements it.

Every term of the model is a power of rest wavelength times a power of 1 + z, so that the optical depth of a batch costs two rows of
constants. Introduced in notebook 01; Thorp et al. (2025) sect. 3.2.
"""

import torch

__all__ = ["LYMAN_ALPHA", "transmission"]

LYMAN_ALPHA = 1215.67  # [Angstrom]
_LIMIT = 911.75
_SERIES = {  # Lyman line [Angstrom]: coefficient of ((1+z) lambda / lambda_line)^3.46
    LYMAN_ALPHA: 0.0036, 1025.72: 0.0017, 972.537: 0.0011846, 949.743: 0.0009410, 937.803: 0.0007960, 930.748: 0.0006967,
    926.226: 0.0006236, 923.150: 0.0005665, 920.963: 0.0005200, 919.352: 0.0004817, 918.129: 0.0004487, 917.181: 0.0004200,
    916.429: 0.0003947, 915.824: 0.000372, 915.329: 0.000352, 914.919: 0.0003334, 914.576: 0.00031644,
}  # fmt: skip
_METALS = 0.0017


def transmission(wave, z):
    """Mean transmission of the intergalactic medium.

    Parameters
    ----------
    wave : Tensor of shape (n_wave,)
        Rest wavelength [Angstrom], increasing.
    z : Tensor of shape (n,)
        Redshift of the source.

    Returns
    -------
    Tensor of shape (n, n_wave)
        exp(-tau); one above Lyman alpha. Where the fit for the Lyman continuum turns over at short wavelengths, tau is held at its maximum.
    """
    steep = torch.zeros_like(wave)
    for line, coefficient in _SERIES.items():
        steep = steep + torch.where(wave <= line, coefficient * (wave / line) ** 3.46, 0.0)
    shallow = torch.where(wave <= LYMAN_ALPHA, _METALS * (wave / LYMAN_ALPHA) ** 1.68, 0.0)
    x = (wave / _LIMIT).clamp(max=1.0)  # every continuum term vanishes at the limit
    steep = steep + 0.25 * (x**3 - x**3.46)
    shallow = shallow + 9.4 * (x**1.5 - x**1.68) - 0.7 * (x**1.68 - x**3) - 0.023 * (1 - x**1.68)
    one_plus_z = 1 + z[:, None]
    tau = one_plus_z**3.46 * steep + one_plus_z**1.68 * shallow
    peak, where = tau.max(-1, keepdim=True)
    return torch.exp(-torch.where(torch.arange(len(wave), device=wave.device) < where, peak, tau))
