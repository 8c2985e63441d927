"""The population model: a density of the 16 parameters, and the photometry that a survey would take of it.

What is modelled is p(theta | r < 25), the galaxies that *pass the selection*, not p(theta) of the universe: the two differ
near the limit and nothing is known beyond it. The density lives on the latent phi of ``parameters`` (N and 15 probits),
standardised; every density returned here is per unit theta, all Jacobians included. Introduced in notebook 04.

References
----------
Alsing et al. (2024), arXiv:2402.00935 sect. 3.2 and 4; Thorp et al. (2025), arXiv:2506.12122 sect. 3.3, 3.5 and 3.7.
"""

from typing import NamedTuple

import torch
from astropy.table import vstack
from torch import nn

from popcosmos_lib import diffusion, filters, likelihood, parameters, store, survey
from popcosmos_lib.calibration import calibrate

__all__ = ["Draws", "ForwardModel", "Photometry", "Population", "calibrate", "inside", "load", "mock"]

SELECTION = "r<25"
_ROWS = 8192  # rows evaluated at once on a CPU: larger ones fall out of cache


def inside(theta):
    """Which galaxies lie within ``parameters.BOUNDS``: theta of shape (..., 16) to bool of shape (...)."""
    lower, upper = parameters.BOUNDS.to(theta).T
    return ((theta >= lower) & (theta <= upper)).all(-1)


class Population(nn.Module):
    """Diffusion model of p(theta | r < 25).

    Parameters
    ----------
    net : diffusion.ScoreNet
        Denoiser on the standardised latent x = (phi - shift) / scale.
    shift, scale : Tensor of shape (16,)
        Standardisation of phi.
    """

    def __init__(self, net, shift, scale):
        super().__init__()
        self.net = net
        self.register_buffer("shift", torch.as_tensor(shift))
        self.register_buffer("scale", torch.as_tensor(scale))

    @classmethod
    def fit(cls, theta, *, generator, steps, batch=768, lr=4e-3, width=128):
        """Learn the density of points by denoising score matching.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            Galaxies.
        generator : torch.Generator
            Initial weights, batches and noise.
        steps, batch, lr : int, int, float
            As for ``diffusion.train``.
        width : int
            Units per hidden layer.

        Returns
        -------
        population : Population
        history : Tensor of shape (steps,)
            Loss of each step.
        """
        phi = parameters.to_latent(theta)
        shift, scale = phi.mean(0), phi.std(0)
        net = diffusion.ScoreNet(width=width, generator=generator).to(phi)
        history = diffusion.train(net, (phi - shift) / scale, generator=generator, steps=steps, batch=batch, lr=lr)
        return cls(net, shift, scale), history

    @classmethod
    def from_state(cls, state):
        """The model that a state dict (name -> Tensor) describes; its size is read from the tensors."""
        depth = sum(name.endswith(".weight") for name in state) - 1
        net = diffusion.ScoreNet(width=len(state["net.layers.0.bias"]), depth=depth)
        population = cls(net, torch.zeros(16), torch.ones(16))
        population.load_state_dict(dict(state))
        return population.eval().requires_grad_(False)

    def from_base(self, u):
        """Base noise to galaxies along the probability-flow ODE (Adams, 16 evaluations).

        Parameters
        ----------
        u : Tensor of shape (n, 16)
            Unit-normal draws.

        Returns
        -------
        theta : Tensor of shape (n, 16)
            Inside the bounds, except that log10 M follows from N and z and may stray outside; differentiable.
        """
        return parameters.to_theta(diffusion.decode(self.net, u) * self.scale + self.shift)

    def to_base(self, theta):
        """Galaxies to base noise: the inverse of ``from_base``.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            SPS parameters.

        Returns
        -------
        u : Tensor of shape (n, 16)
            Base noise; ``from_base(u)`` returns theta. It belongs to this model only: keep theta, never u.
        """
        return diffusion.encode(self.net, (parameters.to_latent(theta) - self.shift) / self.scale)

    def log_prob(self, theta, steps=24):
        """Density of galaxies.

        Parameters
        ----------
        theta : Tensor of shape (..., 16)
            SPS parameters.
        steps : int
            Runge-Kutta steps of the ODE.

        Returns
        -------
        Tensor of shape (...)
            ln p(theta | r < 25) [nat per unit theta]: standardisation, probit and mass Jacobians included; -inf outside the
            bounds. Differentiable in theta. The part of the model beyond the mass bounds (below 1e-3) is not renormalised.
        """
        flat = theta.reshape(-1, theta.shape[-1])
        parts = [self._log_prob(rows, steps) for rows in flat.split(_ROWS)]
        return torch.where(inside(flat), torch.cat(parts), -torch.inf).reshape(theta.shape[:-1])

    def _log_prob(self, theta, steps):
        phi = parameters.to_latent(theta)
        log_p = diffusion.log_prob(self.net, (phi - self.shift) / self.scale, steps=steps)
        return log_p - self.scale.log().sum() - parameters.log_jacobian(phi)

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
        theta : Tensor of shape (n, 16)
            Inside ``parameters.BOUNDS``: the few draws whose mass falls outside 7 to 13 dex are replaced by fresh ones.
        """
        kept, missing = [], n
        while missing > 0:
            u = torch.randn(min(max(missing, 64), _ROWS), 16, generator=generator, device=generator.device, dtype=self.shift.dtype)
            theta = self.from_base(u.to(self.shift.device))
            kept.append(theta[inside(theta)][:missing])
            missing -= len(kept[-1])
        return torch.cat(kept) if kept else torch.empty(0, 16)


class Draws(NamedTuple):
    """The randomness of one observation, kept fixed while a population is calibrated.

    Attributes
    ----------
    sigma : Tensor of shape (n, survey.uncertainty.width)
        Unit-normal draws behind the flux errors.
    noise : Tensor of shape (n, 26)
        Student-t draws behind the noise.
    """

    sigma: torch.Tensor
    noise: torch.Tensor


class Photometry(NamedTuple):
    """What a survey makes of n galaxies.

    Attributes
    ----------
    flux, flux_err, flux_true : Tensor of shape (n, 26)
        Observed flux, its error and the noiseless flux [µJy].
    selected : Tensor of shape (n,), bool
        Whether the observed flux passes the selection.
    """

    flux: torch.Tensor
    flux_err: torch.Tensor
    flux_true: torch.Tensor
    selected: torch.Tensor


class ForwardModel:
    """Parameters to catalogue photometry: emulator, uncertainty, Student-t noise, selection.

    The selection is applied although the population is already that of selected galaxies: it removes what the smooth density
    leaks across the sharp limit, at the price of thinning twice the one per cent of galaxies within their noise of it.

    Parameters
    ----------
    emulator : object with ``magnitudes(theta)``
    survey : survey.Survey
        Uncertainty model and zero points.
    selection : str
        Cut that defines the catalogue, as for ``survey.select``.
    """

    def __init__(self, emulator, survey, selection=SELECTION):
        self.emulator, self.survey, self.selection = emulator, survey, selection

    def draws(self, n, generator):
        """Randomness for ``n`` galaxies, on the generator's device."""
        normal = torch.randn(n, self.survey.uncertainty.width, generator=generator, device=generator.device)
        return Draws(normal, survey.student_t((n, len(filters.COSMOS26)), generator))

    def __call__(self, theta, draws):
        """Photometry of galaxies.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            SPS parameters; the mass may lie outside its bounds.
        draws : Draws
            For the same n galaxies.

        Returns
        -------
        Photometry
            Fluxes differentiable in theta; the selection is not.
        """
        flux_true = likelihood.model_flux(likelihood.photometry(self.emulator, theta))
        flux_err = self.survey.sigma(flux_true, draws=draws.sigma)
        flux = self.survey.observe(flux_true, flux_err, draws=draws.noise)
        return Photometry(flux, flux_err, flux_true, survey.select(flux.detach(), self.selection))

    def log_selected(self, seen):
        """ln of the probability that each galaxy passes the selection on another draw of its noise, shape (n,), from ``Photometry``.

        Student's t with two degrees of freedom has a closed-form tail; only cuts of the form ``"<band><<magnitude>"`` have one here.
        """
        band, limit = self.selection.split("<")
        b, faintest = filters.SHORT.index(band), filters.flux_from_magnitude(torch.tensor(float(limit)))
        need = (faintest.to(seen.flux) - self.survey.zero_point.to(seen.flux)[b] * seen.flux_true[:, b]) / seen.flux_err[:, b]
        root = (2 + need**2).sqrt()
        tail = 1 / (root * (root + need.abs()))  # probability beyond |need|, free of cancellation
        return torch.where(need > 0, tail, 1 - tail).log()


def load(profile="fast", weights="trained"):
    """The calibrated population.

    Parameters
    ----------
    profile : str
        Whose artefact to read; ``"fast"`` is what ``make figures`` makes.
    weights : {"trained", "published"}
        What the notebooks trained, or the state shipped with the package.

    Returns
    -------
    Population
        In evaluation mode, on the CPU.

    Raises
    ------
    store.Missing
        If notebook 04 has not been run; the message says how.
    """
    return Population.from_state(store.load("population", profile, weights).data)


def mock(n, survey="cosmos2020", selection=None, *, generator, profile="fast", weights="trained"):
    """A mock catalogue of the calibrated population, in memory; ``python -m popcosmos_lib mock`` writes one of any size.

    Parameters
    ----------
    n : int
        Number of galaxies in the catalogue.
    survey : str or Path
        ``"cosmos2020"``, ``"kids"``, ``"lsst-y1"``, or the path of a YAML file, see ``surveys.load``.
    selection : str, optional
        Cuts on observed flux, such as ``"r<25"`` or ``"i>=17.5 and i<22.5"``; by default the survey's own. All galaxies pass r < 25 in
        COSMOS2020 in any case.
    generator : torch.Generator
        Source of randomness.
    profile, weights : str
        As for ``load``.

    Returns
    -------
    Table
        Columns and units: see ``mocks.Mock``.

    Raises
    ------
    ValueError
        If the survey or the selection cannot be read, or hardly any galaxy passes.
    store.Missing
        If notebook 04 has not been run; the message says how.
    """
    from popcosmos_lib import mocks  # it is built on this module

    parts = mocks.load(survey, selection, profile=profile, weights=weights).tables(n, generator)
    return vstack(list(parts), metadata_conflicts="silent")


def load_ensemble(profile="fast", weights="trained"):  # STAND-IN of branch h-nz, not to be committed
    from types import SimpleNamespace

    state, members = store.load("population_ensemble", profile, weights).data, []
    while any(name.startswith(f"{len(members)}.") for name in state):
        prefix = f"{len(members)}."
        members.append(Population.from_state({name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}))
    return SimpleNamespace(members=members)
