"""How the synthesis differs from the real FSPS on the same stellar populations, one component of the light at a time.

``reference`` is a loaded ``fsps_backend.Reference`` and ``grid`` the data of ``ssp.load("fsps")``, both on the home of ``fsps_home``. Every
comparison gives magnitudes of ours minus theirs. Bands count where they do not reach beyond the Lyman limit and are brighter than 35 mag.
Asserted in tests/physics/test_fsps.py, printed by benchmarks/agreement.py.
"""

import fsps_home
import numpy as np
import torch

from popcosmos_lib.galaxies import cosmology, parameters, universe
from popcosmos_lib.synthesis import filters, igm, sps

__all__ = ["OFF", "composite", "dust_emission", "magnitudes", "nebular", "population", "synthesiser", "torus"]

OFF = ("nebular", "dust", "agn")
_Z = parameters.INDEX["z"]
_LIGHT = 2.99792458e18  # Angstrom / s


def population():
    """60 galaxies of the literature universe and 30 anywhere within the bounds, (90, 16) in float64."""
    generator = torch.Generator().manual_seed(3)
    low, high = parameters.BOUNDS.T
    anywhere = low + (high - low) * torch.rand(30, 16, generator=generator, dtype=torch.float64)
    return torch.cat([universe.sample(60, generator=generator).double(), anywhere])


def synthesiser(grid, without=()):
    """This library's synthesis on the populations of FSPS, in float64, some emission left out."""
    dark = {"nebular": ("continuum", "lines"), "dust": ("dust",), "agn": ()}
    empty = {name: 0 * grid[name] for part in without for name in dark[part]}
    made = sps.Synthesiser(filters.load("cosmos"), grid | empty).double()
    made.torus *= "agn" not in without
    return made


def composite(reference, grid, theta):
    """Rest-frame spectra from 1250 Angstrom to 10 micron with all three off, (n, n_wave) [mag]."""
    wave, light, _ = reference.spectrum(theta, without=OFF)
    return _spectra(synthesiser(grid, OFF).spectrum(theta), wave, light, 1250, 1e5)


def magnitudes(reference, grid, theta):
    """Bands with all three off, each (n_counted,) [mag]: ``all``, and those that see nothing of the Lyman series, ``red``."""
    theirs = reference.magnitudes(theta, without=OFF)
    seen = _visible(reference.filters, theta, theirs)
    difference = synthesiser(grid, OFF).magnitudes(theta) - theirs
    return {"all": difference[seen], "red": difference[seen & _red(reference.filters, theta)]}


def nebular(reference, grid, theta):
    """Bands with nebular emission, each (n_counted,) [mag]: ``all``, ``clear`` of lines, and all with our lines ``drawn`` as FSPS does.

    FSPS draws each line as a Gaussian two pixels wide, which narrow bands see.
    """
    without, bands = ("dust", "agn"), reference.filters
    wave, light, _ = reference.spectrum(theta, without=without)
    theirs = _through(bands, theta, wave, light)
    seen = _visible(bands, theta, theirs)
    ours = synthesiser(grid, without)
    difference = ours.magnitudes(theta) - theirs
    drawn = _through(bands, theta, wave, _draw(ours.spectrum(theta), theta, wave)) - theirs
    return {"all": difference[seen], "clear": difference[seen & _clear_of_lines(bands, theta[:, _Z])], "drawn": drawn[seen]}


def dust_emission(reference, grid, theta, without=("agn",)):
    """Dust light: ``photometry`` clear of lines and of the Lyman series, and ``infrared`` spectra from 30 micron to 1 mm, all in mag."""
    bands = reference.filters
    wave, light, _ = reference.spectrum(theta, without=without)
    theirs = _through(bands, theta, wave, light)
    seen = _visible(bands, theta, theirs) & _clear_of_lines(bands, theta[:, _Z]) & _red(bands, theta)
    ours = synthesiser(grid, without)
    difference = ours.magnitudes(theta) - theirs
    return {"bands": difference[seen], "infrared": _spectra(ours.spectrum(theta), wave, light, 3e5, 1e7)}


def torus(reference, grid, theta, depth=None):
    """Bands with a bright torus (ln fAGN = 0.5), ``dust2`` as it is or set to ``depth``; NaN where they do not count, (n, n_band) [mag]."""
    theta, without = theta.clone(), ("nebular", "dust")
    theta[:, parameters.INDEX["lnfAGN"]] = 0.5
    if depth is not None:
        theta[:, parameters.INDEX["dust2"]] = depth
    theirs = reference.magnitudes(theta, without=without)
    seen = _red(reference.filters, theta) & (theirs < 35)  # FSPS adds the torus after the intergalactic medium
    return torch.where(seen, synthesiser(grid, without).magnitudes(theta) - theirs, torch.nan)


def _spectra(spectrum, wave, light, low, high):
    """Our spectra minus theirs between two wavelengths [Angstrom], at our pixels, (n, n_wave) [mag]."""
    seen = (spectrum.wave > low) & (spectrum.wave < high)
    theirs = np.stack([np.interp(spectrum.wave[seen], wave, row) for row in light])
    return -2.5 * (spectrum.total[:, seen] / torch.as_tensor(theirs)).log10()


def _visible(bands, theta, magnitudes):
    """Bands that do not reach beyond the Lyman limit and are brighter than 35 mag, (n, n_band)."""
    return (bands.wave[:, 0] / (1 + theta[:, _Z, None]) > 912) & (magnitudes < 35)


def _red(bands, theta):
    """Bands that see nothing of the Lyman series, (n, n_band)."""
    return bands.wave[:, 0] / (1 + theta[:, _Z, None]) > 1220


def _clear_of_lines(bands, z):
    """Whether no line of the home lies in a band, or within the five sigma to which FSPS smears it, (n, n_band)."""
    lines = torch.tensor(list(fsps_home.LINES))[:, None, None] * (1 + z[:, None])
    margin = 1 + 10 / 431  # FSPS draws lines two pixels of its library wide; the home has 431 per unit of ln wavelength
    return ((lines < bands.wave[:, 0] / margin) | (lines > bands.wave[:, -1] * margin)).all(0)


def _through(bands, theta, wave, light):
    """Apparent magnitudes of rest-frame spectra [Lsun/Hz], (n, n_band)."""
    z = theta[:, _Z]
    flux = torch.stack([bands.average(wave * (1 + x), row * (1 + x)) for x, row in zip(z.tolist(), light, strict=True)])
    area = 4 * np.pi * (10 * 3.0856775814913673e18) ** 2
    return -2.5 * torch.log10(flux * 3.828e33 / area) - 48.60 + cosmology.distance_modulus(z)[:, None]


def _draw(spectrum, theta, wave):
    """Our spectra at the wavelengths of FSPS with our lines drawn two of its pixels wide, behind the intergalactic medium."""
    drawn, through_hydrogen = [], igm.transmission(torch.as_tensor(wave), theta[:, _Z]).numpy()
    for i in range(len(theta)):
        row = np.interp(wave, spectrum.wave, spectrum.total[i])
        for line, power in zip(spectrum.line_wave.numpy(), spectrum.lines[i].numpy(), strict=True):
            sigma = 2 * np.diff(wave[np.searchsorted(wave, line) - 1 :][:2])[0]
            row += power * line**2 / _LIGHT * np.exp(-0.5 * ((wave - line) / sigma) ** 2) / np.sqrt(2 * np.pi) / sigma
        drawn.append(row * through_hydrogen[i])
    return drawn
