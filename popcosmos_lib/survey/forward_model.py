"""Parameters to catalogue photometry: emulator, zero points and line strengths, uncertainty, Student-t noise, selection.

The forward model through which a population meets a catalogue; ``population`` offers its names. Introduced in notebook 04.

References
----------
Alsing et al. (2024), arXiv:2402.00935 sect. 3 and eq. 2-4; Thorp et al. (2025), arXiv:2506.12122 sect. 3.4, 3.5 and appendix A.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from popcosmos_lib.survey import likelihood, observation
from popcosmos_lib.synthesis import filters, lines

__all__ = ["SELECTION", "Draws", "ForwardModel", "Photometry", "faint", "limit", "log_chance", "log_passing"]

SELECTION = "r<25"
_LINE_ROWS = 4096  # galaxies whose (44, 26) line fluxes are held at once


def limit(selection: str = SELECTION) -> tuple[int, torch.Tensor]:
    """Position of the band of a selection such as ``"r<25"``, and the faintest flux that passes [µJy], a float32 Tensor of shape ()."""
    band, magnitude = selection.split("<")
    return filters.SHORT.index(band.strip()), filters.flux_from_magnitude(torch.tensor(float(magnitude)))


def log_chance(flux: torch.Tensor, sigma: torch.Tensor, faintest: torch.Tensor) -> torch.Tensor:
    """ln of the probability that Student-t noise carries a flux across a faint limit.

    Parameters
    ----------
    flux, sigma : Tensor of shape (...)
        Noiseless flux in the band of the selection, and scale of the noise [µJy].
    faintest : Tensor of shape ()
        Flux limit [µJy], from `limit`.

    Returns
    -------
    Tensor of shape (...)
        In closed form, because the noise has two degrees of freedom (Thorp+25 sect. 3.6).
    """
    return likelihood.log_tail((faintest.to(flux) - flux) / sigma)


def log_passing(magnitude: torch.Tensor, flux: torch.Tensor, flux_err: torch.Tensor, floor: float | torch.Tensor = 0.0) -> torch.Tensor:
    """ln P(selected | theta) for the population's own selection; zero where the measured flux does not pass it or is missing.

    The population is that of selected galaxies, so the likelihood of a galaxy that passed is L / P(selected | theta).

    Parameters
    ----------
    magnitude : Tensor of shape (..., 26)
        Model magnitudes (AB).
    flux, flux_err : Tensor, broadcastable to (..., 26)
        Measured flux and error [µJy].
    floor : float or Tensor of shape (26,)
        Fractional error of the model flux.

    Returns
    -------
    Tensor of shape (...)
    """
    b, faintest = limit()
    model, there = likelihood.model_flux(magnitude[..., b]), flux_err[..., b].isfinite()
    width = (torch.where(there, flux_err[..., b], 1.0) ** 2 + (torch.as_tensor(floor).expand(magnitude.shape[-1])[b] * model) ** 2).sqrt()
    return torch.where((flux[..., b] > faintest) & there, log_chance(model, width, faintest), 0.0)


def faint(flux: torch.Tensor) -> torch.Tensor:
    """Whether galaxies (n, 26) [µJy] were measured in the band of the population's selection but do not pass it: (n,), bool."""
    return flux[:, limit()[0]].isfinite() & ~observation.select(flux, SELECTION)


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
        Observed flux, its error and the noiseless flux [µJy]; the latter without ``Survey.zero_point``.
    selected : Tensor of shape (n,), bool
        Whether the observed flux passes the selection.
    """

    flux: torch.Tensor
    flux_err: torch.Tensor
    flux_true: torch.Tensor
    selected: torch.Tensor


class ForwardModel:
    """Parameters to catalogue photometry: emulator, corrections, uncertainty, Student-t noise, selection.

    The noiseless flux is exp(log_zero_point) (f_SPS + sum over lines of beta f_line) (Alsing+24 eq. 2-3). The selection is applied although
    the population is already that of selected galaxies: it removes what the smooth density leaks across the sharp limit, at the price of
    thinning twice the one per cent of galaxies within their noise of it.

    Parameters
    ----------
    emulator : object with ``magnitudes(theta)``
        For line strengths also with ``line_flux(theta)``.
    survey : survey.Survey
        Uncertainty model and zero points.
    selection : str
        Cut that defines the catalogue, as for ``survey.select``.

    Attributes
    ----------
    log_zero_point : Tensor of shape (26,)
        ln of catalogue flux over true flux, as learned by a calibration; ``Survey.zero_point`` holds what is known before. The band of the
        selection is the reference: its entry is never applied.
    line_scale : Tensor of shape (44,)
        beta, the fraction by which each line of ``lines.CALIBRATED`` is stronger than in the synthesis; -1 removes it. The lines are
        evaluated, which nearly doubles the cost, only where one of these is not zero or is being learned.
    """

    def __init__(self, emulator, survey, selection=SELECTION):
        self.emulator, self.survey, self.selection = emulator, survey, selection
        self.log_zero_point, self.line_scale = torch.zeros(len(filters.COSMOS26)), torch.zeros(len(lines.CALIBRATED))

    @property
    def reference(self) -> int:
        """Position of the band of the selection, whose zero point is fixed."""
        return limit(self.selection)[0]

    def corrected(self, log_zero_point: torch.Tensor, line_scale: torch.Tensor) -> ForwardModel:
        """The same forward model with other zero points (26,) and line strengths (44,)."""
        other = ForwardModel(self.emulator, self.survey, self.selection)
        other.log_zero_point, other.line_scale = log_zero_point, line_scale
        return other

    def to(self, device: str) -> ForwardModel:
        """The same forward model with its emulator on another device; corrections and survey follow what they are applied to."""
        if hasattr(self.emulator, "to"):
            self.emulator.to(device)
        return self

    def draws(self, n: int, generator: torch.Generator) -> Draws:
        """Randomness for ``n`` galaxies, on the generator's device."""
        normal = torch.randn(n, self.survey.uncertainty.width, generator=generator, device=generator.device)
        return Draws(normal, observation.student_t((n, len(filters.COSMOS26)), generator))

    def flux(self, theta: torch.Tensor) -> torch.Tensor:
        """Noiseless flux on the catalogue's zero points, those of ``survey`` left out.

        Parameters
        ----------
        theta : Tensor of shape (n, 16)
            SPS parameters; the mass may lie outside its bounds.

        Returns
        -------
        Tensor of shape (n, 26)
            [µJy]; differentiable in theta and in the corrections.

        Raises
        ------
        ValueError
            If line strengths are asked of an emulator that cannot tell lines apart.
        """
        flux = likelihood.model_flux(likelihood.photometry(self.emulator, theta))
        if self.line_scale.requires_grad or self.line_scale.any():
            flux = (flux + self._line_change(theta)).clamp_min(1e-12)  # emulator error only: strengths are at least -1
        if self.log_zero_point.requires_grad or self.log_zero_point.any():
            fixed = torch.arange(len(self.log_zero_point), device=theta.device) == self.reference
            flux = flux * torch.where(fixed, 0.0, self.log_zero_point.to(theta)).exp()
        return flux

    @property
    def error(self) -> torch.Tensor | None:
        """Error of the emulator's magnitudes, (26,), or None."""
        return getattr(self.emulator, "error", None)

    def magnitudes(self, theta: torch.Tensor) -> torch.Tensor:
        """Apparent AB magnitudes (n, 26) on the catalogue's zero points: ``inference.fit`` takes this model for an emulator."""
        return filters.magnitude_from_flux(self.flux(theta))

    def _line_change(self, theta):
        if not hasattr(self.emulator, "line_flux"):
            raise ValueError(
                f"line strengths need an emulator that knows what each line adds, such as emulator.load(); {type(self.emulator).__name__} "
                "has no line_flux(theta): leave line_scale at zero and calibrate with corrections=False"
            )
        scale = self.line_scale.to(theta)
        return torch.cat([torch.einsum("l,nlb->nb", scale, self.emulator.line_flux(part)) for part in theta.split(_LINE_ROWS)])

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
            Fluxes differentiable in theta and in the corrections; the selection is not.
        """
        flux_true = self.flux(theta)
        flux_err = self.survey.sigma(flux_true, draws=draws.sigma)
        flux = self.survey.observe(flux_true, flux_err, draws=draws.noise)
        return Photometry(flux, flux_err, flux_true, observation.select(flux.detach(), self.selection))

    def log_selected(self, seen: Photometry) -> torch.Tensor:
        """ln P(selected | theta) of each galaxy, averaged over its noise: shape (n,), from ``Photometry``.

        Only selections of the form ``"<band><<magnitude>"`` can be evaluated.
        """
        b, faintest = limit(self.selection)
        return log_chance(self.survey.on_zero_points(seen.flux_true)[:, b], seen.flux_err[:, b], faintest)

    def leak(self, seen: Photometry) -> torch.Tensor:
        """Penalty for galaxies that leak across the selection, a Tensor of shape (), from ``Photometry``.

        Mean over galaxies of -ln 2 P(selected) where P(selected) < 1/2, zero elsewhere. Truly selected galaxies are almost never penalised,
        so the penalty does not drive them away from the limit.
        """
        return (-math.log(2) - self.log_selected(seen)).clamp_min(0.0).mean()
