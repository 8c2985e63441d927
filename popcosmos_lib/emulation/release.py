"""The public pop-cosmos trained models (Cosmo-Pop/pop-cosmos, MIT): photometry, emission lines, stellar masses, flux errors, population.

The files are read by ``release_pickles``, which runs no code of a pickle, and kept as safetensors under ``artefacts/shared``. Each function
takes the place of its files; by default ``data.shared`` finds them under ``POPCOSMOS_DATA`` or among the downloads. Used by notebook 02.

References
----------
Alsing et al. (2020), arXiv:1911.11778 (architecture); Thorp et al. (2025), arXiv:2506.12122 sect. 3.2 (training), app. A (lines) and C
(stellar mass). Files: commit d8349165 of June 2025, the one that ``data_manifest.yaml`` names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from popcosmos_lib.artefacts import data
from popcosmos_lib.emulation import release_pickles
from popcosmos_lib.emulation.photulator import normalisation
from popcosmos_lib.emulation.release_models import noise_model, population
from popcosmos_lib.galaxies import cosmology, parameters
from popcosmos_lib.synthesis import filters

__all__ = ["Lines", "Photulators", "StellarMass", "lines", "noise_model", "photulators", "population", "stellar_mass"]

_FOLDER = "popcosmos_release/trained_models"
_CHUNK = 250  # galaxies; two buffers of 26 x 250 x 128 activations are reused, so that no page is fetched twice
_CHUNK_GRADIENT = 128  # of which autograd keeps twenty such arrays
_LINES = [  # vacuum wavelengths [Angstrom] of the lines that the papers recalibrate (Alsing+24 table 3, Thorp+25 table 6)
    1215.67, 1906.68, 1908.73, 2321.66, 2326.11, 2661.15, 2669.95, 2796.35, 2803.53, 3722.75, 3727.10, 3729.86, 3798.99, 3836.49, 3869.86,
    3889.75, 3890.17, 3968.59, 3971.20, 4069.75, 4102.89, 4341.69, 4364.44, 4472.73, 4862.71, 4960.30, 5008.24, 5877.25, 6302.05, 6313.81,
    6549.86, 6564.60, 6585.27, 6679.99, 6718.29, 6732.67, 7067.14, 7137.77, 7753.19, 9017.80, 9071.10, 9232.20, 9533.20, 9548.80,
]  # fmt: skip
_LINE_FLUX = 3.2143882e-07  # flux of a line of 1 Lsun seen from 10 pc, over wavelength times transmission [maggy / Lsun], as upstream
_MICROJANSKY = 10 ** (0.4 * 23.9)  # of a maggy


def _root_dust(theta):
    """The emulators' parameters: dust2 enters as its square root, whose gradient is cut off below 1e-8 because it has none at zero."""
    dust = parameters.INDEX["dust2"]
    return torch.cat([theta[:, :dust], theta[:, dust : dust + 1].clamp_min(1e-8).sqrt(), theta[:, dust + 1 :]], -1)


def _with_normalisation(theta):
    """theta with N = mu(z) - 2.5 log10 M in slot 0, as the released networks take it."""
    return torch.cat([normalisation(theta), theta[:, 1:]], -1)


def _gated(x, alpha, beta, out=None):
    """Activation of Alsing et al. (2020): [beta + (1 - beta) sigmoid(alpha x)] x, written into ``out`` where that is given."""
    if out is None:
        return (beta + (1 - beta) * torch.sigmoid(alpha * x)) * x
    torch.mul(x, alpha, out=out).sigmoid_()
    return torch.addcmul(beta, 1 - beta, out, out=out).mul_(x)


class Photulators(nn.Module):
    """The public band networks, evaluated together: one batched product per layer.

    Parameters
    ----------
    state : dict of str to Tensor
        ``parameters_shift`` and ``parameters_scale`` (15,), ``magnitudes_shift`` and ``magnitudes_scale`` (n_band,), and for each
        layer i ``W.i`` (n_band, in, out), ``b.i``, ``alphas.i`` and ``betas.i`` (n_band, 1, out).
    bands : sequence of str
        Band names.
    """

    def __init__(self, state, bands):
        super().__init__()
        self.bands = list(bands)
        self.layers = sum(name.startswith("W.") for name in state)
        for name, value in state.items():
            self.register_buffer(name.replace(".", ""), value)

    def magnitudes(self, theta: torch.Tensor) -> torch.Tensor:
        """Apparent magnitudes.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            SPS parameters in the order of ``parameters.NAMES``; differentiable (the gradient in dust2 is zero below 1e-8, where
            the square root upstream has none). Without a gradient to record, buffers are reused.

        Returns
        -------
        Tensor of shape (n, n_band)
            Apparent AB magnitude, without zero-point or line corrections, before noise.
        """
        theta = parameters.check(theta)
        x = (_root_dust(theta.to(self.parameters_shift))[:, 1:] - self.parameters_shift) / self.parameters_scale
        if torch.is_grad_enabled() and theta.requires_grad:
            unit_mass = torch.cat([self._evaluate(part) for part in x.split(_CHUNK_GRADIENT)], 1)
        else:
            unit_mass = torch.empty(len(self.bands), len(x), dtype=x.dtype, device=x.device)
            wide = max(getattr(self, f"b{i}").shape[-1] for i in range(self.layers))
            buffers = [torch.empty(len(self.bands) * min(_CHUNK, len(x)) * wide, dtype=x.dtype, device=x.device) for _ in range(2)]
            for part, target in zip(x.split(_CHUNK), unit_mass.split(_CHUNK, 1), strict=True):
                target.copy_(self._evaluate(part, buffers))
        unit_mass = unit_mass.T * self.magnitudes_scale + self.magnitudes_shift
        return unit_mass.to(theta) + _with_normalisation(theta)[:, :1]

    def _evaluate(self, x, buffers=(None, None)):
        """Standardised inputs (n, 15) to standardised magnitudes (n_band, n)."""
        x = x.expand(len(self.bands), -1, -1)
        for i in range(self.layers):
            weight, bias, alpha, beta = (getattr(self, f"{name}{i}") for name in ("W", "b", "alphas", "betas"))
            if i == self.layers - 1:  # the activation is applied to the output too: the files were trained so
                return _gated(bias.mT + weight.mT @ x.mT, alpha, beta)[:, 0]  # a row times a matrix: faster than a matrix times a column
            shape = (*x.shape[:2], bias.shape[-1])
            linear, gated = (None if flat is None else flat[: math.prod(shape)].view(shape) for flat in buffers)
            x = _gated(torch.baddbmm(bias, x, weight, out=linear), alpha, beta, gated)


def photulators(path: Path | str | None = None, bands: Sequence[str] | None = None) -> Photulators:
    """Load the public band networks.

    Parameters
    ----------
    path : path, optional
        Folder of the ``model_4x128_alsing20_<band>_cpu.pt`` files.
    bands : sequence of str, optional
        Band names; by default ``filters.COSMOS26``.

    Returns
    -------
    Photulators
        In evaluation mode, on the CPU.

    Raises
    ------
    FileNotFoundError
        If the folder or the file of a band is not there.
    ValueError
        If the networks differ in shape or in the scaling of their inputs.
    """
    bands = filters.COSMOS26 if bands is None else bands
    paths = _existing(path, "photulator_models", [f"model_4x128_alsing20_{band}_cpu.pt" for band in bands])
    return Photulators(release_pickles.converted("photulators", paths, lambda: _stacked(paths)).data, bands).eval()


def _stacked(paths):
    states = [release_pickles.tensors(release_pickles.read(path)) for path in paths]
    for path, state in zip(paths, states, strict=True):
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in states[0].items()}:
            raise ValueError(f"{path.name} and {paths[0].name} hold networks of different shape: they cannot be evaluated together")
        if any((state[name] != states[0][name]).any() for name in ("parameters_shift", "parameters_scale")):
            raise ValueError(f"{path.name} and {paths[0].name} scale their inputs differently: they cannot share them")
    stacked = {name: states[0][name] for name in ("parameters_shift", "parameters_scale")}
    for name in ("magnitudes_shift", "magnitudes_scale"):
        stacked[name] = torch.stack([state[name].reshape(()) for state in states])
    for name in states[0]:
        if name.startswith("W."):
            stacked[name] = torch.stack([state[name] for state in states])
        elif name.split(".")[0] in ("b", "alphas", "betas"):
            stacked[name] = torch.stack([state[name].reshape(1, -1) for state in states])
    return stacked


class StellarMass(nn.Module):
    """The public network for the mass that survives.

    Parameters
    ----------
    state : dict of str to Tensor
        ``shift`` and ``scale`` (16,), and ``<2 i>.weight`` and ``<2 i>.bias`` of layer i.
    """

    def __init__(self, state):
        super().__init__()
        self.weights = [name for name in state if name.endswith(".weight")]
        for name, value in state.items():
            self.register_buffer(name.replace(".", "_"), value)

    def surviving_fraction(self, theta: torch.Tensor) -> torch.Tensor:
        """Stars and remnants left of what was formed.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            SPS parameters in the order of ``parameters.NAMES``.

        Returns
        -------
        Tensor of shape (n,)
            Surviving over formed mass, as FSPS counts it (Thorp+25 footnote 18): log10 M = log10M_formed + its log10, and a specific
            star-formation rate per surviving mass is larger by one over it.
        """
        theta = parameters.check(theta)
        x = (_with_normalisation(theta.to(self.shift)) - self.shift) / self.scale
        for name in self.weights:
            layer = name.removesuffix(".weight")
            x = torch.tanh(nn.functional.linear(x, getattr(self, f"{layer}_weight"), getattr(self, f"{layer}_bias")))
        return x[:, 0].to(theta)


def stellar_mass(path: Path | str | None = None) -> StellarMass:
    """Load the public network for the mass that survives.

    Parameters
    ----------
    path : path, optional
        Folder of ``stellar_mass_emulator.pt`` and ``stellar_mass_parameter_shift-scale.pkl``.

    Returns
    -------
    StellarMass
        In evaluation mode, on the CPU.

    Raises
    ------
    FileNotFoundError
        If the folder or a file is not there.
    """
    paths = _existing(path, "", ["stellar_mass_emulator.pt", "stellar_mass_parameter_shift-scale.pkl"])

    def parse():
        network, (shift, scale) = [release_pickles.read(path) for path in paths]
        return release_pickles.tensors(network) | {"shift": shift.tensor, "scale": scale.tensor}

    return StellarMass(release_pickles.converted("stellar_mass", paths, parse).data).eval()


class Lines(nn.Module):
    """The public network for the luminosities of emission lines.

    Its stored input scaling is that of linear dust2, f_AGN and tau_AGN, but only the square root and the logarithms give sensible lines:
    upstream evaluates it so, and so do we. Its inputs are then many sigma off centre, and in corners of the prior it extrapolates wildly.

    Parameters
    ----------
    state : dict of str to Tensor
        ``params.0``, ...: every W, then every b, alphas, betas; the scalings and the matrix of the principal components;
        ``wavelength`` (128,); ``bandpass`` (n_band, 4, n_component), amplitudes, widths, exponents and places.

    Attributes
    ----------
    wavelength : Tensor of shape (44,)
        Vacuum wavelength of the lines that the papers recalibrate, rising [Angstrom].
    """

    def __init__(self, state):
        super().__init__()
        chosen = (state["wavelength"] - torch.tensor(_LINES, dtype=torch.float64)[:, None]).abs()
        if (chosen.min(1).values > 0.02).any():
            raise ValueError("the file of wavelengths lacks some of the 44 lines of Thorp+25 table 6: is it elams.npy?")
        chosen = chosen.argmin(1)
        self.layers = (sum(name.startswith("params.") for name in state) + 2) // 4  # four kinds each, but the last layer is linear
        for name, value in state.items():
            if name.startswith(("log_spectrum", "wavelength")):
                value = value[chosen]
            elif name == "pca_transform_matrix":
                value = value[:, chosen]
            self.register_buffer(name.replace(".", ""), value.float())

    def luminosities(self, theta: torch.Tensor) -> torch.Tensor:
        """Line luminosities after dust.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            SPS parameters in the order of ``parameters.NAMES``; differentiable, as ``Photulators.magnitudes`` is.

        Returns
        -------
        Tensor of shape (n, 44)
            Luminosity of the lines of ``wavelength`` [Lsun].
        """
        theta = parameters.check(theta)
        x = (_root_dust(_with_normalisation(theta.to(self.pca_shift))) - self.parameters_shift) / self.parameters_scale
        for i in range(self.layers):
            x = x @ self._parameter(i) + self._parameter(self.layers + i)
            if i < self.layers - 1:
                x = _gated(x, self._parameter(2 * self.layers + i), self._parameter(3 * self.layers - 1 + i))
        magnitude = (x * self.pca_scale + self.pca_shift) @ self.pca_transform_matrix * self.log_spectrum_scale + self.log_spectrum_shift
        return 10 ** (parameters.column(theta, "log10M_formed")[:, None] - 0.4 * magnitude.to(theta))

    def _parameter(self, i):
        return getattr(self, f"params{i}")

    def fluxes(self, theta: torch.Tensor) -> torch.Tensor:
        """What each line adds to each band. The photulators hold it already: this is for correcting it.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            SPS parameters in the order of ``parameters.NAMES``; differentiable.

        Returns
        -------
        Tensor of shape (n, n_band, 44)
            Flux [µJy], with each band described by the released sum of two generalised normal curves.
        """
        theta = parameters.check(theta)
        z = parameters.column(theta, "z")[:, None]
        amplitude, width, exponent, place = self.bandpass.to(theta)[:, None].unbind(2)  # (n_band, 1, n_component)
        wave = ((1 + z) * self.wavelength.to(theta))[:, None, :]
        peak = amplitude * exponent / (2 * width * torch.lgamma(1 / exponent).exp())
        transmission = (peak * (-(((wave[..., None] - place) / width).abs() ** exponent)).exp()).sum(-1)
        seen = self.luminosities(theta) * _LINE_FLUX * 10 ** (-0.4 * cosmology.distance_modulus(z))
        return _MICROJANSKY * seen[:, None, :] * wave * transmission


def lines(path: Path | str | None = None, bands: Sequence[str] | None = None) -> Lines:
    """Load the public network for the luminosities of emission lines.

    Parameters
    ----------
    path : path, optional
        Folder of ``emline_speculator_models`` and ``emline_bandpass_models``.
    bands : sequence of str, optional
        Band names; by default ``filters.COSMOS26``.

    Returns
    -------
    Lines
        In evaluation mode, on the CPU.

    Raises
    ------
    FileNotFoundError
        If the folder or a file is not there.
    """
    bands = filters.COSMOS26 if bands is None else bands
    network = [f"emline_speculator_models/{name}" for name in ("speculator-emlinesabsmags", "PCABasis.npz", "elams.npy")]
    curves = [f"emline_bandpass_models/line_gengmmcoeffs_{band}.npy" for band in bands]
    paths = _existing(path, "", [*network, *curves])

    def parse():
        state = dict(release_pickles.read(paths[0]))
        with np.load(paths[1], allow_pickle=False) as basis:
            state |= {name: torch.from_numpy(basis[name]) for name in basis.files}
        wavelength, *coefficients = [torch.from_numpy(np.load(path, allow_pickle=False)) for path in paths[2:]]
        return state | {"wavelength": wavelength, "bandpass": torch.stack(coefficients).unflatten(1, (4, -1))}

    return Lines(release_pickles.converted("lines", paths, parse).data).eval()


def _existing(path, folder, names):
    path = data.shared(f"{_FOLDER}/{folder}") if path is None else Path(path)
    missing = [name for name in names if not (path / name).exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{path} lacks {missing[0]}{more}; `make data ID=popcosmos_trained` says where to get it")
    return [path / name for name in names]
