"""The photometry emulator: 16 parameters to 26 magnitudes, differentiable, in a fraction of the time of the synthesis.

``inputs`` computes a first estimate; one fully connected network learns what is left of the continuum. Normalisation is exact: the network
sees unit mass, and N = mu(z) - 2.5 log10 M is added. Introduced in notebook 02.

References
----------
Alsing et al. (2020), arXiv:1911.11778, sect. 2 (activation) and 3 (photometry); Thorp et al. (2025), arXiv:2506.12122, sect. 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from popcosmos_lib.emulation.inputs import Features, magnitude
from popcosmos_lib.emulation.networks import Speculator
from popcosmos_lib.galaxies import cosmology, parameters
from popcosmos_lib.synthesis import filters

if TYPE_CHECKING:
    from popcosmos_lib.artefacts import store
    from popcosmos_lib.synthesis.sps import Synthesiser

__all__ = ["FAINT", "Emulator", "jacobian", "normalisation", "regions", "residuals", "restore", "robust_sigma"]

FAINT = 30.0  # apparent magnitude beyond which an object counts neither in the loss nor in the quoted errors [mag]
_CHUNK = {"cpu": 4096, "cuda": 65_536}  # rows evaluated at once: few enough for a processor's cache, enough for a GPU
# Edges of the regions in which the error is kept apart: attenuation and intergalactic absorption are what makes a galaxy hard.
_REGIONS = {"z": (0.5, 1.0, 2.0, 3.5), "dust2": (0.3, 1.0, 2.0)}


class Emulator(nn.Module):
    """Apparent magnitudes from parameters: a computed first estimate and a learned correction to its continuum.

    Parameters
    ----------
    bands : sequence of str
    tables : dict of str to Tensor
        From ``inputs.tabulate``.
    hidden : sequence of int
        Units of the hidden layers.
    generator : torch.Generator, optional
        Source of the initial weights.

    Attributes
    ----------
    bands : list of str
        In the order of the magnitudes.
    error : Tensor of shape (n_band,)
        Robust standard deviation against the synthesis, on held-out population-like galaxies [mag]; NaN before training.
    regional : Tensor of shape (5, 4, n_band)
        The same in bins of redshift and dust2, on held-out galaxies drawn like the training set, so that it holds in the corners too.
    """

    def __init__(self, bands, tables, hidden, generator=None):
        super().__init__()
        self.bands, self.hidden = list(bands), list(hidden)
        self.features = Features(tables)
        self.network = Speculator([self.features.size, *hidden, len(self.bands)], generator)
        self.register_buffer("shift", torch.zeros(self.features.size))
        self.register_buffer("scale", torch.ones(self.features.size))
        self.register_buffer("error", torch.full((len(self.bands),), math.nan))
        shape = [len(edges) + 1 for edges in _REGIONS.values()]
        self.register_buffer("regional", torch.full((*shape, len(self.bands)), math.nan))

    def magnitudes(self, theta: torch.Tensor) -> torch.Tensor:
        """Apparent magnitudes of a batch.

        Parameters
        ----------
        theta : Tensor of shape (..., 16)
            SPS parameters in the order of ``parameters.NAMES``. Nothing is checked beyond the shape, for speed: outside the bounds the
            network extrapolates. The mass only scales the light.

        Returns
        -------
        Tensor of shape (..., n_band)
            Apparent AB magnitude before noise, with the type of ``theta``; differentiable, with finite gradients at dust2 = 0 too.

        Raises
        ------
        ValueError
            If the last axis is not 16 long.
        """
        if theta.shape[-1:] != (len(parameters.NAMES),):
            raise ValueError(f"theta needs the {len(parameters.NAMES)} columns of parameters.NAMES; got shape {tuple(theta.shape)}")
        rows = theta.reshape(-1, theta.shape[-1]).to(self.shift)
        chunks = rows.split(_CHUNK[rows.device.type])
        unit_mass = torch.cat([self(*self.features(chunk)) for chunk in chunks])
        return unit_mass.reshape(*theta.shape[:-1], -1).to(theta) + normalisation(theta)

    def lines(self, theta: torch.Tensor) -> torch.Tensor:
        """Luminosities of the 44 lines of ``lines.CALIBRATED``, the ones whose strengths the calibration scales.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)

        Returns
        -------
        Tensor of shape (n, 44)
            After the galaxy's own dust, of all its mass [Lsun]; tables of the synthesis, not learned.
        """
        rows = theta.to(self.shift)
        return 10.0 ** parameters.column(rows, "log10M_formed")[:, None] * self.features.lines(rows)

    def line_flux(self, theta: torch.Tensor) -> torch.Tensor:
        """What each of the 44 lines adds to the flux of each band, (n, 44, n_band) [microjansky], after the intergalactic medium.

        A line whose strength is off by a fraction beta changes the flux of a band by beta times this (Thorp+25 sect. 3.4).
        """
        rows = theta.to(self.shift)
        flux = self.features.line_flux(rows)
        return filters.flux_from_magnitude(filters.AB_ZERO + normalisation(rows))[..., None] * flux

    def errors(self, theta: torch.Tensor) -> torch.Tensor:
        """Error of the emulator where galaxies are, (n, n_band) [mag]: ``regional`` of the bin of each, as the likelihood wants it."""
        return self.regional[regions(theta)].to(theta)

    def forward(self, inputs: torch.Tensor, continuum: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
        """Magnitudes for N = 0 from what ``Features`` returns, (n, n_band) [mag]."""
        correction = self.network((inputs - self.shift) / self.scale)
        return magnitude(continuum * torch.exp(-0.4 * math.log(10) * correction) + lines)

    def settings(self) -> dict:
        """What ``restore`` needs beside the state to build this emulator again; plain values."""
        return {"bands": self.bands, "hidden": self.hidden}


def regions(theta: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Bins of ``_REGIONS`` in which galaxies lie, one index tensor (n,) for each parameter."""
    return tuple(
        torch.bucketize(parameters.column(theta, name).contiguous(), torch.tensor(edges).to(theta)) for name, edges in _REGIONS.items()
    )


def normalisation(theta: torch.Tensor) -> torch.Tensor:
    """N = mu(z) - 2.5 log10 M_formed, shape (..., 1) [mag]."""
    return (cosmology.distance_modulus(parameters.column(theta, "z")) - 2.5 * parameters.column(theta, "log10M_formed"))[..., None]


def restore(artefact: store.Artefact) -> Emulator:
    """The emulator of a ``store.Artefact``, ready for evaluation."""
    tables = {name.removeprefix("features."): table for name, table in artefact.data.items() if name.startswith("features.")}
    emulator = Emulator(artefact.meta["bands"], tables, artefact.meta["hidden"])
    emulator.load_state_dict(artefact.data)
    return emulator.eval().requires_grad_(False)


def jacobian(magnitudes: Callable[[torch.Tensor], torch.Tensor], theta: torch.Tensor) -> torch.Tensor:
    """Derivatives of a function of each row such as ``model.magnitudes``, (n, n_band, 16) [mag per unit of each parameter]."""
    theta = theta.detach().clone().requires_grad_(True)
    columns = magnitudes(theta).sum(0)
    return torch.stack([torch.autograd.grad(column, theta, retain_graph=True)[0] for column in columns], 1)


def residuals(emulator: Emulator, synthesiser: Synthesiser, theta: torch.Tensor) -> torch.Tensor:
    """Emulated minus synthesised magnitudes.

    Parameters
    ----------
    emulator : Emulator
    synthesiser : sps.Synthesiser
        On the same device.
    theta : Tensor of shape (n, 16)
        SPS parameters.

    Returns
    -------
    Tensor of shape (n, n_band)
        Difference [mag]; NaN where the synthesised galaxy is fainter than ``FAINT``.
    """
    with torch.no_grad():
        truth = synthesiser.magnitudes(theta)
        return torch.where(truth < FAINT, emulator.magnitudes(theta) - truth, torch.nan)


def robust_sigma(error: torch.Tensor) -> torch.Tensor:
    """Half the distance between the 15.87 and 84.13 percentiles over the first axis, NaN left out."""
    low, high = torch.nanquantile(error, torch.tensor([0.1587, 0.8413]).to(error), dim=0)
    return 0.5 * (high - low)
