"""From a catalogue's photometry to its population in one call: fits, posterior draws, calibration. Introduced in notebook 04.

References
----------
Alsing et al. (2024), arXiv:2402.00935 sect. 4; Thorp et al. (2025), arXiv:2506.12122 sect. 3.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from astropy.table import Table

from popcosmos_lib import survey
from popcosmos_lib.emulation import emulator
from popcosmos_lib.galaxies import priors
from popcosmos_lib.population import calibration, chains
from popcosmos_lib.population.model import inside
from popcosmos_lib.survey import modes, photometry
from popcosmos_lib.survey.forward_model import SELECTION, Draws, ForwardModel, Photometry

if TYPE_CHECKING:
    from popcosmos_lib.artefacts.checkpoint import Checkpoint

__all__ = ["SELECTION", "Draws", "ForwardModel", "Photometry", "calibrate"]


def calibrate(
    catalogue: photometry.Catalogue | Table, objective: str = "posterior", *, generator: torch.Generator, profile: str = "published",
    floor: float | torch.Tensor = 0.02, checkpoint: Checkpoint | None = None, **options: object,
) -> calibration.Calibration:  # fmt: skip
    """Learn the population of a catalogue from its photometry, with the trained emulator and flux errors.

    Three steps, which notebook 04 runs one by one: maximum-posterior fits under the Prospector-like prior, draws from those posteriors (for
    the objective "posterior"), and the calibration.

    Parameters
    ----------
    catalogue : catalog.Catalogue or Table
        Photometry in the 26 bands; a table has columns ``flux_<band>`` and ``flux_err_<band>`` [µJy], see ``catalog.from_table``.
        Galaxies that fail r < 25 or are not clean are left out.
    objective : {"posterior", "transport", "summaries"}
        See ``calibration.calibrate``.
    generator : torch.Generator
        On the CPU.
    profile : str
        Whose emulator and uncertainty model, as for ``load``.
    floor : float or Tensor of shape (26,)
        Fractional error of the model flux, beside the emulator's: 0.03 or more for real galaxies.
    checkpoint : checkpoint.Checkpoint, optional
        Lets an interrupted run resume.
    **options
        Options of ``calibration.calibrate``.

    Returns
    -------
    calibration.Calibration

    Raises
    ------
    ValueError
        If the objective is unknown, or too few galaxies are left to learn from.
    store.Missing
        If notebooks 02 and 03 have not been run; the message says how.
    """
    calibration.check(objective)
    catalogue = photometry.from_table(catalogue) if isinstance(catalogue, Table) else catalogue
    passed = catalogue.clean & survey.select(catalogue.flux, SELECTION)
    print(f"calibrate: {int(passed.sum())} of {len(passed)} galaxies are clean and have {SELECTION}")
    net, sky = emulator.load(profile=profile), survey.load(profile)
    if torch.cuda.is_available():
        net.cuda(), sky.uncertainty.cuda()
    forward = ForwardModel(net, sky)
    sample, prior = catalogue[passed], priors.Prospector()
    fits = modes.maximum_posterior(sample.flux, sample.flux_err, prior, net, generator, n_starts=2, steps=250, floor=floor)
    start = fits.theta[inside(fits.theta)]
    if objective == "posterior":
        model = {"emulator": net, "prior": prior, "floor": floor}
        start = chains.posterior_draws(fits.theta, sample.flux, sample.flux_err, generator=generator, **model)[0]
        options["floor"] = floor
    return calibration.calibrate(
        sample, objective=objective, forward=forward, start=start, generator=generator, checkpoint=checkpoint, **options
    )
