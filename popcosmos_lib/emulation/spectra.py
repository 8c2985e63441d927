"""The spectrum emulator: 16 parameters to a rest-frame spectrum from 1000 Angstrom to 5 micron, by principal components of log spectra.

As in Speculator a network predicts principal components of ln L_nu. What is cheap is computed directly: the light in a few dozen wide
cells is linear in the mass of each age cell, so stars, nebular continuum, torus and dust emission are summed there as in the synthesis,
with attenuation at the centre of a cell; and the diffuse attenuation, a factor common to stars, gas and torus, is applied at each pixel.
A linear map from the cells to the pixels and a network of small corrections complete the logarithm, so a batch of spectra costs one
network, one matrix product and one exponential. Emission lines are narrower than a pixel and not part of a spectrum here: the synthesis
and the photometry emulator tabulate their luminosities. Introduced in notebook 02.

References
----------
Alsing et al. (2020), arXiv:1911.11778, sect. 2 and 3; Thorp et al. (2025), arXiv:2506.12122, sect. 3.2 (the model).
"""

import math

import torch
from torch import nn

from popcosmos_lib.emulation.networks import Speculator
from popcosmos_lib.galaxies import interpolation, parameters
from popcosmos_lib.synthesis import dust

__all__ = ["BLOCK", "QUANTILES", "RANGE", "UNIT", "Spectra", "magnitudes", "powers", "residuals", "restore", "synthesised", "tabulate"]

RANGE = (1000.0, 5e4)  # of the emulated spectra, rest frame [Angstrom]
QUANTILES = (0.68, 0.95, 0.99)  # of the absolute error, kept with the weights
_CELLS = 32  # wide cells of the first estimate
_FAR = 960.0  # where the light bluer than RANGE is attenuated in the energy balance [Angstrom]
_DEGREE = 7  # of the polynomial in dust_index that stands for the attenuation curve: exact to rounding
_CHUNK = {"cpu": 2048, "cuda": 65_536}  # galaxies through the network at once
BLOCK = {"cpu": 250, "cuda": 8192}  # spectra synthesised at once
_SOFT = 1e-4  # keeps the square root of dust2 and the logarithm of mass fractions differentiable at zero
_OPAQUE = 1e-12  # transmission below which dust emission is not divided by it
UNIT = 15.0  # log10 of the mass [Msun] that turns the synthesiser's 1e-15 Lsun/Hz/Msun into Lsun/Hz


@torch.no_grad()
def tabulate(synthesiser):
    """Tables of the first estimate.

    Parameters
    ----------
    synthesiser : sps.Synthesiser
        Supplies the stellar populations, gas, dust and torus; its bands do not matter.

    Returns
    -------
    dict of str to Tensor
        ``wave`` (n_wave,) pixels of ``RANGE`` [Angstrom]; ``centre`` (n_cell + 1,) of the wide cells, last the one bluer than ``RANGE``
        [Angstrom]; ``energy`` (n_cell,) [Lsun] of a cell per 1e-15 Lsun/Hz; ``edges`` of the age cells older than the birth clouds [Gyr];
        nodes ``log_z``, ``log_zgas``, ``log_u``, ``torus_depth``; per Msun formed ``old`` (n_z * n_age, n_cell + 2) and ``young``
        (n_z * n_zgas * n_u, n_cell + 2): mean L_nu of each cell [1e-15 Lsun/Hz], energy bluer than ``RANGE`` and bolometric light [Lsun];
        ``lines`` (n_z * n_zgas * n_u, n_cell) [Lsun] in each cell; ``dust`` (n_cell,) and ``torus`` (n_tau, n_cell), L_nu of 1 Lsun;
        ``curves`` (8, n_wave), the diffuse attenuation as a polynomial in ``dust_index``.
    """
    s = synthesiser
    first, stop = (int((s.wave < limit).sum()) for limit in RANGE)
    wave = s.wave[first:stop]
    part = torch.arange(1, _CELLS, dtype=torch.float64) / _CELLS
    cuts = (0.5 * len(wave) * (part + part**2)).round().long()  # three times narrower in the blue, where dust is steep
    pixels = torch.arange(len(wave), device=wave.device).tensor_split(cuts.tolist())
    weight = s.energy[first:stop]
    energy = torch.stack([weight[pixel].sum() for pixel in pixels])

    def cells(light):
        inside = light[..., first:stop] * weight
        return torch.stack([inside[..., pixel].sum(-1) for pixel in pixels], -1) / energy

    def columns(light, bolometric):
        return torch.cat([cells(light), (light[..., :first] @ s.energy[:first])[..., None], bolometric[..., None]], -1)

    n_z, n_young = s.ionising.shape
    share = s.edges[: n_young + 1].diff() / s.edges[n_young]  # of what formed at a constant rate since the birth clouds
    gas = {name: getattr(s, name).view(len(s.log_zgas), len(s.log_u), n_young, -1) for name in ("continuum", "emission")}
    continuum, lines = (torch.einsum("a,za,gual->zgul", share, s.ionising, gas[name]) for name in ("continuum", "emission"))
    stars = torch.einsum("a,zal->zl", share, s.young.view(n_z, n_young, -1))
    light = stars[:, None, None] + continuum
    bolometric = (s.bolometric[:, :n_young] @ share)[:, None, None].expand(light.shape[:-1])
    cell = torch.bucketize(s.line_wave, torch.stack([wave[pixel[0]] for pixel in pixels[1:]]), right=True)
    in_cells = lines.new_zeros(*lines.shape[:-1], _CELLS).index_add_(-1, cell, lines)
    return {
        "wave": wave, "centre": torch.cat([torch.stack([wave[pixel].log().mean().exp() for pixel in pixels]), wave.new_tensor([_FAR])]),
        "energy": energy, "edges": s.edges[n_young:], "log_z": s.log_z, "log_zgas": s.log_zgas, "log_u": s.log_u,
        "torus_depth": s.torus_depth, "old": columns(s.old.view(n_z, -1, len(s.wave)), s.bolometric[:, n_young:]).flatten(0, 1),
        "young": columns(light, bolometric).flatten(0, 2), "lines": in_cells.flatten(0, 2), "dust": cells(s.dust), "torus": cells(s.torus),
        "curves": _curves(wave),
    }  # fmt: skip


def _curves(wave):
    """Coefficients (8, n_wave) of the diffuse attenuation curve as a polynomial in ``_scaled`` dust_index, through Chebyshev nodes."""
    x = torch.cos(torch.pi * (torch.arange(_DEGREE + 1, dtype=torch.float64) + 0.5) / (_DEGREE + 1))
    lower, upper = parameters.BOUNDS[parameters.INDEX["dust_index"]]
    curves = dust.diffuse(wave.double().cpu(), 0.5 * (lower + upper) + 0.5 * (upper - lower) * x)
    return torch.linalg.solve(torch.vander(x, increasing=True), curves).to(wave)


def _scaled(index):
    lower, upper = parameters.BOUNDS[parameters.INDEX["dust_index"]].tolist()
    return (2 * index - lower - upper) / (upper - lower)


class Spectra(nn.Module):
    """Rest-frame spectra from parameters: a computed estimate in wide cells, corrected by principal components.

    Parameters
    ----------
    tables : dict of str to Tensor
        From ``tabulate``; kept as buffers, so that an emulator needs no stellar populations.
    hidden : sequence of int
        Units of the hidden layers.
    components : int
        Number of principal components.
    generator : torch.Generator, optional
        Source of the initial weights.

    Attributes
    ----------
    wave : Tensor of shape (n_wave,)
        Rest wavelength [Angstrom].
    error : Tensor of shape (3, n_wave)
        ``QUANTILES`` of the relative error against the synthesis, on held-out population-like galaxies; NaN before training.
    """

    def __init__(self, tables, hidden, components, generator=None):
        super().__init__()
        for name, table in tables.items():
            self.register_buffer(name, table)
        self.hidden, self.components = list(hidden), components
        self.size = 24 + len(self.log_z) + 3 * _CELLS
        self.network = Speculator([self.size, *hidden, components], generator)
        n_wave = len(self.wave)
        self.register_buffer("shift", torch.zeros(self.size))
        self.register_buffer("scale", torch.ones(self.size))
        self.register_buffer("linear", torch.zeros(_CELLS + 1, n_wave))
        self.register_buffer("basis", torch.zeros(components, n_wave))
        self.register_buffer("spread", torch.ones(components))
        self.register_buffer("error", torch.full((len(QUANTILES), n_wave), math.nan))

    def spectrum(self, theta):
        """Rest-frame spectra of a batch.

        Parameters
        ----------
        theta : Tensor of shape (..., 16)
            SPS parameters in the order of ``parameters.NAMES``. Nothing is checked beyond the shape, for speed: outside the bounds the
            network extrapolates. The mass only scales the light.

        Returns
        -------
        wave : Tensor of shape (n_wave,)
            Rest wavelength [Angstrom], those pixels of the synthesis that lie within ``RANGE``.
        luminosity : Tensor of shape (..., n_wave)
            Luminosity density of the continuum [Lsun/Hz]: of all the mass formed, after the galaxy's own dust, before the intergalactic
            medium, without emission lines. With the type of ``theta``; differentiable, with finite gradients at dust2 = 0 too.

        Raises
        ------
        ValueError
            If the last axis is not 16 long.
        """
        if theta.shape[-1:] != (len(parameters.NAMES),):
            raise ValueError(f"theta needs the {len(parameters.NAMES)} columns of parameters.NAMES; got shape {tuple(theta.shape)}")
        rows = theta.reshape(-1, theta.shape[-1]).to(self.shift)
        parts = [self._coefficients(chunk) for chunk in rows.split(_CHUNK[rows.device.type])]
        level, coefficients = (torch.cat(column) for column in zip(*parts, strict=True))
        light = torch.addmm(level, coefficients, torch.cat([self.linear, -self.curves, self.basis])).exp_()
        return self.wave, light.reshape(*theta.shape[:-1], -1).to(theta)

    def _coefficients(self, theta):
        """ln L_nu in the middle cell (n, 1) [ln Lsun/Hz], and what multiplies the linear map, the attenuation curves and the basis."""
        inputs, level, cells = self.features(theta)
        mass = (parameters.column(theta, "log10M_formed")[:, None] - UNIT) * math.log(10)
        return level + mass, torch.cat([cells, powers(theta), self(inputs)], -1)

    def forward(self, inputs):
        """Principal components (n, components) from standardised-on-the-way inputs (n, size)."""
        return self.network((inputs - self.shift) / self.scale) * self.spread

    def features(self, theta):
        """First estimate in the wide cells, before the diffuse dust, and the inputs of the network, for unit mass.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)

        Returns
        -------
        inputs : Tensor of shape (n, size)
            What the network sees; not standardised.
        level : Tensor of shape (n, 1)
            ln of the estimate in the middle cell, divided by the transmission of the diffuse dust [ln 1e-15 Lsun/Hz].
        cells : Tensor of shape (n, n_cell + 1)
            The same in every cell minus ``level``, and a constant one: what the linear map reads.
        """
        p = {name: parameters.column(theta, name) for name in parameters.NAMES}
        fractions, metals = parameters.mass_fractions(theta), interpolation.rounded(p["log10Z"], self.log_z)
        old, young, lines = self._populations(p, fractions, metals)
        bolometric = (old + young)[:, -1:]

        through = torch.exp(-p["dust2"][:, None] * dust.diffuse(self.centre, p["dust_index"]))
        cloud = torch.exp(-(p["dust2"] * p["dust1_fraction"])[:, None] * dust.birth_cloud(self.centre))
        lost, lost_young = 1 - through, 1 - through * cloud
        absorbed = (old[:, :-2] * lost[:, :-1] + young[:, :-2] * lost_young[:, :-1]) @ self.energy
        absorbed = absorbed + (lines * lost_young[:, :-1]).sum(-1) + old[:, -2] * lost[:, -1] + young[:, -2] * lost_young[:, -1]
        torus = p["lnfAGN"].exp()[:, None] * bolometric * (interpolation.rounded(p["lntauAGN"].exp(), self.torus_depth) @ self.torus)
        emission = absorbed[:, None] * self.dust / through[:, :-1].clamp_min(_OPAQUE)

        clouded = young[:, :-2] * cloud[:, :-1]
        total = old[:, :-2] + clouded + torus + emission
        level = total[:, _CELLS // 2, None].log()
        cells = total.log() - level
        root = torch.sqrt(p["dust2"].clamp_min(0.0) + _SOFT)
        shift, clouds = torch.log1p(p["z"]), root * p["dust1_fraction"]
        inputs = torch.cat([theta[:, 1:8], root[:, None], theta[:, 9:15], shift[:, None], clouds[:, None], torch.log10(fractions + _SOFT),
                            metals, level, cells, clouded / total, (torus + emission) / total], -1)  # fmt: skip
        return inputs, level, torch.cat([cells, torch.ones_like(level)], -1)

    def _populations(self, p, fractions, metals):
        """Old stars and young stars with nebular continuum, (n, n_cell + 2) each, and lines (n, n_cell), before dust."""
        bins = parameters.age_edges(p["z"])
        younger = ((self.edges - bins[:, :-1, None]) / bins.diff(dim=-1)[..., None]).clamp(0.0, 1.0)  # share of each bin, by cell edge
        mass = (fractions[:, None] @ younger)[:, 0]
        gas = interpolation.rounded(p["log10Zgas"], self.log_zgas), interpolation.rounded(p["log10Ugas"], self.log_u)
        young = mass[:, :1] * torch.einsum("na,nb,nc->nabc", metals, *gas).flatten(1)
        old = (metals[:, :, None] * mass.diff(dim=-1)[:, None]).flatten(1)
        return old @ self.old, young @ self.young, young @ self.lines

    def settings(self):
        """What ``restore`` needs beside the state to build this emulator again; plain values."""
        return {"hidden": self.hidden, "components": self.components}


def powers(theta):
    """What multiplies ``curves`` in the diffuse optical depth, (n, 8)."""
    exponents = torch.arange(_DEGREE + 1, device=theta.device)
    return parameters.column(theta, "dust2")[:, None] * _scaled(parameters.column(theta, "dust_index"))[:, None] ** exponents


def restore(artefact):
    """The emulator of a ``store.Artefact``, ready for evaluation."""
    fitted = {"shift", "scale", "linear", "basis", "spread", "error"}
    tables = {name: table for name, table in artefact.data.items() if name not in fitted and not name.startswith("network.")}
    emulator = Spectra(tables, artefact.meta["hidden"], artefact.meta["components"])
    emulator.load_state_dict(artefact.data)
    return emulator.eval().requires_grad_(False)


@torch.no_grad()
def residuals(emulator, synthesiser, theta):
    """Emulated over synthesised spectra, minus one.

    Parameters
    ----------
    emulator : Spectra
    synthesiser : sps.Synthesiser
        On the same device.
    theta : Tensor of shape (n, 16)
        SPS parameters.

    Returns
    -------
    Tensor of shape (n, n_wave)
        Relative error of the continuum; NaN where the synthesised luminosity is zero in float32.
    """
    parts = []
    for chunk in theta.split(BLOCK[theta.device.type]):
        ratio = emulator.spectrum(chunk)[1] / synthesised(emulator, synthesiser, chunk)
        parts.append(torch.where(ratio.isfinite(), ratio - 1, torch.nan))
    return torch.cat(parts)


@torch.no_grad()
def magnitudes(emulator, synthesiser, theta):
    """Photometry in which emulated spectra take the place of the synthesised continuum; lines and absorption are those of the synthesis.

    Parameters
    ----------
    emulator : Spectra
    synthesiser : sps.Synthesiser
        With the bands, and on the same wavelength grid as the teacher of the emulator.
    theta : Tensor of shape (n, 16)
        SPS parameters.

    Returns
    -------
    Tensor of shape (n, n_band)
        Apparent AB magnitude; NaN where a band looks at rest wavelengths outside ``RANGE``.
    """
    first, reach = int((synthesiser.wave < RANGE[0]).sum()), synthesiser.passbands.reach
    parts = []
    for rows in theta.split(BLOCK[theta.device.type]):
        unit = torch.cat([torch.zeros_like(rows[:, :1]), rows[:, 1:]], -1)
        light = torch.zeros(len(rows), reach).to(synthesiser.wave)
        emulated = emulator.spectrum(unit + torch.eye(16)[0].to(rows) * UNIT)[1]
        light[:, first : first + len(emulator.wave)] = emulated[:, : reach - first]
        parts.append(synthesiser.photometry(light, synthesiser.lines(unit), rows))
    rest = synthesiser.passbands.edges / (1 + parameters.column(theta, "z"))[:, None, None]
    inside = (rest[..., 0] > emulator.wave[0]) & (rest[..., 1] < emulator.wave[-1])
    return torch.where(inside, torch.cat(parts), torch.nan)


def synthesised(emulator, synthesiser, theta):
    """Synthesised continuum in the pixels of the emulator (n, n_wave) [Lsun/Hz]."""
    first = int((synthesiser.wave < RANGE[0]).sum())
    return synthesiser.spectrum(theta).total[:, first : first + len(emulator.wave)]
