"""The same 16 parameters through the real FSPS (python-fsps): slow, and the reference wherever its data are.

FSPS keeps its state in Fortran and needs ``SPS_HOME`` before it is imported, so it runs in worker processes only; a crash there does not
take the notebook with it. Settings are those of the released pop-cosmos parameter file (Thorp+25 sect. 3.2): Chabrier mass function,
dust_type 4, Draine & Li dust, Madau absorption, metallicities smoothed by a three-point kernel. Introduced in notebook 01.

The FSPS inside fsps 0.4.7 (3.3) attenuates the torus with an optical depth of one whatever ``dust2`` is (FSPS issue 81); the papers used
3.2, and ``sps`` follows 3.2, so bright tori differ between the two by that factor.
"""

import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

from popcosmos_lib import cosmology, filters, parameters

__all__ = ["Reference", "available", "load"]

_LSUN = 3.839e33  # erg / s, as FSPS takes it
_TEN_PARSEC = 10 * 3.0856775814913673e18  # cm
_STEP = 1e-6  # Gyr between the two sides of a bin's edge: a tabulated history must increase in time
_MASS = 1e10  # Msun, formed in the table so that no rate is tiny
_SETTINGS = {
    "zcontinuous": 2, "pmetals": -99.0, "imf_type": 1, "sfh": 3, "dust_type": 4, "dust1_index": -1.0, "dust_tesc": 7.0,
    "add_dust_emission": True, "duste_gamma": 0.01, "duste_umin": 1.0, "duste_qpah": 2.0, "add_agb_dust_model": True,
    "add_neb_emission": True, "add_neb_continuum": True, "nebemlineinspec": True, "add_igm_absorption": True,
}  # fmt: skip
_population = None  # of this process, once _start has run


def available():
    """Whether ``SPS_HOME`` names a folder of FSPS data."""
    return os.path.isfile(os.path.join(os.environ.get("SPS_HOME", ""), "data", "emlines_info.dat"))


def load(bands=filters.COSMOS26, processes=1):
    """FSPS behind worker processes.

    Parameters
    ----------
    bands : str or list of str
        Anything ``filters.load`` takes.
    processes : int
        Workers; each takes about 0.7 GB and ten seconds to start.

    Returns
    -------
    Reference

    Raises
    ------
    FileNotFoundError
        If ``SPS_HOME`` does not name an FSPS data folder.
    """
    if not available():
        home = os.environ.get("SPS_HOME")
        found = f"SPS_HOME={home} holds no FSPS data" if home else "SPS_HOME is not set"
        raise FileNotFoundError(f"{found}: `make data ID=fsps_home` fetches them; then set SPS_HOME to the unpacked folder")
    return Reference(filters.load(bands), processes)


class Reference:
    """FSPS spectra and magnitudes for ``theta``.

    Parameters
    ----------
    bands : filters.Filters
    processes : int
    """

    def __init__(self, bands, processes):
        self.filters, self.bands = bands, list(bands.names)
        self.pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_start)

    def spectrum(self, theta):
        """Rest-frame spectra with everything in them: dust, lines, torus, intergalactic absorption.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            SPS parameters.

        Returns
        -------
        wave : ndarray of shape (n_wave,)
            Rest wavelength [Angstrom].
        light : ndarray of shape (n, n_wave)
            Luminosity density [Lsun/Hz] of all the mass.
        surviving : ndarray of shape (n,)
            Mass in stars and remnants per mass formed.
        """
        rows = parameters.check(theta).detach().double().cpu()
        waves, light, surviving = zip(*self.pool.map(_spectrum, rows.numpy()), strict=True)
        return waves[0], np.stack(light) * 10 ** parameters.column(rows, "log10M_formed").numpy()[:, None], np.array(surviving)

    def magnitudes(self, theta):
        """Apparent AB magnitudes through the curves of ``filters``, (n, n_band), at Planck18 distances."""
        wave, light, _ = self.spectrum(theta)
        z = parameters.column(torch.as_tensor(theta), "z").detach().double().cpu()
        flux = torch.stack([self.filters.average(wave * (1 + x), row * (1 + x)) for x, row in zip(z.tolist(), light, strict=True)])
        absolute = -2.5 * torch.log10(flux * (_LSUN / (4 * math.pi * _TEN_PARSEC**2))) - 48.60
        return absolute + cosmology.distance_modulus(z)[:, None]

    def close(self):
        """End the workers."""
        self.pool.shutdown()


def _start():
    global _population
    import fsps

    _population = fsps.StellarPopulation(**_SETTINGS)


def _apply(row):
    """Hand one theta (16,) to this process's FSPS; returns the age of the universe [Gyr]."""
    theta = torch.as_tensor(row)
    edges = parameters.age_edges(theta[-1]).numpy()
    rate = _MASS * parameters.mass_fractions(theta).numpy() / (np.diff(edges) * 1e9)  # Msun / yr, youngest bin first
    start, stop = edges[-1] - edges[1:] + _STEP, edges[-1] - edges[:-1]
    _population.set_tabular_sfh(np.column_stack([start, stop])[::-1].ravel(), np.repeat(rate[::-1], 2))
    value = dict(zip(parameters.NAMES, row.tolist(), strict=True))
    settings = {
        "logzsol": value["log10Z"], "dust2": value["dust2"], "dust1": value["dust2"] * value["dust1_fraction"],
        "dust_index": value["dust_index"], "fagn": math.exp(value["lnfAGN"]), "agn_tau": math.exp(value["lntauAGN"]),
        "gas_logz": value["log10Zgas"], "gas_logu": value["log10Ugas"], "zred": value["z"],
    }  # fmt: skip
    for name, setting in settings.items():
        _population.params[name] = setting
    return edges[-1]


def _spectrum(row):
    wave, light = _population.get_spectrum(tage=_apply(row))
    return wave, light / _MASS, _population.stellar_mass / _MASS
