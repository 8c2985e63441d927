"""The part of photometry that is cheap to compute, tabulated per band: what the emulator's network starts from.

For a fixed history the light of a galaxy is linear in the mass of its age bins, so the flux of each bin through each band is a table in
metallicity and redshift. Attenuation at the band's mean wavelength, emission lines put through the filter curves where they fall, dust
re-emission and torus by energy balance complete a first estimate. What it misses is smooth: the slope of the attenuation inside a band, the
answer of the nebular continuum to the gas. That rest is left to the network of ``emulator``. Introduced in notebook 02.

Fluxes here are per Msun formed and in the synthesiser's unit, 1e-15 Lsun/Hz, with the 1 + z of the redshifted frequency interval in them.

References
----------
Thorp et al. (2025), arXiv:2506.12122, sect. 3.2 (the model); Leistedt et al. (2023), arXiv:2207.07673, sect. 3.4 (lines through bands).
"""

import math

import torch
from torch import nn

from popcosmos_lib import dust, igm, parameters, ssp

__all__ = ["Features", "magnitude", "tabulate"]

_AB_ZERO = -2.5 * math.log10(1e-15 * 3.828e33 / (4 * math.pi * (10 * 3.0856775814913673e18) ** 2)) - 48.60  # AB of 1e-15 Lsun/Hz at 10 pc
_LIGHT = 2.99792458e18  # [Angstrom / s]
_STEP = 0.0025  # of the redshift tables in ln(1 + z), a quarter of the width of the narrowest band
_EDGES = (300.0, 1500.0, 2200.0, 3000.0, 4000.0, 6000.0, 10000.0, 30000.0)  # rest-frame cells of the energy balance [Angstrom]
_CENTRES = (1200.0, 1830.0, 2570.0, 3480.0, 4900.0, 7700.0, 15000.0)
_LINES = 48  # strongest lines, computed one by one
_REFERENCE_GAS = (-0.3, -2.5)  # log10Zgas and log10Ugas whose nebular continuum is in the tables
_FLOOR = 1e-20  # [1e-15 Lsun/Hz], twenty decades below a galaxy: keeps logarithms finite beyond the Lyman limit
_DROPOUT = 6.0  # colour [mag] beyond which a band holds no light worth a correction
_SOFT = 1e-4  # keeps the square root of dust2 and the logarithm of mass fractions differentiable at zero


def magnitude(flux):
    """AB magnitude at 10 pc of a flux in this module's unit [mag]."""
    return _AB_ZERO - 2.5 * torch.log10(flux + _FLOOR)


@torch.no_grad()
def tabulate(synthesiser):
    """Tables that ``Features`` reads.

    Parameters
    ----------
    synthesiser : sps.Synthesiser
        Whose bands and stellar populations are tabulated.

    Returns
    -------
    dict of str to Tensor
        Nodes ``log_z``, ``log_zgas``, ``log_u``, ``torus_depth``; ``light`` (n_z, n_redshift, 8, n_band + 8): flux per band, energy in the
        cells of the energy balance [Lsun] and bolometric light [Lsun] of each age component per Msun formed in it, divided by ``unit``
        (8, n_band + 8); ``dust`` (n_redshift, n_band) and ``torus`` (n_tau, n_redshift, n_band): flux of 1 Lsun; ``lines`` (n_z, n_zgas,
        n_u, n_line) [Lsun] per Msun formed in the last 10 Myr; ``line_wave`` (n_line,) [Angstrom]; ``response`` (n_wave, n_band): flux of a
        line of 1 Lsun, at steps ``response_grid`` = (first, step) in ln of the observed wavelength; ``effective`` (n_band,) mean wavelength
        [Angstrom]. The three large tables are in half precision, 0.0005 mag.
    """
    s = synthesiser
    n_z, young = s.ionising.shape
    redshift = torch.expm1(torch.arange(0.0, math.log1p(float(parameters.BOUNDS[-1, 1])) + _STEP, _STEP)).to(s.wave)
    gas = [int((nodes - value).abs().argmin()) for nodes, value in zip((s.log_zgas, s.log_u), _REFERENCE_GAS, strict=True)]
    continuum = s.continuum.view(len(s.log_zgas), len(s.log_u), young, -1)[gas[0], gas[1]]
    stars = torch.cat([s.young.view(n_z, young, -1) + s.ionising[..., None] * continuum, s.old.view(n_z, -1, len(s.wave))], 1)
    light, emission = [], []
    for z in redshift.split(16):
        shares = _shares(z, s.edges)
        spectra = torch.einsum("rca,zaw->rzcw", shares, stars)
        through = igm.transmission(s.wave, z)[:, None, None]
        energy = torch.stack([spectra[..., cell] @ s.energy[cell] for cell in _cells(s.wave)], -1)
        bolometric = torch.einsum("rca,za->rzc", shares, s.bolometric)
        light.append(torch.cat([_band_flux(s, spectra * through, z), energy, bolometric[..., None]], -1))
        emission.append(_band_flux(s, torch.cat([s.dust[None], s.torus]).expand(len(z), -1, -1), z))
    light, emission = torch.cat(light).transpose(0, 1).contiguous(), torch.cat(emission).transpose(0, 1).contiguous()
    unit = light.amax((0, 1))
    youngest = _shares(redshift[:1], s.edges)[0, 0, :young]
    lines = torch.einsum("a,za,gual->zgul", youngest, s.ionising, s.emission.view(len(s.log_zgas), len(s.log_u), young, -1))
    chosen = _strongest(lines, s.line_wave)
    return {
        "log_z": s.log_z, "log_zgas": s.log_zgas, "log_u": s.log_u, "torus_depth": s.torus_depth,
        "light": (light / unit).half(), "unit": unit, "dust": emission[0], "torus": emission[1:].half(),
        "lines": lines[..., chosen], "line_wave": s.line_wave[chosen], **_response(s, chosen),
        "effective": (s.weight * s.node.exp()).sum(-1),
    }  # fmt: skip


def _shares(z, edges):
    """Share of each age component's mass in each age cell of the synthesiser, (n, 8, n_cell)."""
    ages = parameters.age_edges(z)
    ages = torch.cat([ages[:, :1], torch.full_like(ages[:, :1], 1e-9 * ssp.BIRTH_CLOUD), ages[:, 1:]], -1)
    overlap = torch.minimum(ages[:, 1:, None], edges[1:]) - torch.maximum(ages[:, :-1, None], edges[:-1])
    overlap = overlap.clamp_min(0.0)
    return overlap / overlap.sum(-1, keepdim=True)


def _cells(wave):
    return [(wave >= low) & (wave < high) for low, high in zip(_EDGES[:-1], _EDGES[1:], strict=True)]


def _band_flux(s, spectra, z):
    """Mean flux of spectra (n, ..., n_wave) seen at redshifts (n,) through each band, (n, ..., n_band)."""
    position = (s.node.flatten() - torch.log1p(z)[:, None] - s.log_start) / s.log_step
    below = position.floor().long().clamp(0, len(s.wave) - 2)
    rows = []
    for spectrum, i, part in zip(spectra, below, position - below, strict=True):
        nodes = torch.lerp(spectrum[..., i], spectrum[..., i + 1], part)
        rows.append((nodes.unflatten(-1, s.node.shape) * s.weight).sum(-1))
    return torch.stack(rows) * (1 + z).view(-1, *[1] * rows[0].ndim)


def _strongest(lines, wave):
    """Indices of the lines that matter most anywhere on the grid, ordered by wavelength; those that no band can see are left out."""
    visible = (wave > 1200.0) & (wave < 5e4)
    share = (lines / lines[..., visible].sum(-1, keepdim=True)).amax((0, 1, 2)) * visible
    chosen = share.topk(_LINES).indices
    return chosen[wave[chosen].argsort()]


def _response(s, chosen):
    """The synthesiser's line response with the unit of a flux per Lsun, on its own grid in ln wavelength."""
    line = int(chosen[0])  # any line tells where the grid starts
    step = 1.0 / 4000
    start = float(s.line_wave[line].log()) - float(s.line_position[line]) * step
    wave = torch.exp(start + step * torch.arange(len(s.line_response), dtype=torch.float64)).to(s.wave)
    return {"response": (s.line_response * wave[:, None] * (1e15 / _LIGHT)).half(), "response_grid": torch.tensor([start, step]).to(s.wave)}


class Features(nn.Module):
    """First estimate of the photometry and the inputs of the network.

    Parameters
    ----------
    tables : dict of str to Tensor
        From ``tabulate``; kept as buffers, so that an emulator needs neither the stellar populations nor the filter curves again.

    Attributes
    ----------
    size : int
        Number of inputs of the network.
    """

    def __init__(self, tables):
        super().__init__()
        for name, table in tables.items():
            self.register_buffer(name, table)
        self.register_buffer("centres", torch.tensor(_CENTRES).to(self.effective), persistent=False)
        self.size = 24 + 3 * len(self.effective)
        self._blue = int((self.line_wave <= igm.LYMAN_ALPHA * 1.0001).sum())  # lines that the intergalactic medium absorbs
        self._start, self._step = self.response_grid.tolist()

    def forward(self, theta):
        """First estimate for unit mass.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            SPS parameters; differentiable, finite gradients at dust2 = 0 too.

        Returns
        -------
        inputs : Tensor of shape (n, size)
            What the network sees; not standardised.
        continuum, lines : Tensor of shape (n, n_band)
            Flux of the continuum and of the emission lines; ``magnitude`` of their sum is the estimate.
        """
        p = {name: parameters.column(theta, name) for name in parameters.NAMES}
        shift = torch.log1p(p["z"])
        mass, light = self._mass(theta), self._light(p["log10Z"], shift)
        n_band = len(self.effective)
        young, old = mass[:, :1] * light[:, 0, :-1], (mass[:, 1:, None] * light[:, 1:, :-1]).sum(1)  # (n, n_band + 7)
        bolometric = (mass * light[..., -1]).sum(-1)

        cloud = p["dust2"] * p["dust1_fraction"]
        wave = torch.cat([self.effective * torch.exp(-shift)[:, None], self.centres.expand(len(theta), -1)], -1)
        diffuse = torch.exp(-p["dust2"][:, None] * dust.diffuse(wave, p["dust_index"]))
        young_out, old_out = young * diffuse * torch.exp(-cloud[:, None] * dust.birth_cloud(wave)), old * diffuse
        lines, lines_out = self._lines(p, mass[:, 0], cloud)
        absorbed = (young + old - young_out - old_out)[:, n_band:].sum(-1) + (lines - lines_out).sum(-1)
        torus = torch.einsum("nt,ntb->nb", *self._torus(p["lntauAGN"], shift)) * (p["lnfAGN"].exp() * bolometric)[:, None]
        infrared = absorbed[:, None] * self._rows(self.dust, shift) + torus * diffuse[:, :n_band]
        continuum = young_out[:, :n_band] + old_out[:, :n_band] + infrared

        estimate, level = magnitude(continuum), magnitude(continuum.mean(-1, keepdim=True))
        colour = (estimate - level).clamp_max(_DROPOUT)
        share = torch.cat([young_out[:, :n_band], infrared], -1) / (continuum.repeat(1, 2) + _FLOOR)
        fractions = torch.log10(parameters.mass_fractions(theta) + _SOFT)
        root = torch.sqrt(p["dust2"].clamp_min(0.0) + _SOFT)
        inputs = torch.cat([theta[:, 1:8], root[:, None], theta[:, 9:15], shift[:, None], (root * p["dust1_fraction"])[:, None], fractions,
                            level, colour, share], -1)  # fmt: skip
        return inputs, continuum, self._through_bands(lines_out, p["z"], shift)

    def _mass(self, theta):
        """Mass formed in each age component, (n, 8)."""
        bins = parameters.mass_fractions(theta)
        cut = 1e-9 * ssp.BIRTH_CLOUD / 0.03
        return torch.cat([bins[:, :1] * cut, bins[:, :1] * (1 - cut), bins[:, 1:]], -1)

    def _light(self, log_z, shift):
        """Table of the age components at a metallicity and a redshift, (n, 8, n_band + 8)."""
        (i, u), (j, v) = _place(log_z, self.log_z), self._redshift(shift)
        flat, count = self.light.flatten(0, 1), self.light.shape[1]
        rows = torch.stack([i * count + j, i * count + j + 1, (i + 1) * count + j, (i + 1) * count + j + 1], -1)
        weights = torch.stack([(1 - u) * (1 - v), (1 - u) * v, u * (1 - v), u * v], -1)
        return torch.einsum("nk,nkcb->ncb", weights, flat[rows].to(weights)) * self.unit

    def _redshift(self, shift):
        position = (shift / _STEP).clamp(0, self.dust.shape[0] - 1.001)
        below = position.detach().long()
        return below, position - below

    def _rows(self, table, shift):
        j, v = self._redshift(shift)
        return torch.lerp(table[j], table[j + 1], v[:, None])

    def _torus(self, log_depth, shift):
        """Interpolation weights in depth (n, 2), and the two spectra's flux per band (n, 2, n_band)."""
        i, u = _place(log_depth.exp(), self.torus_depth)
        j, v = self._redshift(shift)
        pair = torch.stack([i, i + 1], -1)
        low, high = self.torus[pair, j[:, None]], self.torus[pair, j[:, None] + 1]
        return torch.stack([1 - u, u], -1), torch.lerp(low.to(u), high.to(u), v[:, None, None])

    def _lines(self, p, youngest, cloud):
        """Line luminosities before and after dust, (n, n_line) [Lsun]."""
        (i, u), (j, v), (k, w) = _place(p["log10Z"], self.log_z), _place(p["log10Zgas"], self.log_zgas), _place(p["log10Ugas"], self.log_u)
        value = 0.0
        for a, b, c in torch.cartesian_prod(*[torch.arange(2)] * 3).tolist():
            weight = (u if a else 1 - u) * (v if b else 1 - v) * (w if c else 1 - w) * youngest
            value = value + weight[:, None] * self.lines[i + a, j + b, k + c]
        depth = p["dust2"][:, None] * dust.diffuse(self.line_wave, p["dust_index"]) + cloud[:, None] * dust.birth_cloud(self.line_wave)
        return value, value * torch.exp(-depth)

    def _through_bands(self, lines, z, shift):
        """Flux of the lines in each band, after the intergalactic medium, (n, n_band)."""
        if self._blue:  # the red half of Lyman alpha escapes, as in the synthesiser
            through = 0.5 * (1 + igm.transmission(self.line_wave[: self._blue], z))
            lines = torch.cat([lines[:, : self._blue] * through, lines[:, self._blue :]], -1)
        position = ((self.line_wave.log() + shift[:, None] - self._start) / self._step).clamp(0, len(self.response) - 1.001)
        below = position.detach().long()
        part = (position - below)[..., None]
        return torch.einsum("nl,nlb->nb", lines, torch.lerp(self.response[below].to(part), self.response[below + 1].to(part), part))


def _place(x, nodes):
    """Node below each x and the fraction of the way to the next, held constant beyond the ends; differentiable in x."""
    x = x.clamp(nodes[0], nodes[-1])
    below = (torch.searchsorted(nodes, x.detach().contiguous(), right=True) - 1).clamp(0, len(nodes) - 2)
    return below, (x - nodes[below]) / (nodes[below + 1] - nodes[below])
