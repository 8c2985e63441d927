"""The released diffusion models: the joint flux errors of a galaxy given its magnitudes, and the galaxy population.

``release`` offers the two loaders under its own name; the score networks are those of ``release_diffusion``.

References
----------
Thorp et al. (2025), arXiv:2506.12122 sect. 3.3 (population) and 3.4 (flux errors).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from popcosmos_lib.artefacts import data
from popcosmos_lib.density import diffusion
from popcosmos_lib.emulation import release_pickles
from popcosmos_lib.emulation.release_diffusion import ROWS, STEPS, Score, of_class, parsed
from popcosmos_lib.galaxies import cosmology, parameters

__all__ = ["NoiseModel", "ReleasedPopulation", "noise_model", "population"]

_FOLDER = "popcosmos_release/trained_models"
_NAMES = [
    "N", "log10Z", *[f"logsfr_ratio{i}" for i in range(1, 7)], "dust2", "dust_index", "dust1_fraction", "lnfagn", "lnagntau", "gaslog10Z",
    "gaslog10U", "z",
]  # fmt: skip
_MICROJANSKY = 10 ** (0.4 * 23.9)  # of a maggy
_FINE = 64  # for draws of galaxies, whose network is small


class NoiseModel(nn.Module):
    """The released model of the 26 flux errors given the 26 magnitudes: conditional diffusion of ln sigma.

    Parameters
    ----------
    state : dict of str to Tensor
        That of `Score`; ``shift``, ``scale``, ``conditional_shift`` and ``conditional_scale`` (26,), the standardisation of ln sigma
        [maggies] and of the magnitudes; the bounds ``log_error_min``, ``log_error_max``, ``magnitude_min`` and ``magnitude_max``;
        ``f_b`` (26,) [nanomaggies].
    about : dict
        That of `Score`.

    Attributes
    ----------
    softening : Tensor of shape (26,)
        Softening of the asinh magnitudes that the model takes [µJy].
    """

    _BUFFERS = (
        "shift", "scale", "conditional_shift", "conditional_scale", "log_error_min", "log_error_max", "magnitude_min", "magnitude_max",
    )  # fmt: skip

    def __init__(self, state, about):
        super().__init__()
        state = dict(state)
        self.register_buffer("softening", state.pop("f_b") * 1e-9 * _MICROJANSKY)
        for name in self._BUFFERS:
            self.register_buffer(name, state.pop(name))
        self.score = Score(state, about)

    def sigma(self, mag_asinh: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw the flux errors of galaxies.

        Parameters
        ----------
        mag_asinh : Tensor of shape (n, 26)
            Noiseless asinh magnitudes with ``softening``, of model fluxes *with* the zero points of the catalogue.
        generator : torch.Generator
            Source of the base draws.

        Returns
        -------
        Tensor of shape (n, 26)
            Flux error [µJy], in the system of the catalogue: divide by the zero point for that of the model. Line errors are not in it.

        Raises
        ------
        ValueError
            If a magnitude is not finite.
        """
        u = torch.randn(mag_asinh.shape, generator=generator, device=generator.device).to(self.shift)
        return self.from_base(mag_asinh, u)

    @torch.no_grad()
    def from_base(self, mag_asinh: torch.Tensor, u: torch.Tensor, steps: int = STEPS) -> torch.Tensor:
        """As ``sigma``, from given unit normal draws u of shape (n, 26), in ``steps`` evaluations of the network."""
        if not torch.isfinite(mag_asinh).all():
            raise ValueError("every magnitude must be finite: fill in the bands that a galaxy lacks from its model")
        magnitude = mag_asinh.to(self.shift).clamp(self.magnitude_min, self.magnitude_max)
        condition = (magnitude - self.conditional_shift) / self.conditional_scale
        parts = [
            diffusion.decode(lambda x, level, given=given: self.score(x, level, given), draws, sde=self.score.sde, steps=steps)
            for draws, given in zip(u.split(ROWS), condition.split(ROWS), strict=True)
        ]
        log_sigma = self.score.contraction * torch.cat(parts) * self.scale + self.shift
        return (log_sigma.clamp(self.log_error_min, self.log_error_max) + math.log(_MICROJANSKY)).exp().to(mag_asinh)


def noise_model(path: Path | str | None = None) -> NoiseModel:
    """Load the released model of the flux errors.

    Parameters
    ----------
    path : path, optional
        ``noiseModel.pt``; by default ``data.shared`` finds it.

    Returns
    -------
    NoiseModel
        In evaluation mode, on the CPU.

    Raises
    ------
    FileNotFoundError, release_pickles.Refused, ValueError
        If the file is not there; if it names anything that a trained network does not need; if it holds something else.
    """
    path = data.shared(f"{_FOLDER}/noiseModel.pt") if path is None else Path(path)

    def parse():
        whole = release_pickles.read(path)
        state, about = parsed(of_class(whole, "NoiseModel", path)["model"])
        names = ("log_error_min", "log_error_max", "magnitude_min", "magnitude_max", "f_b")
        return state | {name: whole[name] for name in names}, about

    artefact = release_pickles.converted("noise_model", [path], parse)
    return NoiseModel(artefact.data, artefact.meta).eval()


class ReleasedPopulation(nn.Module):
    """The released diffusion model of the galaxies that pass the selection of its catalogue.

    Parameters
    ----------
    state : dict of str to Tensor
        That of `Score`; ``shift`` and ``scale`` (16,), the standardisation of the latent (N and 15 probits); ``lower`` and ``upper`` (16,),
        the bounds inside which the probits are taken (slot 0 unused); ``zero_points`` (26,), ``line_wavelength``, ``line_offsets`` and
        ``line_ln_scatters`` (44,).
    about : dict
        That of `Score`.

    Attributes
    ----------
    zero_points : Tensor of shape (26,)
        Catalogue flux over model flux.
    line_wavelength, line_offsets, line_ln_scatters : Tensor of shape (44,)
        Lines in the file's own order [Angstrom], the fraction to add to each, and ln of the fractional error of each.
    """

    _BUFFERS = ("shift", "scale", "lower", "upper", "zero_points", "line_wavelength", "line_offsets", "line_ln_scatters")

    def __init__(self, state, about):
        super().__init__()
        state = dict(state)
        for name in self._BUFFERS:
            self.register_buffer(name, state.pop(name))
        self.score = Score(state, about)

    def from_base(self, u: torch.Tensor, steps: int = _FINE) -> torch.Tensor:
        """Base noise to galaxies along the probability-flow ODE.

        Parameters
        ----------
        u : Tensor of shape (n, 16)
            Unit-normal draws.
        steps : int
            Steps of the solver, one evaluation each.

        Returns
        -------
        Tensor of shape (n, 16)
            theta in the order of ``parameters.NAMES``; log10M_formed follows from N and z and is not bounded. Differentiable.
        """
        x = torch.cat([diffusion.decode(self.score, part, sde=self.score.sde, steps=steps) for part in u.split(ROWS)])
        phi = self.score.contraction * x * self.scale + self.shift
        theta = self.lower + (self.upper - self.lower) * torch.special.ndtr(phi)
        mass = 0.4 * (cosmology.distance_modulus(parameters.column(theta, "z")) - phi[:, 0])
        return torch.cat([mass[:, None], theta[:, 1:]], -1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Draw galaxies.

        Parameters
        ----------
        n : int
            Number of galaxies.
        generator : torch.Generator
            Source of the base draws.

        Returns
        -------
        Tensor of shape (n, 16)
            theta inside ``parameters.BOUNDS``: the few draws whose mass falls outside 7 to 13 dex, which the released code keeps, are
            replaced by fresh ones.
        """
        lower, upper = parameters.BOUNDS.to(self.shift).T
        kept, missing = [], n
        while missing > 0:
            u = torch.randn(max(missing, 64), len(lower), generator=generator, device=generator.device).to(self.shift)
            theta = self.from_base(u)
            kept.append(theta[((theta >= lower) & (theta <= upper)).all(-1)][:missing])
            missing -= len(kept[-1])
        return torch.cat(kept) if kept else self.shift.new_empty(0, len(lower))

    def log_prob(self, theta: torch.Tensor, steps: int = STEPS) -> torch.Tensor:
        """Density of galaxies.

        Parameters
        ----------
        theta : Tensor of shape (..., 16)
            SPS parameters in the order of ``parameters.NAMES``.
        steps : int
            Nodes of the quadrature, see ``diffusion.log_prob``.

        Returns
        -------
        Tensor of shape (...)
            ln p(theta) [nat per unit theta, with log10M_formed in slot 0]: the Jacobians of the standardisation, of the probits and of
            N to log10 M are all in it (the released ``log_prob`` is per unit of the standardised latent). -inf outside the bounds of the
            file; the mass has none. Differentiable in theta.
        """
        flat = theta.reshape(-1, theta.shape[-1]).to(self.shift)
        within = ((flat >= self.lower) & (flat <= self.upper))[:, 1:].all(-1)
        parts = [self._log_prob(rows, steps) for rows in flat.split(ROWS)]
        return torch.where(within, torch.cat(parts), -torch.inf).reshape(theta.shape[:-1]).to(theta)

    def _log_prob(self, theta, steps):
        width = (self.upper - self.lower)[1:]
        fraction = ((theta - self.lower) / (self.upper - self.lower))[:, 1:]
        probit = torch.special.ndtri(fraction.clamp(1e-7, 1 - 1e-7))  # +-5.2, the last that float32 tells from the bounds
        magnitude = cosmology.distance_modulus(parameters.column(theta, "z")) - 2.5 * parameters.column(theta, "log10M_formed")
        x = (torch.cat([magnitude[:, None], probit], -1) - self.shift) / self.scale
        log_p = diffusion.log_prob(self.score, x / self.score.contraction, sde=self.score.sde, steps=steps)
        normal = -0.5 * probit**2 - 0.5 * math.log(2 * math.pi)
        jacobian = (width.log() + normal).sum(-1) + math.log(0.4)  # of theta with respect to (N, probits)
        return log_p - self.score.dim * math.log(self.score.contraction) - self.scale.log().sum() - jacobian


def population(path: Path | str | None = None) -> ReleasedPopulation:
    """Load a released population model.

    Parameters
    ----------
    path : path, optional
        A ``catalogueModel*.pt``; by default ``data.shared`` finds that of Thorp et al. (2025).

    Returns
    -------
    ReleasedPopulation
        In evaluation mode, on the CPU. The size of its network, the kind of its noise and its bounds are read from the file.

    Raises
    ------
    FileNotFoundError, release_pickles.Refused, ValueError
        If the file is not there; if it names anything that a trained network does not need; if it holds something else, or other
        parameters than the 16.
    """
    path = data.shared(f"{_FOLDER}/catalogueModelT25.pt") if path is None else Path(path)

    def parse():
        whole = of_class(release_pickles.read(path), "CatalogueGenerator", path)
        if list(whole["param_names"]) != _NAMES:
            raise ValueError(f"{path} has the parameters {list(whole['param_names'])}, not the 16 of the papers in their order")
        state, about = parsed(whole["population_model"])
        calibration = {name: whole[name] for name in ("lower", "upper", "zero_points")}
        calibration |= {"line_offsets": whole["emline_offsets"], "line_ln_scatters": whole["ln_emline_scatters"]}
        calibration["line_wavelength"] = whole["emission_line_flux_emulator"]["line_lambdas_selected"]
        return state | calibration, about

    artefact = release_pickles.converted("population", [path], parse)
    return ReleasedPopulation(artefact.data, artefact.meta).eval()
