"""Calibration of a population by three objectives, its uncertainty, and the correction for the selection.

Only observed fluxes and their errors are used, never the truth of a mock. The result is p(theta | selected); ``unselected`` converts it to
p(theta). Introduced in notebook 04.

References
----------
Alsing et al. (2024), arXiv:2402.00935 sect. 4 (optimal transport with fixed base draws); Thorp et al. (2025), arXiv:2506.12122 sect. 3.5
(summaries).
"""

import difflib
from typing import NamedTuple

import torch
from torch import nn

from popcosmos_lib.artefacts.checkpoint import Checkpoint
from popcosmos_lib.population import expectation_maximisation, optimal_transport, summary_statistics
from popcosmos_lib.population.distribution_matching import match
from popcosmos_lib.population.model import Ensemble, Population, inside
from popcosmos_lib.survey.forward_model import Photometry
from popcosmos_lib.survey.photometry import asinh_magnitude

__all__ = ["BEYOND", "OBJECTIVES", "Calibration", "Unselected", "calibrate", "check", "ensemble", "unselected"]

OBJECTIVES = ("posterior", "transport", "summaries")
BEYOND = 0.05  # chance of being selected below which the population is extrapolated
_FEWEST = 100  # galaxies with all bands that a distance of clouds needs


class Calibration(NamedTuple):
    """Result of a calibration.

    Attributes
    ----------
    population : Population
        p(theta | selected).
    log_zero_point : Tensor of shape (26,)
        ln of catalogue flux over true flux.
    line_scale : Tensor of shape (44,)
        Fraction by which each line of ``lines.CALIBRATED`` is stronger than in the synthesis.
    history : dict of str to list
        History of ``distribution_matching.match``; for the objective "posterior" also that of ``expectation_maximisation.posteriors``, with
        the prefix ``em_``.
    draws : Tensor of shape (n, k, 16), or None
        Draws of each galaxy's posterior, objective "posterior" only.
    """

    population: Population
    log_zero_point: torch.Tensor
    line_scale: torch.Tensor
    history: dict
    draws: torch.Tensor | None = None

    def state(self):
        """All but the history as one dict of tensors, as an artefact keeps it."""
        state = {f"population.{name}": value for name, value in self.population.state_dict().items()}
        state |= {"log_zero_point": self.log_zero_point, "line_scale": self.line_scale}
        return state if self.draws is None else state | {"draws": self.draws}

    @classmethod
    def restore(cls, artefact):
        """The calibration of a ``store.Artefact`` whose data are a ``state`` and whose meta is the history."""
        state = {name.removeprefix("population."): value for name, value in artefact.data.items() if name.startswith("population.")}
        corrections = artefact.data["log_zero_point"], artefact.data["line_scale"]
        return cls(Population.from_state(state), *corrections, artefact.meta, artefact.data.get("draws"))


def check(objective):
    """Complain about an objective that there is not, with the nearest one that there is."""
    if objective not in OBJECTIVES:
        near = difflib.get_close_matches(str(objective), OBJECTIVES, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}; got {objective!r}{hint}")


def calibrate(catalogue, *, objective="posterior", forward, start, generator, checkpoint=None, **options):
    """Learn the population of a catalogue from its photometry.

    Parameters
    ----------
    catalogue : object with ``flux`` and ``flux_err``, (n, 26) [µJy]
        Selected galaxies; NaN = missing. "transport" and "summaries" leave out galaxies with a missing band.
    objective : {"posterior", "transport", "summaries"}
        "posterior": draws of every galaxy's posterior by expectation-maximisation, a density fitted to them, and a short transport.
        "transport": distance between distributions of photometry (Alsing+24 sect. 4). "summaries": summary statistics (Thorp+25 sect. 3.5).
    forward : ForwardModel
        Parameters to photometry.
    start : Tensor of shape (n, 16) or (n, k, 16), or Population
        Galaxies whose density is learned first (fits, or prior draws that pass the selection), or the density itself. For "posterior":
        points for each galaxy of the catalogue, preferably k draws of its posterior under a prior (``chains.posterior_draws``). If they
        cover only the first galaxies, the photometry of the others is used by the final transport alone.
    generator : torch.Generator
        Source of all randomness.
    checkpoint : checkpoint.Checkpoint, optional
        Lets an interrupted run resume and end at the same result; each stage writes its own file.
    **options
        Options of ``distribution_matching.match``; ``start_steps``, training steps of the first density (4000); for "transport"
        ``distance``, "sliced" (default) or "sinkhorn"; for "posterior" ``density_steps`` (8000), training steps of the last density,
        ``polish`` (50) and ``polish_lr`` (3e-5), steps and rate of the transport (none where hardly any galaxy has all bands), and all that
        ``expectation_maximisation.posteriors`` takes.

    Returns
    -------
    Calibration

    Raises
    ------
    ValueError
        If the objective is unknown, or too few galaxies have all bands although the objective or the corrections need them.
    """
    check(objective)
    checkpoint = checkpoint or Checkpoint(None, {})
    checkpoint = Checkpoint(checkpoint.path, checkpoint.key | {"objective": objective, "options": repr(sorted(options.items()))})
    if objective == "posterior":
        return _posterior(catalogue, forward, start, generator, checkpoint, **options)
    train, held = _split(catalogue, objective, generator)
    start_steps = options.pop("start_steps", 4000)
    if objective == "transport":
        loss = optimal_transport.Transport(train, options.pop("distance", "sliced"))
        options = {"charge": 1.0 if loss.distance == "sinkhorn" else 0.2} | options  # sqrt(26) directions at once, not their mean
    else:
        loss, options = summary_statistics.Summaries(train), {"iterations": 120, "batch": 4096, "charge": 0.02} | options
    population = start if isinstance(start, nn.Module) else _learn(start, generator, checkpoint.stage("start"), start_steps)
    population, corrections, history = match(
        population, forward, loss, held, generator=generator, checkpoint=checkpoint.stage(objective), **options
    )
    checkpoint.stage("start").clear()
    return Calibration(population, *corrections, history)


def _posterior(
    catalogue, forward, start, generator, checkpoint, *, density_steps=8000, polish=50, polish_lr=3e-5, corrections=False, **options
):
    drawn = checkpoint.stage("draws")
    if saved := drawn.load():
        theta, em_history = saved["theta"].to(catalogue.flux), saved["history"]
        generator.set_state(saved["generator"])
    else:
        photometry = catalogue.flux[: len(start)], catalogue.flux_err[: len(start)]
        found = expectation_maximisation.posteriors(
            *photometry, forward=forward, start=start, generator=generator, checkpoint=checkpoint.stage("em"), **options
        )
        theta, em_history = found.theta, found.history
        drawn.save({"theta": theta, "history": em_history, "generator": generator.get_state()})
    population = _learn(theta.flatten(0, 1), generator, checkpoint.stage("density"), density_steps)
    learned, history = (forward.log_zero_point, forward.line_scale), {}
    if _comparable(catalogue) or corrections:
        train, held = _split(catalogue, "the transport at the end", generator)
        population, learned, history = match(
            population, forward, optimal_transport.Transport(train), held, generator=generator, checkpoint=checkpoint.stage("polish"),
            iterations=polish, lr=polish_lr, corrections=corrections,
        )  # fmt: skip
    else:
        print(f"calibrate: fewer than {_FEWEST} galaxies have all bands, so there is no transport at the end")
    for name in ("em", "draws", "density"):
        checkpoint.stage(name).clear()
    return Calibration(population, *learned, history | {f"em_{name}": values for name, values in em_history.items()}, theta)


def _learn(theta, generator, checkpoint, steps, **options):
    """Density of galaxies, or the one that a killed run had learned."""
    saved = checkpoint.load()
    if saved:
        generator.set_state(saved["generator"])
        return Population.from_state(saved["population"]).to(theta.device)
    population = Population.fit(theta[inside(theta)], generator=generator, steps=steps, **options)[0]
    checkpoint.save({"population": population.state_dict(), "generator": generator.get_state()})
    return population


def _comparable(catalogue):
    """Whether enough galaxies have all bands for a distance of clouds."""
    return int(catalogue.flux.isfinite().all(-1).sum()) >= _FEWEST


def _split(catalogue, what, generator):
    """asinh magnitudes of galaxies with all bands, two thirds to learn from and one held out."""
    whole = catalogue.flux.isfinite().all(-1)
    if not whole.all():
        print(f"calibrate: {int((~whole).sum())} of {len(whole)} galaxies lack a band and are left out of {what}")
    if not _comparable(catalogue):
        raise ValueError(
            f"only {int(whole.sum())} of {len(whole)} galaxies have all {catalogue.flux.shape[-1]} bands, too few to compare clouds of "
            'photometry: drop the band that is missing most, or take objective="posterior", which needs no band in particular'
        )
    magnitude = asinh_magnitude(catalogue.flux[whole])
    order = torch.randperm(len(magnitude), generator=generator, device=generator.device).to(magnitude.device)
    cut = (2 * len(magnitude)) // 3
    return magnitude[order[:cut]], magnitude[order[cut:]]


def ensemble(calibration, forward, catalogue, *, members, generator, checkpoint=None, steps=8000, polish=50, polish_lr=3e-5, **options):
    """The uncertainty of the population: densities of bootstrapped galaxies, each trained anew, each with a short transport.

    Galaxies are drawn with replacement, each with all draws of its posterior; those not drawn, about a third, decide when the transport
    stops. The spread covers the sampling of the catalogue and the randomness of training, not the prior of the draws.

    Parameters
    ----------
    calibration : Calibration, or Tensor of shape (n, k, 16)
        A calibration with the objective "posterior", or its draws.
    forward : ForwardModel
        The corrections of the calibration are put in; with draws alone, it is used as it is.
    catalogue : object with ``flux``, (n, 26) [µJy]
        The galaxies of the draws, in the same order; the transport also uses the photometry of any that follow.
    members : int
    generator : torch.Generator
    checkpoint : checkpoint.Checkpoint, optional
        Written after each member.
    steps : int
        Training steps of each density.
    polish, polish_lr : int, float
        Steps and rate of the transport.
    **options
        Options of ``Population.fit``.

    Returns
    -------
    Ensemble

    Raises
    ------
    ValueError
        If there are no draws, or more sets of them than galaxies.
    """
    draws = getattr(calibration, "draws", calibration)
    if draws is None:
        raise ValueError('an ensemble resamples the draws of each galaxy: calibrate with objective="posterior"')
    if len(draws) > len(catalogue.flux):
        raise ValueError(f"draws of {len(draws)} galaxies and a catalogue of {len(catalogue.flux)}: give the galaxies calibrated on")
    if isinstance(calibration, Calibration):
        forward = forward.corrected(calibration.log_zero_point, calibration.line_scale)
    checkpoint = checkpoint or Checkpoint(None, {})
    made, whole = [], catalogue.flux.isfinite().all(-1)
    if saved := checkpoint.load():
        made = [Population.from_state(state).to(draws.device) for state in saved["members"]]
        generator.set_state(saved["generator"])
    while len(made) < members:
        rows = torch.randint(len(whole), (len(whole),), generator=generator, device=generator.device).to(draws.device)
        left = whole.clone()
        left[rows] = False
        population = _learn(draws[rows[rows < len(draws)]].flatten(0, 1), generator, Checkpoint(None, {}), steps, **options)
        if _comparable(catalogue):
            loss = optimal_transport.Transport(asinh_magnitude(catalogue.flux[rows[whole[rows]]]))
            held = asinh_magnitude(catalogue.flux[left])
            population = match(population, forward, loss, held, generator=generator, iterations=polish, lr=polish_lr)[0]
        made.append(population)
        checkpoint.save({"members": [member.state_dict() for member in made], "generator": generator.get_state()})
    checkpoint.clear()
    return Ensemble(made)


class Unselected(NamedTuple):
    """Galaxies corrected for the selection by weights.

    Attributes
    ----------
    theta : Tensor of shape (n, 16)
        Draws of p(theta | selected).
    weight : Tensor of shape (n,)
        1 / P(selected | theta). The weighted draws follow p(theta); a weight is the number of galaxies per selected one.
    beyond : Tensor of shape (n,), bool
        P(selected | theta) below ``BEYOND``: the catalogue has almost no information on such galaxies, so their weight is an extrapolation.
    """

    theta: torch.Tensor
    weight: torch.Tensor
    beyond: torch.Tensor


@torch.no_grad()
def unselected(population, forward, n, generator, repeats=16):
    """Convert p(theta | selected), which a calibration learns, to p(theta), as far as the catalogue reaches.

    Parameters
    ----------
    population : Population or Ensemble
    forward : ForwardModel
    n : int
        Number of galaxies.
    generator : torch.Generator
    repeats : int
        Number of draws of the flux error over which P(selected | theta) is averaged; the average over the noise is exact.

    Returns
    -------
    Unselected
    """
    theta = population.sample(n, generator)
    flux = forward.flux(theta)
    chance = torch.zeros_like(flux[:, 0])
    for _ in range(repeats):
        flux_err = forward.survey.sigma(flux, draws=forward.draws(n, generator).sigma)
        chance += forward.log_selected(Photometry(flux, flux_err, flux, None)).exp() / repeats
    return Unselected(theta, 1 / chance, chance < BEYOND)
