"""A survey's data model: uncertainties, noise, zero points and selection.

``truth()`` is the COSMOS2020-like survey that observes the built-in mock; ``load()`` is the same survey with the uncertainty model that
notebook 03 learned from the mock's catalogue, which is what a calibration may use; ``definitions`` reads the definitions of other surveys.
Fluxes are microjanskys, m = 23.9 - 2.5 log10 F. Introduced in notebook 03.

References
----------
Alsing et al. (2024) sect. 3.1-3.4; Thorp et al. (2025) sect. 2.1 and 3.4.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from astropy.table import Table
from tqdm import tqdm

from popcosmos_lib.artefacts import store
from popcosmos_lib.galaxies import parameters, universe
from popcosmos_lib.survey import joint_errors, uncertainty
from popcosmos_lib.survey.photometry import BANDS, asinh_magnitude, flux_from_asinh
from popcosmos_lib.survey.uncertainty import UncertaintyModel
from popcosmos_lib.synthesis import filters

if TYPE_CHECKING:
    from popcosmos_lib.synthesis.sps import Synthesiser

__all__ = [
    "BANDS", "Survey", "UncertaintyModel", "asinh_magnitude", "flux_from_asinh", "learn", "load", "mock", "select", "student_t", "truth",
]  # fmt: skip

_COMPARE = {"<": operator.gt, "<=": operator.ge, ">": operator.lt, ">=": operator.le}  # of fluxes, for a cut in magnitude


def student_t(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Draws from Student's t with two degrees of freedom, the noise law of the papers (A24 sect. 3.1), in closed form.

    Parameters
    ----------
    shape : tuple of int
    generator : torch.Generator
        Its device is also that of the result.

    Returns
    -------
    Tensor of shape ``shape``
        Median |t| is 0.816; the variance is infinite.
    """
    u = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    return ((2 * u - 1) / (2 * u * (1 - u)).sqrt()).float()


class Survey:
    """Data model of a survey: flux errors, noise, zero points and selection.

    Parameters
    ----------
    uncertainty : TwoDepths, UncertaintyModel or joint_errors.ConditionalDiffusion
        Distribution of the flux errors given the flux.
    zero_point : Tensor of shape (n_band,), optional
        Catalogue flux over true flux in each band; ones by default.
    bands : dict of str to str, optional
        Short name of each band, as columns and selections use it, and its curve, as ``filters.load`` takes it; the 26 of COSMOS2020 by
        default.
    cuts : str
        Selection that defines the sample, as for ``select``.
    noise : callable
        Draws of noise in units of the flux error, called with a shape and a generator.
    """

    def __init__(self, uncertainty, zero_point=None, *, bands=None, cuts="r<25", noise=student_t):
        self.uncertainty, self.cuts, self.noise = uncertainty, cuts, noise
        self.bands = dict(zip(filters.SHORT, filters.COSMOS26, strict=True)) if bands is None else dict(bands)
        self.zero_point = torch.ones(len(self.bands)) if zero_point is None else torch.as_tensor(zero_point)

    def on_zero_points(self, flux_true: torch.Tensor) -> torch.Tensor:
        """Noiseless fluxes (..., n_band) on the zero points of the catalogue, in the unit of ``flux_true``."""
        return flux_true * self.zero_point.to(flux_true)

    def sigma(self, flux_true: torch.Tensor, generator: torch.Generator | None = None, draws: torch.Tensor | None = None) -> torch.Tensor:
        """Flux errors that the catalogue quotes.

        Parameters
        ----------
        flux_true : Tensor of shape (n, n_band)
            Noiseless flux [µJy].
        generator : torch.Generator, optional
        draws : Tensor of shape (n, uncertainty.width), optional
            Standard normal draws instead of a generator.

        Returns
        -------
        Tensor of shape (n, n_band)
            Error [µJy].
        """
        return self.uncertainty.sample(self.on_zero_points(flux_true), generator=generator, draws=draws)

    def observe(
        self, flux_true: torch.Tensor, sigma: torch.Tensor, generator: torch.Generator | None = None, draws: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Noisy catalogue fluxes: zero point times flux, plus sigma times noise, for COSMOS2020 of Student's t.

        Parameters
        ----------
        flux_true, sigma : Tensor of shape (n, n_band)
            Noiseless flux and its error [µJy].
        generator : torch.Generator, optional
        draws : Tensor of shape (n, n_band), optional
            Draws of the noise instead of a generator.

        Returns
        -------
        Tensor of shape (n, n_band)
            Observed flux [µJy].
        """
        draws = self.noise(flux_true.shape, generator) if draws is None else draws
        return self.on_zero_points(flux_true) + sigma * draws.to(flux_true)


def truth() -> Survey:
    """The survey of the built-in mock: two depths in u, YJHKs and IRAC, COSMOS2020 FARMER noise levels, unit zero points."""
    return Survey(uncertainty.TwoDepths())


def load(profile: str = "published") -> Survey:
    """The survey as learned from a catalogue.

    Parameters
    ----------
    profile : str
        Whose errors: ``"published"``, learned at full size and shipped with the package, or those of notebook 03 in a profile.

    Returns
    -------
    Survey
        With the `joint_errors.ConditionalDiffusion` of notebook 03, in evaluation mode, frozen, on the CPU.

    Raises
    ------
    store.Missing
        If notebook 03 has not been run; the message says how.
    """
    artefact = store.load("uncertainty", profile)
    return Survey(joint_errors.from_state(artefact.data).requires_grad_(False))


def learn(flux: torch.Tensor, flux_err: torch.Tensor, steps: int, generator: torch.Generator) -> Survey:
    """The survey of a catalogue: COSMOS2020's bands and noise law, with the flux errors learned from the catalogue itself.

    Parameters
    ----------
    flux, flux_err : Tensor of shape (n, 26)
        Photometry and errors [µJy]; NaN = missing.
    steps : int
        Training steps of the joint model of the 26 errors; the models of single bands take a fortieth.
    generator : torch.Generator

    Returns
    -------
    Survey
    """
    margin = uncertainty.train(flux, flux_err, max(1, steps // 40), generator, components=1)[0]
    model = joint_errors.train(flux, flux_err, margin, steps, generator)[0]
    return Survey(model.eval().requires_grad_(False))


def select(flux: torch.Tensor, cuts: str, bands: Sequence[str] = filters.SHORT) -> torch.Tensor:
    """Which galaxies pass magnitude cuts on observed flux.

    Parameters
    ----------
    flux : Tensor of shape (n, n_band)
        Observed flux [µJy]; a missing or negative flux fails a bright limit.
    cuts : str
        Band, comparison and AB magnitude, several of them joined by "and": ``"r<25"``, ``"Ch1<26"``, ``"i>=17.5 and i<22.5"``.
    bands : sequence of str
        Short names of the bands, in the order of the fluxes.

    Returns
    -------
    Tensor of shape (n,), bool

    Raises
    ------
    ValueError
        If a cut cannot be read or names no band of the survey.
    """
    bands, passed = list(bands), torch.ones(len(flux), dtype=torch.bool, device=flux.device)
    for cut in re.split(r"\band\b", cuts):
        match = re.fullmatch(r"\s*(\w+)\s*(<=|>=|<|>)\s*(-?\d+(?:\.\d+)?)\s*", cut)
        if not match or match[1] not in bands:
            raise ValueError(
                f'cannot read the selection {cuts!r}: write cuts as "{bands[0]}<25", joined by "and", with a band of {", ".join(bands)}'
            )
        limit = filters.flux_from_magnitude(torch.tensor(float(match[3]), dtype=flux.dtype, device=flux.device))
        passed &= _COMPARE[match[2]](flux[:, bands.index(match[1])], limit)
    return passed


@torch.no_grad()
def mock(n_draws: int, synthesiser: Synthesiser, generator: torch.Generator, batch: int = 10_000) -> tuple[Table, dict]:
    """The built-in catalogue: universe, direct synthesis, true survey, selection r < 25 or Ch1 < 26.

    Parameters
    ----------
    n_draws : int
        Galaxies of `universe.sample` to synthesise; about four in ten pass the selection.
    synthesiser : sps.Synthesiser
        Gives the magnitudes in ``filters.COSMOS26``; its device is used for them.
    generator : torch.Generator
        On the CPU.
    batch : int
        Galaxies drawn at a time, which bounds the memory.

    Returns
    -------
    table : Table
        ``id``; the 16 parameters; ``flux_<short>``, ``flux_err_<short>`` (observed) and ``flux_true_<short>`` (noiseless) [µJy];
        ``select_r25``, ``select_ch1`` (on observed flux); ``train``, a random half for calibration.
    meta : dict
        ``n_draws`` and ``area_deg2``, the sky area that they cover.
    """
    sky, kept = truth(), []
    for n in tqdm([batch] * (n_draws // batch) + [n_draws % batch] * (n_draws % batch > 0), desc="mock", disable=None):
        theta = universe.sample(n, generator)
        flux_true = filters.flux_from_magnitude(synthesiser.magnitudes(theta).cpu())
        sigma = sky.sigma(flux_true, generator)
        flux = sky.observe(flux_true, sigma, generator)
        cuts = torch.stack([select(flux, "r<25"), select(flux, "Ch1<26")], -1)
        rows = torch.cat([theta, flux, sigma, flux_true, cuts.float()], -1)
        kept.append(rows[cuts.any(-1)])
    rows = torch.cat(kept)
    names = [*parameters.NAMES, *(f"{kind}_{band}" for kind in ("flux", "flux_err", "flux_true") for band in filters.SHORT)]
    table = Table({"id": torch.arange(len(rows)).numpy(), **dict(zip(names, rows.T.contiguous().numpy(), strict=False))})
    for i, name in enumerate(("select_r25", "select_ch1")):
        table[name] = rows[:, i - 2].numpy() > 0
    table["train"] = (torch.rand(len(rows), generator=generator) < 0.5).numpy()
    return table, {"n_draws": n_draws, "area_deg2": n_draws / universe.number_density()}
