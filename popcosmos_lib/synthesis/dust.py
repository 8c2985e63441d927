"""Dust: attenuation curves, and the spectrum of the dusty torus around an active nucleus.

Curves follow FSPS ``dust_type = 4`` (Kriek & Conroy 2013, after Noll et al. 2009): a Calzetti curve tilted by ``dust_index`` with a
2175 Angstrom bump whose strength is tied to the tilt. Introduced in notebook 01; Thorp et al. (2025) sect. 3.2.
"""

import os
from pathlib import Path

import numpy as np
import torch

from popcosmos_lib.synthesis import filters

__all__ = ["birth_cloud", "diffuse", "torus"]

_PIVOT = 5500.0  # [Angstrom], where both curves are one
_TORUS_FILE = Path("dust", "Nenkova08_y010_torusg_n10_q2.0.dat")  # below SPS_HOME
# Share of a torus's luminosity in black bodies of these temperatures [K], by its optical depth; 150 K takes the rest. The hottest stands
# for scattered light of the accretion disc. Least-squares fit to how the released pop-cosmos photometry answers to lnfAGN between 0.25
# and 5 micron (rest): 5 % there, only plausible beyond.
_TEMPERATURES = (8000.0, 1500.0, 1000.0, 700.0, 450.0, 150.0)
_SHARES = {
    5.0: (0.0018, 0.0187, 0.2182, 0.5151, 0.0),
    10.0: (0.0026, 0.0219, 0.0474, 0.4177, 0.2198),
    20.0: (0.0037, 0.0243, 0.0170, 0.1565, 0.4630),
    40.0: (0.0053, 0.0318, 0.0146, 0.0188, 0.3863),
    80.0: (0.0070, 0.0430, 0.0104, 0.0, 0.1725),
    150.0: (0.0087, 0.0500, 0.0122, 0.0, 0.0896),
}


def diffuse(wave, index):
    """Attenuation curve of the diffuse dust, one at 5500 Angstrom for index = 0 up to the bump's wing.

    Parameters
    ----------
    wave : Tensor of shape (n_wave,)
        Rest wavelength [Angstrom].
    index : Tensor of shape (n,)
        Power-law tilt of the Calzetti curve, ``dust_index``.

    Returns
    -------
    Tensor of shape (n, n_wave)
        Optical depth for dust2 = 1.
    """
    x = 1e4 / wave
    blue = 1.17 * (-2.156 + 1.509 * x - 0.198 * x**2 + 0.011 * x**3) + 1.78
    red = 1.17 * (-1.857 + 1.04 * x) + 1.78
    calzetti = (torch.where(wave <= 6300.0, blue, red) / 0.44 / 4.05).clamp_min(0.0)  # R_V = 4.05
    bump = (350.0 * wave) ** 2 / ((wave**2 - 2175.0**2) ** 2 + (350.0 * wave) ** 2)
    strength = 0.85 - 1.9 * index[:, None]  # Kriek & Conroy (2013), eq. 3
    return (calzetti + strength / 4.05 * bump) * torch.exp(index[:, None] * torch.log(wave / _PIVOT))


def birth_cloud(wave):
    """Attenuation curve of the birth clouds, (lambda / 5500)^-1, shape (n_wave,); optical depth for dust1 = 1."""
    return _PIVOT / wave


def torus(wave):
    """Spectra of the dusty torus against its optical depth, 1 Lsun each.

    The table of Nenkova et al. (2008) is read from the FSPS data under ``SPS_HOME`` where that is set. Otherwise black bodies stand in,
    whose hot share fades with optical depth as in those models.

    Parameters
    ----------
    wave : ndarray of shape (n_wave,)
        Rest wavelength [Angstrom], uniform in ln wavelength.

    Returns
    -------
    depth : ndarray of shape (n_tau,)
        Optical depths, increasing.
    spectrum : ndarray of shape (n_tau, n_wave)
        Luminosity density [1e-15 Lsun/Hz].
    source : str
        Description of the spectra that are used.
    """
    home = os.environ.get("SPS_HOME")
    path = Path(home) / _TORUS_FILE if home else None
    if path is not None and path.exists():
        depths = np.loadtxt(path, skiprows=3, max_rows=1)
        table = np.loadtxt(path, skiprows=4)
        log_wave, shapes = np.log(table[:, 0]), np.log(table[:, 1:].T.clip(min=1e-99))
        spectrum = np.exp([np.interp(np.log(wave), log_wave, shape, left=-200.0, right=-200.0) for shape in shapes])
        source = f"Nenkova et al. (2008) table of SPS_HOME ({path.name})"
    else:
        depths = np.array(list(_SHARES))
        shares = np.array(list(_SHARES.values()))
        rest = 1 - shares.sum(-1, keepdims=True)
        spectrum = np.concatenate([shares, rest], -1) @ np.stack([_black_body(wave, t) for t in _TEMPERATURES])
        source = "analytic black bodies in place of the Nenkova et al. (2008) table (set SPS_HOME to the FSPS data to use the table)"
    frequency_step = filters.LIGHT / wave * np.log(wave[1] / wave[0])
    return depths, spectrum / (1e-15 * spectrum * frequency_step).sum(-1, keepdims=True), source


def _black_body(wave, temperature):
    """Planck spectrum in L_nu per unit luminosity, up to a constant that is the same for every temperature [K]."""
    x = 1.438777e8 / wave  # h c / k lambda [K]
    return x**3 / np.expm1(np.minimum(x / temperature, 600.0)) / temperature**4
