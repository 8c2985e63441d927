"""Photometric bands: their transmission curves, synthetic AB photometry, fluxes and magnitudes.

`Filters` are the tabulated curves, with a slow and exact average of one spectrum; `Passbands` are the same curves tabulated for batches
of redshifted spectra. Curves come from sedpy and speclite under the names those packages use; a curve that neither has is analytic, its
published mean wavelength and width in ``_ANALYTIC``. Introduced in notebook 01; the 26 COSMOS2020 bands are those of
Thorp et al. (2025) sect. 2.1.

Fluxes here are microjanskys: m_AB = 23.9 - 2.5 log10 F.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from popcosmos_lib.galaxies import interpolation

__all__ = [
    "AB_SOLAR", "AB_ZERO", "COSMOS26", "LIGHT", "SHORT", "SURVEYS", "Filters", "Passbands", "beside", "flux_from_magnitude", "load",
    "magnitude_from_flux",
]  # fmt: skip

LIGHT = 2.99792458e18  # speed [Angstrom / s]
_INTERMEDIATE = "427 464 484 505 527 574 624 679 709 738 767 827".split()
COSMOS26 = [
    "u_megaprime_sagem", *[f"hsc_{band}" for band in "grizy"], *[f"uvista_{band}_cosmos" for band in ("y", "j", "h", "ks")],
    *[f"ia{name}_cosmos" for name in _INTERMEDIATE], "NB711.SuprimeCam", "NB816.SuprimeCam", "irac1_cosmos", "irac2_cosmos",
]  # fmt: skip
SHORT = [
    *"ugrizyYJH", "Ks", "IB427", "IB464", "IA484", "IB505", "IA527", "IB574", "IA624", "IA679", "IB709", "IA738", "IA767", "IB827",
    "NB711", "NB816", "Ch1", "Ch2",
]  # fmt: skip
SURVEYS = {
    "cosmos": COSMOS26,
    # KiDS and VIKING. The ugri of KiDS are OmegaCAM curves, which neither package has: SDSS u, g, r, i stand in (the same nominal system,
    # centres within 3 %); VIKING ZYJHKs are the true curves.
    "kids": [*[f"sdss_{band}0" for band in "ugri"], *[f"vista_vircam_{band}" for band in ("Z", "Y", "J", "H", "Ks")]],
    "lsst": [f"lsst_baseline_{band}" for band in "ugrizy"],
    # speclite has the transmission of Euclid's filters without telescope and detectors, which matters for VIS: 2 % too far to the red
    # (NISP: 0.2 %). Where that is too much, give a folder with the curves that ESA publishes.
    "euclid": [f"Euclid-{band}" for band in ("VIS", "Y", "J", "H")],
    "roman": [f"roman_wfi_f{name}" for name in "062 087 106 129 146 158 184 213".split()],
    "decam": [f"decam_{band}" for band in "ugrizY"],
}

# Upstream name -> name in sedpy ("group-band" in speclite).
_CURVES = {
    "u_megaprime_sagem": "cfht_megacam_us_9301",
    **{f"uvista_{band.lower()}_cosmos": f"vista_vircam_{band}" for band in ("Y", "J", "H", "Ks")},
    **{f"ia{name}_cosmos": f"subaru_suprimecam_ia{name}" for name in _INTERMEDIATE},
    "irac1_cosmos": "spitzer_irac_ch1",
    "irac2_cosmos": "spitzer_irac_ch2",
}
# Mean wavelength [Angstrom], full width at half maximum [Angstrom] (Weaver et al. 2022, ApJS 258, 11, table 1), exponent of the profile:
# 2 is a Gaussian, larger is flatter-topped with steeper edges, as the interference coating of NB816 is.
_ANALYTIC = {"NB711.SuprimeCam": (7121.0, 72.0, 2.0), "NB816.SuprimeCam": (8150.0, 120.0, 3.0)}

_SAMPLES = 512  # per curve, uniform in ln wavelength
_FLOOR = 1e-2  # of the peak; a curve ends where it first falls below, which leaves out far leaks such as that of CFHT u* at 5100 Angstrom
_BLUEST = 1000.0  # [Angstrom] no curve lies below: one that seems to is in nanometres or micrometres


AB_ZERO = -2.5 * math.log10(1e-15 * 3.828e33 / (4 * math.pi * (10 * 3.0856775814913673e18) ** 2)) - 48.60  # AB of 1e-15 Lsun/Hz at 10 pc
AB_SOLAR = AB_ZERO - 37.5  # AB of 1 Lsun/Hz at 10 pc

_PHASES = 16  # positions between two pixels at which weights are tabulated
_FINE = 8  # samples per phase of the integrals behind the table


@dataclass(frozen=True)
class Filters:
    """Transmission curves on grids uniform in ln wavelength.

    Attributes
    ----------
    names : tuple of str, length n_band
    wave : Tensor of shape (n_band, n_sample)
        Wavelength [Angstrom], from the blue to the red edge of each band.
    transmission : Tensor of shape (n_band, n_sample)
        Response per photon, peak 1.
    effective : Tensor of shape (n_band,)
        Mean wavelength, weighted by the transmission: the integral of lambda T over that of T [Angstrom]. The pivot wavelength is bluer
        by 0.1 to 1 % for broad bands, 2 % for the widest.
    """

    names: tuple
    wave: torch.Tensor
    transmission: torch.Tensor
    effective: torch.Tensor

    def average(self, wave: np.ndarray, flux: np.ndarray) -> torch.Tensor:
        """Mean f_nu of a sampled spectrum in each band, by trapezoids on the union of both samplings.

        Parameters
        ----------
        wave : ndarray of shape (n_wave,)
            Observed wavelength [Angstrom], increasing.
        flux : ndarray of shape (n_wave,)
            Flux density per frequency [any unit]; zero outside the range of ``wave``.

        Returns
        -------
        Tensor of shape (n_band,)
            Mean flux density [unit of ``flux``]. Slow and exact: the reference for `Passbands`.
        """
        means = []
        for band_wave, transmission in zip(self.wave.numpy(), self.transmission.numpy(), strict=True):
            inside = wave[(wave > band_wave[0]) & (wave < band_wave[-1])]
            nodes = np.union1d(band_wave, inside)
            response = np.interp(nodes, band_wave, transmission)
            spectrum = np.interp(nodes, wave, flux, left=0.0, right=0.0)
            means.append(np.trapezoid(spectrum * response, np.log(nodes)) / np.trapezoid(response, np.log(nodes)))
        return torch.tensor(means)


def load(survey: str | Sequence[str]) -> Filters:
    """Read the transmission curves of a survey.

    Parameters
    ----------
    survey : str or list of str
        A survey of ``SURVEYS``; or the path of a folder, each text file of which is a band, taken from blue to red; or a list of bands:
        names of ``COSMOS26``, any sedpy name, any speclite name (``group-band``), or paths of text files. Such a file holds wavelength
        [Angstrom] and response per photon in its first two columns, with ``#`` before comments, as sedpy's ``.par`` files do; or it is
        a table of kcorrect (``typedef``, then rows with columns ``lambda`` and ``pass``).

    Returns
    -------
    Filters
        Bands are named as they were asked for, those of a folder by their path.

    Raises
    ------
    ValueError
        If a survey or a band is unknown to both packages and to the file system, or a file holds no curve in Angstrom.
    """
    names = _names(survey) if isinstance(survey, str) else list(survey)
    waves, responses = [], []
    for name in names:
        wave, response = _curve(name)
        outside = np.flatnonzero(response < _FLOOR * response.max())
        side = np.searchsorted(outside, response.argmax())
        bounds = [outside[side - 1] + 1 if side else 0, outside[side] - 1 if side < len(outside) else -1]
        grid = np.geomspace(*wave[bounds], _SAMPLES)
        waves.append(grid)
        responses.append(np.interp(grid, wave, response).clip(min=0.0) / response.max())
    wave, transmission = torch.as_tensor(np.stack(waves)), torch.as_tensor(np.stack(responses))
    effective = (transmission * wave**2).sum(-1) / (transmission * wave).sum(-1)  # d lambda = lambda d ln lambda
    return Filters(tuple(names), wave, transmission, effective)


def beside(curve: str, folder: Path) -> str:
    """The name of a curve for ``load``: with its path if it is a file of the folder that it was named in, else as it is.

    Parameters
    ----------
    curve : str
    folder : Path

    Returns
    -------
    str
    """
    return str(folder / str(curve)) if (folder / str(curve)).is_file() else str(curve)


def _names(survey):
    """Bands of a survey or of a folder."""
    if survey in SURVEYS:
        return SURVEYS[survey]
    if not os.path.isdir(survey):
        raise ValueError(f"unknown survey {survey!r}: use one of {', '.join(SURVEYS)}, a folder of curves, or a list of band names")
    curves = {str(path): _read(path) for path in Path(survey).iterdir() if path.suffix in (".par", ".txt", ".dat", ".res")}
    if not curves:
        raise ValueError(f"no curves in {survey}: a band is a file that ends in .par, .txt, .dat or .res")
    return sorted(curves, key=lambda name: np.average(curves[name][0], weights=curves[name][1]))


def _curve(name):
    """Wavelength [Angstrom] and response per photon of one band, as its source gives them."""
    if name in _ANALYTIC:
        centre, width, exponent = _ANALYTIC[name]
        scale = width / 2 / np.log(2.0) ** (1 / exponent)
        wave = centre + np.linspace(-2.0, 2.0, 801) * width
        return wave, np.exp(-(np.abs((wave - centre) / scale) ** exponent))
    source = _CURVES.get(name, name)
    if os.path.isfile(source):
        return _read(source)
    if "-" in source:
        from speclite.filters import load_filter

        try:
            curve = load_filter(source)
        except ValueError as error:
            raise _unknown(name) from error
        return np.asarray(curve.wavelength), np.asarray(curve.response)
    from sedpy.observate import Filter

    try:
        curve = Filter(source)
    except (OSError, ValueError, AssertionError) as error:
        raise _unknown(name) from error
    return curve.wavelength, curve.transmission


def _read(path):
    """Wavelength [Angstrom] and response of a text file."""
    text = re.sub(r"#.*", "", Path(path).read_text())
    table = re.search(r"typedef\s+struct\s*\{(.*?)\}\s*(\w+)\s*;", text, re.S)
    columns, rows = [0, 1], text.splitlines()
    try:
        if table:  # each row begins with the name of the table
            fields = re.findall(r"(\w+)\s*;", table[1])
            columns = [fields.index(name) + 1 for name in ("lambda", "pass")]
            rows = [row for row in rows if row.split()[:1] == [table[2]]]
        wave, response = np.array([[float(row.split()[k]) for k in columns] for row in rows if row.strip()]).T
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is no transmission curve: each line needs a wavelength [Angstrom] and a response") from error
    order = wave.argsort()
    wave, response = wave[order], response[order].clip(min=0.0)
    if not response.max() > 0 or np.average(wave, weights=response) < _BLUEST:
        raise ValueError(f"{path} has no response above {_BLUEST:g} Angstrom: are its wavelengths in other units?")
    return wave, response


def _unknown(name):
    return ValueError(f"unknown band {name!r}: give a sedpy or speclite name, or a text file of wavelength [Angstrom] and transmission")


def flux_from_magnitude(magnitude: torch.Tensor) -> torch.Tensor:
    """AB magnitude to flux [microjansky]; any shape."""
    return 10.0 ** (0.4 * (23.9 - magnitude))


def magnitude_from_flux(flux: torch.Tensor) -> torch.Tensor:
    """Flux [microjansky] to AB magnitude; NaN where the flux is not positive, any shape."""
    return 23.9 - 2.5 * torch.where(flux > 0, flux, torch.nan).log10()


class Passbands(nn.Module):
    """Mean flux density of redshifted spectra in a set of bands.

    Parameters
    ----------
    bands : Filters
    wave : Tensor of shape (n_wave,)
        Rest wavelength of the pixels [Angstrom], uniform in ln wavelength.

    Attributes
    ----------
    reach : int
        Pixels that the bands look at, at any redshift.
    edges : Tensor of shape (n_band, 2)
        First and last wavelength of each band [Angstrom].
    effective : Tensor of shape (n_band,)
        Mean wavelength, weighted by the transmission per unit of ln wavelength [Angstrom].
    """

    def __init__(self, bands: Filters, wave: torch.Tensor) -> None:
        super().__init__()
        start, self.step = math.log(wave[0]), math.log(wave[-1] / wave[0]) / (len(wave) - 1)
        kernels = [_kernel(*curve, start, self.step) for curve in zip(bands.wave, bands.transmission, strict=True)]
        pixels, weights = zip(*kernels, strict=True)
        self.reach = int(max(pixel[-1] for pixel in pixels)) + 1
        self.register_buffer("pixel", torch.as_tensor(np.concatenate(pixels)), persistent=False)
        member = torch.block_diag(*(torch.ones(len(pixel), 1) for pixel in pixels))
        density = bands.transmission.sum(-1)
        tables = {
            "table": torch.as_tensor(np.concatenate(weights, -1)),  # (phase, column)
            "member": member,
            "edges": bands.wave[:, [0, -1]],
            "effective": (bands.transmission * bands.wave).sum(-1) / density,
        }
        for name, value in tables.items():
            self.register_buffer(name, value.to(torch.float32), persistent=False)

    def at(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels and weights that integrate a spectrum over each band at a redshift.

        Parameters
        ----------
        z : Tensor of shape (n,)

        Returns
        -------
        pixel : Tensor of shape (n, n_column), int64
            Pixels of the rest-frame grid.
        weight : Tensor of shape (n, n_column)
            Their weights; ``(light[pixel] * weight) @ member`` is the mean flux density of each band. Differentiable in z.
        """
        shift = torch.log1p(z) / self.step
        whole = shift.detach().floor()
        index, weight = interpolation.spline((shift - whole) * _PHASES + 1, len(self.table))
        return (self.pixel - whole.long()[:, None]).clamp_min(0), interpolation.weighted_rows(index, self.table, weight)

    def forward(self, light: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Mean of spectra (n, n_wave) seen at redshifts (n,), (n, n_band), in the unit of ``light``; 1 + z of its interval is left out."""
        pixel, weight = self.at(z)
        return (light.gather(1, pixel) * weight) @ self.member


def _kernel(wave, transmission, start, step):
    """Pixels (n,) that a band can touch, counted at rest, and their weights (phase, n), each row summing to one."""
    fine = step / (_PHASES * _FINE)
    blue, red = ((math.log(edge) - start) / step for edge in (wave[0], wave[-1]))
    first, last = math.floor(blue) - 2, math.ceil(red) + 1
    grid = np.arange(first - 2, last + 3, 1 / (_PHASES * _FINE))  # in pixels
    response = np.interp(np.exp(start + grid * step), wave, transmission, left=0.0, right=0.0)
    hat = 1 - np.abs(np.arange(-_PHASES * _FINE, _PHASES * _FINE + 1)) * fine / step
    smooth = np.convolve(response, hat, "same")
    pixel = np.arange(first, last + 1)
    phase = np.arange(-1, _PHASES + 2)[:, None] / _PHASES
    weight = smooth[np.rint((pixel + phase - grid[0]) * _PHASES * _FINE).astype(int)]
    return pixel, weight / weight.sum(-1, keepdims=True)
