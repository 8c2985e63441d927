"""Simple stellar populations read through the real FSPS: MIST isochrones, MILES spectra, Chabrier mass function, Byler et al. (2017) gas.

What FSPS adds up for a tabulated history is linear between the ages of its isochrones in log age, and linear between its metallicities
once they are smoothed by the three-point kernel of ``zcontinuous = 2``. Averages over age cells and smoothed metallicities are therefore
all that ``sps`` needs to reach the same composite spectrum. Everything is read from spectra that FSPS returns, in a worker process; only
the axes of the gas grid, which python-fsps does not show, come from the header lines of its file. Introduced in notebook 01.
"""

import os
from pathlib import Path

import numpy as np
import torch

from popcosmos_lib.galaxies import parameters
from popcosmos_lib.synthesis import filters, fsps_backend, ssp_grid

__all__ = ["load", "read"]

_CLOUD_EDGES = [0.0, 1e6, 2e6, 3e6, 4e6, 5e6, 7e6]  # [yr] the ages of the Cloudy runs: the light that ionises changes fast
_CELL = 0.025  # [dex] of cells older than 100 Myr: half an isochrone step, so that a bin which cuts a cell moves little light
_LYMAN_EDGE = 912.0  # [Angstrom] up to here FSPS takes starlight for ionising
_PLANCK = 6.6261e-27  # [erg s], as FSPS has it
_LOG_E = np.log10(np.e)
_GAS_FILE = Path("nebular", "ZAU_ND_mist.lines")  # below SPS_HOME


def load(resolution):
    """The grid of one ``SPS_HOME``, read anew when its data or the settings of ``fsps_backend`` change.

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
        If ``SPS_HOME`` does not name an FSPS data folder.
    """
    inputs = {"fsps_data": fsps_backend.data_digest()}
    return ssp_grid.stored("fsps", resolution, lambda: fsps_backend.once(read, resolution), version=1, inputs=inputs)


def read(resolution):
    """The grid, from the FSPS of this process (a worker of ``fsps_backend``); dict of float32 ndarrays, edges in float64."""
    population = fsps_backend.population()
    settings = {"sfh": 0, "logzsol": 0.0, "dust1": 0.0, "dust2": 0.0, "fagn": 0.0, "zred": 0.0, "nebemlineinspec": False}
    for name, value in settings.items():
        population.params[name] = value
    pixels = ssp_grid.pixel_edges(resolution)
    cells, weights, n_cloud = _cells(population.ssp_ages, population.params["dust_tesc"])
    gas, shines = _gas(population, weights, pixels)
    grid = {"wave": np.sqrt(pixels[1:] * pixels[:-1]), "edges": cells, "birth_cloud": cells[n_cloud], "dust": _dust(population, pixels)}
    grid |= _stars(population, weights, shines, pixels) | gas
    return {name: np.asarray(values, np.float64 if name in ("edges", "birth_cloud") else np.float32) for name, values in grid.items()}


def _cells(log_age, log_cloud):
    """Edges of the age cells [yr], the weight of each isochrone in each (n_cell, n_age), and how many lie in the birth cloud.

    FSPS puts an isochrone and all the mass it stands for either inside or outside the cloud. Star formation is constant over the first
    bin of every history, so one edge, just above 10 Myr, parts the mass in the same way; the cell above it holds isochrones outside.
    """
    first, second = (1e9 * edge.item() for edge in parameters.age_edges(torch.tensor(0.0, dtype=torch.float64))[1:3])
    oldest = 1e9 * parameters.age_edges(torch.tensor(0.0, dtype=torch.float64))[-1].item() * 1.0005
    young = log_age <= log_cloud
    inside = np.diff(_hat_integral(log_age, np.array([*_CLOUD_EDGES, first])), axis=0) * young
    outside = _hat_integral(log_age, np.array([first])) * ~young
    n_old = int(np.ceil(np.log10(oldest / second) / _CELL))
    older = np.array([first, *np.geomspace(second, oldest, n_old + 1)])
    mass = np.concatenate([inside, outside, np.diff(_hat_integral(log_age, older), axis=0)])
    edges = np.concatenate([_CLOUD_EDGES, [inside.sum()], older])
    return edges, mass / mass.sum(-1, keepdims=True), len(inside)


def _hat_integral(log_age, ages):
    """Integral over age, from zero to each of ``ages``, of the weight that each isochrone has in linear interpolation in log age."""
    knots = 10**log_age
    upto = ages[:, None].clip(knots[:-1], knots[1:])
    length = upto - knots[:-1]
    above = (upto * (np.log10(upto / knots[:-1]) - _LOG_E) + knots[:-1] * _LOG_E) / np.diff(log_age)
    total = np.zeros((len(ages), len(knots)))
    total[:, 1:] += above
    total[:, :-1] += length - above
    total[:, 0] += ages.clip(max=knots[0])  # FSPS holds the first isochrone back to age zero
    total[:, -1] += (ages - knots[-1]).clip(min=0.0)
    return total


def _to_pixels(wave, light, pixels):
    """L_nu of FSPS (..., n_wave) [Lsun/Hz] to pixels [1e-15 Lsun/Hz]."""
    return ssp_grid.to_pixels(wave, fsps_backend.SOLAR * light * (filters.LIGHT / wave**2), pixels)


def _photons(wave, light):
    """Ionising photons of L_nu (..., n_wave) as FSPS counts them [1e46/s]."""
    blue = wave <= _LYMAN_EDGE
    nu = filters.LIGHT / wave[blue]
    return -1e-46 * fsps_backend.LSUN / _PLANCK * np.trapezoid(light[..., blue] / nu, nu, axis=-1)


def _stars(population, weights, shines, pixels):
    """Stellar part of the grid, at the metallicities of FSPS within the bounds of log10Z, smoothed as ``pmetals = -99`` asks."""
    wave, log_z = population.wavelengths, np.log10(population.zlegend)
    light, mass, log_lbol = population._all_ssp_spec(update=True)  # (n_wave, n_age, n_z), then (n_age, n_z)
    kernel = np.zeros((len(log_z), len(log_z)))
    for i in range(len(log_z)):
        for share, j in ((0.25, i - 1), (0.5, i), (0.25, i + 1)):
            kernel[i, np.clip(j, 0, len(log_z) - 1)] += share
    low, high = parameters.BOUNDS[parameters.INDEX["log10Z"]].numpy() + np.log10(ssp_grid.SOLAR_STARS)
    kept = np.arange(np.flatnonzero(log_z <= low)[-1], np.flatnonzero(log_z >= high)[0] + 1)
    powering = weights[: _n_powering(weights, shines)]
    spectra, ionising = [], []
    for row in kernel[kept]:
        spectrum = np.tensordot(light, row, axes=(2, 0)).T  # (n_age, n_wave)
        ionising.append(powering @ (shines * _photons(wave, spectrum)))
        spectrum[np.ix_(shines, wave <= _LYMAN_EDGE)] = 0.0  # these photons come back as nebular emission
        spectra.append(_to_pixels(wave, weights @ spectrum, pixels))
    bolometric = fsps_backend.SOLAR * 10 ** (kernel[kept] @ log_lbol.T) @ weights.T
    grid = {"log_z": log_z[kept], "stars": np.stack(spectra), "ionising": np.stack(ionising), "bolometric": bolometric}
    return grid | {"surviving": kernel[kept] @ (weights @ mass).T}


def _n_powering(weights, shines):
    """Number of cells, from the youngest, with an isochrone whose photons power nebular emission."""
    return int(np.flatnonzero(weights[:, shines].sum(-1) > 0)[-1]) + 1


def _gas(population, weights, pixels):
    """Nebular part of the grid, per ionising photon, and which isochrones have it.

    FSPS adds it to a population; the difference to the population without it, over the photons of that, does not depend on the stars but
    through how the photons of a cell are spread over its ages.
    """
    header = [line.split() for line in (Path(os.environ["SPS_HOME"]) / _GAS_FILE).read_text().splitlines() if len(line.split()) == 3]
    log_zgas, log_u = (np.array(sorted({float(words[column]) for words in header})) for column in (0, 2))
    wave = population.wavelengths
    population.params["add_neb_emission"] = False
    bare = population.get_spectrum()[1]
    population.params["add_neb_emission"] = True
    continuum, lines, powering, rate = [], [], None, None
    for metals in log_zgas:
        for ionisation in log_u:
            population.params["gas_logz"], population.params["gas_logu"] = metals, ionisation
            light = population.get_spectrum()[1]
            strength = population.emline_luminosity
            if powering is None:
                shines = strength.sum(-1) > 1e-50  # elsewhere FSPS gives its tiny number
                powering = weights[: _n_powering(weights, shines)]
                rate = (powering @ (shines * _photons(wave, bare)))[:, None]
                bare[np.ix_(shines, wave <= _LYMAN_EDGE)] = 0.0
            continuum.append(_to_pixels(wave, powering @ (light - bare).clip(min=0.0) / rate, pixels))
            lines.append(fsps_backend.SOLAR * (powering @ (strength * shines[:, None])) / rate)
    order = population.emline_wavelengths.argsort()
    shape = (len(log_zgas), len(log_u), len(powering), -1)
    grid = {"log_zgas": log_zgas + np.log10(ssp_grid.SOLAR_GAS), "log_u": log_u, "line_wave": population.emline_wavelengths[order]}
    return grid | {"continuum": np.reshape(continuum, shape), "lines": np.reshape(lines, shape)[..., order]}, shines


def _dust(population, pixels):
    """Dust emission of 1 Lsun: what FSPS adds to a young population inside a birth cloud and without diffuse dust to absorb it again."""
    population.params["add_neb_emission"], population.params["dust1"] = False, 1.0
    light = []
    for emission in (True, False):
        population.params["add_dust_emission"] = emission
        light.append(population.get_spectrum(tage=0.003)[1])
    population.params["dust1"] = 0.0
    shape = _to_pixels(population.wavelengths, (light[0] - light[1]).clip(min=0.0), pixels)
    return shape / (1e-15 * shape * -np.diff(filters.LIGHT / pixels)).sum()
