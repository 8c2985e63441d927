"""The released diffusion models: the joint flux errors of a galaxy given its magnitudes, and the galaxy population.

Their score networks are evaluated as denoisers for ``diffusion``, which writes variance-preserving noise in the units of the exploding
kind: where it takes x to m x + s noise, x / m has had noise s / m added. ``release`` offers the two loaders under its own name.

References
----------
Thorp et al. (2025), arXiv:2506.12122 sect. 3.3 (population) and 3.4 (flux errors); Song et al. (2021), arXiv:2011.13456.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from popcosmos_lib.artefacts import data
from popcosmos_lib.density import diffusion
from popcosmos_lib.emulation import release_pickles
from popcosmos_lib.galaxies import cosmology, parameters

__all__ = ["NoiseModel", "ReleasedPopulation", "Score", "noise_model", "population"]

_FOLDER = "popcosmos_release/trained_models"
_NAMES = [
    "N", "log10Z", *[f"logsfr_ratio{i}" for i in range(1, 7)], "dust2", "dust_index", "dust1_fraction", "lnfagn", "lnagntau", "gaslog10Z",
    "gaslog10U", "z",
]  # fmt: skip
_ACTIVATIONS = {  # value, and slope
    "Tanh": (lambda x: 2 * torch.sigmoid(2 * x) - 1, lambda x: 1 - x.tanh() ** 2),  # twice as fast as torch.tanh on a CPU
    "SiLU": (nn.functional.silu, lambda x: x.sigmoid() * (1 + x * (1 - x.sigmoid()))),
}
_MICROJANSKY = 10 ** (0.4 * 23.9)  # of a maggy
_ROWS = 512  # galaxies evaluated at once: larger ones fall out of cache
_STEPS = 32  # of the solvers
_FINE = 64  # for draws of galaxies, whose network is small


@dataclass(frozen=True)
class _ReleasedVE(diffusion.VE):
    """Variance-exploding noise with base draws scaled as the released code has it: by sigma_max alone."""

    @property
    def base_scale(self):
        return self.sigma_max


class Score(nn.Module):
    """A released score network, as a denoiser of x / m with noise sigma = s / m.

    Parameters
    ----------
    state : dict of str to Tensor
        ``W``, the frequencies of the time features, and ``NN.i.weight`` and ``NN.i.bias`` of layer i; the network's inputs are sines and
        cosines of time, then x, then what it is conditioned on.
    about : dict
        ``sde`` ("VE" or "VP"), its constants (``sigma_min`` and ``sigma_max``, or ``beta_min`` and ``beta_max``) and its earliest time
        ``epsilon``; ``activation`` ("Tanh" or "SiLU"); ``no_sigma``, whether the network is the score rather than s times it.

    Attributes
    ----------
    sde : diffusion.VE or diffusion.VP
        Noise schedule, from the noise at ``epsilon`` to that at time 1.
    contraction : float
        m at ``epsilon``: what is denoised there is x / m. One for VE.
    """

    def __init__(self, state, about):
        super().__init__()
        self.about = about
        self.depth = sum(name.endswith(".weight") for name in state)
        for name, value in state.items():
            self.register_buffer(name.replace(".", ""), value)
        self.dim = len(state[f"NN.{self.depth - 1}.bias"])
        if about["sde"] == "VE":
            low, high = about["sigma_min"], about["sigma_max"]
            self.sde, self.contraction = _ReleasedVE(low * (high / low) ** about["epsilon"], high), 1.0
        else:
            self.sde = diffusion.VP(about["beta_min"], about["beta_max"], about["epsilon"])
            self.contraction = math.exp(-0.5 * self.sde.integral(about["epsilon"]))

    def _time_and_contraction(self, sigma):
        if self.about["sde"] == "VE":
            low, high = self.about["sigma_min"], self.about["sigma_max"]
            return (sigma / low).log() / math.log(high / low), torch.ones_like(sigma)
        return self.sde.time(sigma), torch.rsqrt(1 + sigma**2)

    def _prepare(self, x, sigma, condition):
        """Inputs of the network, m, and what turns its output into (D - x / m): sigma^2 m score."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))[:, None]
        time, contraction = self._time_and_contraction(sigma)
        phase = 2 * math.pi * time * self.W
        inputs = [phase.sin(), phase.cos(), contraction * x]
        factor = sigma**2 * contraction if self.about["no_sigma"] else sigma
        return torch.cat(inputs if condition is None else [*inputs, condition], -1), contraction, factor

    def _layer(self, i):
        return getattr(self, f"NN{i}weight"), getattr(self, f"NN{i}bias")

    def forward(self, x, sigma, condition=None):
        """Denoised point.

        Parameters
        ----------
        x : Tensor of shape (n, dim)
            Noised point over m.
        sigma : float or Tensor of shape () or (n,)
            Its noise.
        condition : Tensor of shape (n, n_condition), optional
            What the density is conditioned on, standardised.

        Returns
        -------
        Tensor of shape (n, dim)
            Mean of the clean point given the noised one.
        """
        hidden, _, factor = self._prepare(x, sigma, condition)
        activation, _ = _ACTIVATIONS[self.about["activation"]]
        for i in range(self.depth - 1):
            hidden = activation(nn.functional.linear(hidden, *self._layer(i)))
        return x + factor * nn.functional.linear(hidden, *self._layer(self.depth - 1))

    def with_trace(self, x, sigma):
        """Denoised point and the exact trace of its Jacobian, (n, dim) and (n,); arguments as ``forward_model`` has them."""
        hidden, contraction, factor = self._prepare(x, sigma, None)
        activation, slope = _ACTIVATIONS[self.about["activation"]]
        start = 2 * len(self.W)
        columns = self._layer(0)[0][:, start : start + self.dim].T.expand(len(x), -1, -1)  # (n, dim, width): d(layer)/dx
        for i in range(self.depth - 1):
            before = nn.functional.linear(hidden, *self._layer(i))
            hidden = activation(before)
            columns = (columns * slope(before)[:, None, :]) @ self._layer(i + 1)[0].T
        trace = columns.diagonal(dim1=-2, dim2=-1).sum(-1)
        denoised = x + factor * nn.functional.linear(hidden, *self._layer(self.depth - 1))
        return denoised, self.dim + (factor * contraction)[:, 0] * trace


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

    def sigma(self, mag_asinh, generator):
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
    def from_base(self, mag_asinh, u, steps=_STEPS):
        """As ``sigma``, from given unit normal draws u of shape (n, 26), in ``steps`` evaluations of the network."""
        if not torch.isfinite(mag_asinh).all():
            raise ValueError("every magnitude must be finite: fill in the bands that a galaxy lacks from its model")
        magnitude = mag_asinh.to(self.shift).clamp(self.magnitude_min, self.magnitude_max)
        condition = (magnitude - self.conditional_shift) / self.conditional_scale
        parts = [
            diffusion.decode(lambda x, level, given=given: self.score(x, level, given), draws, sde=self.score.sde, steps=steps)
            for draws, given in zip(u.split(_ROWS), condition.split(_ROWS), strict=True)
        ]
        log_sigma = self.score.contraction * torch.cat(parts) * self.scale + self.shift
        return (log_sigma.clamp(self.log_error_min, self.log_error_max) + math.log(_MICROJANSKY)).exp().to(mag_asinh)


def noise_model(path=None):
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
    FileNotFoundError, pickles.Refused, ValueError
        If it is not there; names anything that a trained network does not need; holds something else.
    """
    path = data.shared(f"{_FOLDER}/noiseModel.pt") if path is None else Path(path)

    def parse():
        whole = release_pickles.read(path)
        state, about = _diffusion(_of_class(whole, "NoiseModel", path)["model"])
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

    def from_base(self, u, steps=_FINE):
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
        x = torch.cat([diffusion.decode(self.score, part, sde=self.score.sde, steps=steps) for part in u.split(_ROWS)])
        phi = self.score.contraction * x * self.scale + self.shift
        theta = self.lower + (self.upper - self.lower) * torch.special.ndtr(phi)
        mass = 0.4 * (cosmology.distance_modulus(parameters.column(theta, "z")) - phi[:, 0])
        return torch.cat([mass[:, None], theta[:, 1:]], -1)

    @torch.no_grad()
    def sample(self, n, generator):
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

    def log_prob(self, theta, steps=_STEPS):
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
        parts = [self._log_prob(rows, steps) for rows in flat.split(_ROWS)]
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


def population(path=None):
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
    FileNotFoundError, pickles.Refused, ValueError
        If it is not there; names anything that a trained network does not need; holds something else, or other parameters than the 16.
    """
    path = data.shared(f"{_FOLDER}/catalogueModelT25.pt") if path is None else Path(path)

    def parse():
        whole = _of_class(release_pickles.read(path), "CatalogueGenerator", path)
        if list(whole["param_names"]) != _NAMES:
            raise ValueError(f"{path} has the parameters {list(whole['param_names'])}, not the 16 of the papers in their order")
        state, about = _diffusion(whole["population_model"])
        calibration = {name: whole[name] for name in ("lower", "upper", "zero_points")}
        calibration |= {"line_offsets": whole["emline_offsets"], "line_ln_scatters": whole["ln_emline_scatters"]}
        calibration["line_wavelength"] = whole["emission_line_flux_emulator"]["line_lambdas_selected"]
        return state | calibration, about

    artefact = release_pickles.converted("population", [path], parse)
    return ReleasedPopulation(artefact.data, artefact.meta).eval()


def _of_class(whole, name, path):
    if type(whole).__name__ != name:
        raise ValueError(f"{path} holds a {type(whole).__name__}, not a {name}: is it the right file?")
    return whole


def _diffusion(wrapper):
    """Tensors and description of a flowfusion model."""
    network, sde = wrapper["model"], wrapper["sde"]
    kind = type(sde).__name__.removesuffix("SDE")
    constants = ("sigma_min", "sigma_max") if kind == "VE" else ("beta_min", "beta_max")
    about = {name: float(sde[name]) for name in (*constants, "epsilon", "T")}
    if about.pop("T") != 1:
        raise ValueError("the diffusion of this file does not end at time 1, as that of every published one does")
    about |= {"sde": kind, "activation": type(network["activation"]).__name__, "no_sigma": bool(wrapper["score_model"]["no_sigma"])}
    state = {name: value for name, value in release_pickles.tensors(network).items() if name == "W" or name.startswith("NN.")}
    scalings = ("shift", "scale", "conditional_shift", "conditional_scale")
    return state | {name: value for name, value in release_pickles.tensors(wrapper).items() if name in scalings}, about
