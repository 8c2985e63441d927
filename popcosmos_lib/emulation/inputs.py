"""Inputs of the photometry emulator: a first estimate that is cheap to compute from tables, band by band.

For a fixed history the light of a galaxy is linear in the mass of its age bins, so the flux of each bin through each band is a table in
metallicity and redshift. Attenuation at the band's mean wavelength, emission lines put through the filter curves where they fall, dust
re-emission and torus by energy balance complete a first estimate. Its error is smooth (the slope of the attenuation within a band, the
dependence of the nebular continuum on the gas) and is learned by the network of ``photulator``. Tables are interpolated with continuous
first derivatives, which samplers and fits need. Introduced in notebook 02.

Fluxes here are per Msun formed and in the synthesiser's unit, 1e-15 Lsun/Hz, with the 1 + z of the redshifted frequency interval in them.

References
----------
Thorp et al. (2025), arXiv:2506.12122, sect. 3.2 (the model); Leistedt et al. (2023), arXiv:2207.07673, sect. 3.4 (lines through bands).
"""

import math

import torch
from torch import nn

from popcosmos_lib.galaxies import interpolation, parameters
from popcosmos_lib.synthesis import dust, filters, igm, lines, ssp

__all__ = ["Features", "magnitude", "tabulate"]

_STEP = 1 / 300  # of the redshift tables in ln(1 + z), a third of the width of the narrowest band
_EDGES = (300.0, 1500.0, 2200.0, 3000.0, 4000.0, 6000.0, 10000.0, 30000.0)  # rest-frame cells of the energy balance [Angstrom]
_CENTRES = (1200.0, 1830.0, 2570.0, 3480.0, 4900.0, 7700.0, 15000.0)
_LINES = 48  # strongest lines; these and the ones that the calibration scales are computed one by one
_REFERENCE_GAS = (-0.3, -2.5)  # log10Zgas and log10Ugas whose nebular continuum is in the tables
_FLOOR = 1e-20  # [1e-15 Lsun/Hz], twenty decades below a galaxy: keeps logarithms finite beyond the Lyman limit
_DROPOUT = 6.0  # colour [mag] beyond which a band holds no light worth a correction
_SOFT = 1e-4  # keeps the square root of dust2 and the logarithm of mass fractions differentiable at zero


def magnitude(flux):
    """AB magnitude at 10 pc of a flux in this module's unit [mag]."""
    return filters.AB_ZERO - 2.5 * torch.log10(flux + _FLOOR)


@torch.no_grad()
def tabulate(synthesiser):
    """Tables that ``Features`` reads.

    Parameters
    ----------
    synthesiser : sps.Synthesiser
        Supplies the bands and stellar populations.

    Returns
    -------
    dict of str to Tensor
        Nodes ``log_z``, ``log_zgas``, ``log_u``, ``torus_depth``; ``light`` (n_z, n_redshift, 8, n_band + 8): flux per band, energy in the
        cells of the energy balance [Lsun] and bolometric light [Lsun] of each age component per Msun formed in it; ``dust`` (n_redshift,
        n_band) and ``torus`` (n_tau, n_redshift, n_band): flux of 1 Lsun; ``emission`` (n_z, n_zgas, n_u, n_line) [Lsun] per Msun formed in
        the last 10 Myr; ``line_wave`` (n_line,) [Angstrom]; ``response`` (n_wave, n_band) and ``response_start`` as from
        ``lines.response``; ``effective`` (n_band,) mean wavelength [Angstrom]. What needs no more is in half precision. Where gas shines
        out of the birth clouds, ``bare`` (n_z, n_line) is its share in the lines.
    """
    s = synthesiser
    n_z, young = s.ionising.shape
    reached = int((s.log_z < float(parameters.BOUNDS[parameters.INDEX["log10Z"], 1])).sum()) + 1  # nodes that the bounds can see
    redshift = torch.expm1(torch.arange(0.0, math.log1p(float(parameters.BOUNDS[-1, 1])) + _STEP, _STEP)).to(s.wave)
    reference = [int((nodes - value).abs().argmin()) for nodes, value in zip((s.log_zgas, s.log_u), _REFERENCE_GAS, strict=True)]
    continuum = s.continuum.view(len(s.log_zgas), len(s.log_u), young, -1)[reference[0], reference[1]]
    stars = torch.cat([s.young.view(n_z, young, -1) + s.ionising[..., None] * continuum, s.old.view(n_z, -1, len(s.wave))], 1)[:reached]
    light, infrared = [], []
    for z in redshift.split(16):
        shares = _shares(z, s.edges)
        spectra = torch.einsum("rca,zaw->rzcw", shares, stars)
        through = igm.transmission(s.wave, z)[:, None, None]
        energy = torch.stack([spectra[..., cell] @ s.energy[cell] for cell in _cells(s.wave)], -1)
        bolometric = torch.einsum("rca,za->rzc", shares, s.bolometric[:reached])
        light.append(torch.cat([_band_flux(s, spectra * through, z), energy, bolometric[..., None]], -1))
        infrared.append(_band_flux(s, torch.cat([s.dust[None], s.torus]).expand(len(z), -1, -1), z))
    light, infrared = torch.cat(light).transpose(0, 1).contiguous(), torch.cat(infrared).transpose(0, 1).contiguous()
    # The first bin forms at one rate, so what its stars older than 10 Myr power (FSPS lets some, out of their cloud) is in proportion.
    recent = _shares(redshift[:1], s.edges)[0, :2]
    recent = recent[0] + (0.03 / (1e-9 * ssp.BIRTH_CLOUD) - 1) * recent[1]  # mass per Msun formed in the last 10 Myr
    rate, gas = torch.cat([s.ionising, s.bare_ionising], -1), (len(s.log_zgas), len(s.log_u), -1, len(s.line_wave))
    emission = torch.cat([s.emission.view(gas), s.bare_emission.view(gas)], 2)
    emitted = torch.einsum("a,za,gual->zagul", recent[: rate.shape[1]], rate, emission)
    emitted, bare = emitted.sum(1), emitted[:, young:].sum(1)
    chosen = _chosen(emitted, s.line_wave)
    apart = {"bare": (bare.sum((1, 2)) / emitted.sum((1, 2)))[:reached, chosen]} if s.bare_ionising.numel() else {}
    return apart | {
        "log_z": s.log_z[:reached], "log_zgas": s.log_zgas, "log_u": s.log_u, "torus_depth": s.torus_depth,
        "light": light, "dust": infrared[0], "torus": infrared[1:].half(), "emission": emitted[:reached, ..., chosen],
        "line_wave": s.line_wave[chosen], "response": s.line_response.half(), "response_start": torch.tensor(s.line_start),
        "effective": s.passbands.effective,
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
    seen = zip(spectra, *s.passbands.at(z), strict=True)
    rows = [(spectrum[..., pixel] * weight) @ s.passbands.member for spectrum, pixel, weight in seen]
    return torch.stack(rows) * (1 + z).view(-1, *[1] * rows[0].ndim)


def _chosen(emitted, wave):
    """Indices, in order of wavelength, of the calibrated lines and of those that matter most anywhere on the grid where bands can see."""
    visible = (wave > 1200.0) & (wave < 5e4)
    share = (emitted / emitted[..., visible].sum(-1, keepdim=True)).amax((0, 1, 2)) * visible
    return torch.cat([lines.matched(wave), share.topk(_LINES).indices]).unique()


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
        self.size = 24 + 3 * len(self.effective)
        self._start = float(self.response_start)
        knots = torch.stack([self.light, interpolation.monotone_slopes(self.light, 1)], 2)  # (n_z, n_redshift, 2, 8, n_band + 8)
        torus = self.torus.to(self.light)
        hot = torch.stack([torus, interpolation.monotone_slopes(torus, 1)], 2)
        glow = torch.stack([self.dust, interpolation.monotone_slopes(self.dust, 0)], 1)
        derived = {
            "_knots": knots.flatten(0, 3), "_hot": hot.flatten(0, 2), "_glow": glow.flatten(0, 1),
            "_response": self.response.to(self.light), "_centres": torch.tensor(_CENTRES).to(self.effective),
            "_calibrated": lines.matched(self.line_wave),
        }  # fmt: skip
        for name, table in derived.items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, theta):
        """First estimate for unit mass.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            SPS parameters; differentiable, finite gradients at dust2 = 0 too.

        Returns
        -------
        inputs : Tensor of shape (n, size)
            Inputs of the network, not standardised.
        continuum, lines : Tensor of shape (n, n_band)
            Flux of the continuum and of the emission lines; ``magnitude`` of their sum is the estimate.
        """
        p = {name: parameters.column(theta, name) for name in parameters.NAMES}
        shift = torch.log1p(p["z"])
        place = interpolation.hermite(shift / _STEP, len(self.dust))
        metal = interpolation.rounded(p["log10Z"], self.log_z)
        mass = self._mass(theta)
        young, old = self._light(mass, metal, place)  # (n, n_band + 8)
        n_band = len(self.effective)

        cloud = p["dust2"] * p["dust1_fraction"]
        wave = torch.cat([self.effective * torch.exp(-shift)[:, None], self._centres.expand(len(theta), -1)], -1)
        diffuse = torch.exp(-p["dust2"][:, None] * dust.diffuse(wave, p["dust_index"]))
        young_out = young[:, :-1] * diffuse * torch.exp(-cloud[:, None] * dust.birth_cloud(wave))
        old_out = old[:, :-1] * diffuse
        emitted = self._emitted(p, mass[:, 0], metal)
        shining = emitted * self._line_transmission(p, cloud, metal)
        absorbed = (young[:, :-1] + old[:, :-1] - young_out - old_out)[:, n_band:].sum(-1) + (emitted - shining).sum(-1)
        glow = absorbed[:, None] * self._rows(self._glow, place, torch.ones_like(shift)[:, None])
        depth = interpolation.rounded(p["lntauAGN"].exp(), self.torus_depth)
        torus = (p["lnfAGN"].exp() * (young + old)[:, -1])[:, None] * self._rows(self._hot, place, depth)
        infrared = glow + torus * diffuse[:, :n_band]
        continuum = young_out[:, :n_band] + old_out[:, :n_band] + infrared

        estimate, level = magnitude(continuum), magnitude(continuum.mean(-1, keepdim=True))
        colour = (estimate - level).clamp_max(_DROPOUT)
        share = torch.cat([young_out[:, :n_band], infrared], -1) / (continuum.repeat(1, 2) + _FLOOR)
        fractions = torch.log10(parameters.mass_fractions(theta) + _SOFT)
        root = torch.sqrt(p["dust2"].clamp_min(0.0) + _SOFT)
        inputs = torch.cat([theta[:, 1:8], root[:, None], theta[:, 9:15], shift[:, None], (root * p["dust1_fraction"])[:, None], fractions,
                            level, colour, share], -1)  # fmt: skip
        seen = lines.band_flux(shining, self.line_wave, p["z"], self._response, self._start)
        return inputs, continuum, seen * (1 + p["z"])[:, None]

    def lines(self, theta):
        """Luminosities after dust of the lines of ``lines.CALIBRATED``, (n, 44) [Lsun] per Msun formed."""
        p = {name: parameters.column(theta, name) for name in parameters.NAMES}
        metal = interpolation.rounded(p["log10Z"], self.log_z)
        emitted = self._emitted(p, self._mass(theta)[:, 0], metal)
        return (emitted * self._line_transmission(p, p["dust2"] * p["dust1_fraction"], metal))[:, self._calibrated]

    def line_flux(self, theta):
        """What each of them adds to each band, (n, 44, n_band), for unit mass."""
        z, wave = parameters.column(theta, "z"), self.line_wave[self._calibrated]
        seen = [
            lines.band_flux(light[:, None], one[None], z, self._response, self._start)
            for light, one in zip(self.lines(theta).T, wave, strict=True)
        ]
        return torch.stack(seen, 1) * (1 + z)[:, None, None]

    def _mass(self, theta):
        """Mass formed in each age component, (n, 8)."""
        bins = parameters.mass_fractions(theta)
        cut = 1e-9 * ssp.BIRTH_CLOUD / 0.03
        return torch.cat([bins[:, :1] * cut, bins[:, :1] * (1 - cut), bins[:, 1:]], -1)

    def _light(self, mass, metal, place):
        """Light of the stars younger and older than the birth clouds, each (n, n_band + 8)."""
        n_z, length, kinds = len(self.log_z), len(self.dust), mass.shape[-1]
        nearest = metal.detach().argmax(-1).clamp(1, n_z - 2)
        around = nearest[:, None] + torch.arange(-1, 2, device=mass.device)  # the only metallicities that can have weight
        start = (around * length + place[0][:, None]) * 2 * kinds
        weight = metal.gather(1, around)[:, :, None] * place[1].flatten(1)[:, None]  # (n, 3, 4)
        sides = []
        for kind in (torch.arange(1, device=mass.device), torch.arange(1, kinds, device=mass.device)):
            offset = kinds * torch.arange(4, device=mass.device)[:, None] + kind  # value and slope below, value and slope above
            rows = start[:, :, None, None] + offset
            share = weight[..., None] * mass[:, None, None, kind]
            sides.append(interpolation.weighted_rows(rows, self._knots, share))
        return sides

    def _rows(self, table, place, weight):
        """Sum over the first axis of a table at a redshift, (n, n_band); ``weight`` (n, n_first)."""
        start = (torch.arange(weight.shape[-1], device=weight.device) * len(self.dust) + place[0][:, None]) * 2
        rows = start[..., None] + torch.arange(4, device=weight.device)
        return interpolation.weighted_rows(rows, table, weight[..., None] * place[1].flatten(1)[:, None])

    def _emitted(self, p, youngest, metal):
        """Line luminosities before dust, (n, n_line) [Lsun]."""
        gas = interpolation.rounded(p["log10Zgas"], self.log_zgas), interpolation.rounded(p["log10Ugas"], self.log_u)
        weight = torch.einsum("na,nb,nc->nabc", metal * youngest[:, None], *gas)
        return weight.flatten(1) @ self.emission.flatten(0, 2)

    def _line_transmission(self, p, cloud, metal):
        depth = p["dust2"][:, None] * dust.diffuse(self.line_wave, p["dust_index"])
        clouded = torch.exp(-depth - cloud[:, None] * dust.birth_cloud(self.line_wave))
        if not hasattr(self, "bare"):
            return clouded
        return clouded + metal @ self.bare * (torch.exp(-depth) - clouded)
