"""Expectation-maximisation: answers that are known, missing bands, a killed run."""

import pytest
import torch
from toy import Toy

from popcosmos_lib import population, survey
from popcosmos_lib.artefacts.checkpoint import Checkpoint
from popcosmos_lib.galaxies import parameters, priors
from popcosmos_lib.population import expectation_maximisation
from popcosmos_lib.synthesis.filters import SHORT

R = SHORT.index("r")
BLIND = 40  # galaxies without any band
QUICK = {"start_steps": 40, "refit_steps": 20, "width": 16, "depth": 2, "trajectories": 8, "keep": 2}


class Grey:
    """Every galaxy has the same flat spectrum: N alone is seen, the other 15 parameters are not."""

    error = None

    def magnitudes(self, theta):
        return parameters.to_latent(theta)[..., :1].expand(*theta.shape[:-1], len(SHORT))


class Constant:
    """Errors of 30 % of the flux at r = 23.9."""

    width = 1

    def sample(self, flux, generator=None, draws=None):
        return torch.full_like(flux, 0.3)


def galaxies(n, mean, sd, generator):
    """theta of galaxies near z = 1 with N from a Gaussian."""
    phi = torch.randn(n, 16, generator=generator)
    phi[:, 0], phi[:, -1] = mean + sd * phi[:, 0], -0.97 + 0.1 * phi[:, -1]
    return parameters.to_theta(phi)


@pytest.fixture(scope="module")
def grey():
    """Faint galaxies seen in r only, and what EM makes of them from a start that is too bright and too wide."""
    generator = torch.Generator().manual_seed(5)
    forward = population.ForwardModel(Grey(), survey.Survey(Constant()))
    theta = galaxies(700, 23.8, 0.5, generator)
    seen = forward(theta, forward.draws(len(theta), generator))
    flux = seen.flux[seen.selected]
    flux[:, [b for b in range(26) if b != R]] = torch.nan
    flux[:BLIND] = torch.nan
    options = {"iterations": 3, "start_steps": 150, "refit_steps": 60, "smoothing": (0.05, 0.02), "held_out": 0.2, "trajectories": 30}
    found = expectation_maximisation.posteriors(
        flux, torch.full_like(flux, 0.3), forward=forward, start=galaxies(5 * len(flux), 23.4, 0.7, generator).view(len(flux), 5, 16),
        generator=generator, floor=0.0, **(QUICK | options | {"keep": 4}),
    )  # fmt: skip
    return flux[BLIND:, R], found


def brightness(theta):
    return parameters.to_latent(theta)[..., 0].flatten()


def by_quadrature(flux, iterations, mean, sd):
    """The same expectation-maximisation on a grid of N: the pooled posterior of the last two iterations."""
    n = torch.linspace(20, 28, 801).double()
    model = 10 ** (0.4 * (23.9 - n))
    t = (flux[:, None].double() - model) / 0.3
    need = (10 ** (0.4 * (23.9 - 25.0)) - model) / 0.3  # noise that keeps it in the sample, in units of the error
    log_l = -1.5 * torch.log1p(t**2 / 2) - torch.log((1 - need / (2 + need**2).sqrt()) / 2)
    density, pools = torch.exp(-0.5 * ((n - mean) / sd) ** 2), []
    for _ in range(iterations):
        posterior = torch.softmax(log_l + density.log(), -1)
        density = posterior.mean(0)
        pools.append(density)
    pool = torch.stack(pools[-2:]).mean(0)
    centre = (pool * n).sum()
    return float(centre), float((pool * (n - centre) ** 2).sum().sqrt())


def test_the_posteriors_are_those_of_the_closed_form(grey):
    """Deconvolution in one dimension: the truncated Student-t likelihood, the refits and the chains give what quadrature gives."""
    flux, found = grey
    draws, (mean, sd) = brightness(found.theta[BLIND:]), by_quadrature(flux, 3, 23.4, 0.7)
    assert draws.mean() == pytest.approx(mean, abs=0.05)
    assert draws.std() == pytest.approx(sd, abs=0.05)
    assert abs(mean - 23.4) > 0.15 and sd < 0.65, "the start is wrong enough for this to be a test"


def test_what_photometry_does_not_see_stays_as_it_was(grey):
    unseen = parameters.to_latent(grey[1].theta)[BLIND:, :, 1:15].flatten(0, 1)
    assert unseen.mean(0).abs().max() < 0.12 and (unseen.std(0) - 1).abs().max() < 0.12


def test_a_galaxy_without_bands_draws_from_the_population(grey):
    found = grey[1]
    blind, others = brightness(found.theta[:BLIND]), brightness(found.theta[BLIND:])
    assert blind.mean() == pytest.approx(float(others.mean()), abs=0.15) and blind.std() == pytest.approx(float(others.std()), rel=0.25)


def test_history_and_shapes(grey):
    found = grey[1]
    assert found.theta.shape[1:] == (8, 16) and found.theta.isfinite().all() and population.inside(found.theta).float().mean() > 0.99
    assert all(len(entries) == 3 for entries in found.history.values()) and found.history["iteration"] == [1, 2, 3]
    assert min(found.history["accepted"]) > 0.5, "chains that hardly move draw nothing"


@pytest.fixture
def toy():
    generator = torch.Generator().manual_seed(1)
    forward = population.ForwardModel(Toy(), survey.truth())
    theta = priors.Prospector().library(1500, generator)
    seen = forward(theta, forward.draws(len(theta), generator))
    rows = seen.selected.nonzero()[:50, 0]
    return {"forward": forward, "start": theta[rows]} | QUICK, seen.flux[rows], seen.flux_err[rows]


def test_a_killed_run_ends_where_an_unbroken_one_does(toy, tmp_path, monkeypatch):
    options, *photometry = toy
    whole = expectation_maximisation.posteriors(*photometry, generator=torch.Generator().manual_seed(2), iterations=3, **options)
    kept = Checkpoint(tmp_path / "em.pt", {"run": 1})
    maximise = expectation_maximisation._State.maximise

    def killed(state, *args):
        if len(state.history["iteration"]) == 2:
            raise KeyboardInterrupt
        maximise(state, *args)

    with monkeypatch.context() as patch:
        patch.setattr(expectation_maximisation._State, "maximise", killed)
        with pytest.raises(KeyboardInterrupt):
            expectation_maximisation.posteriors(
                *photometry, generator=torch.Generator().manual_seed(2), iterations=3, checkpoint=kept, **options
            )
    assert len(kept.load()["history"]["fitted"]) == 1
    resumed = expectation_maximisation.posteriors(
        *photometry, generator=torch.Generator().manual_seed(2), iterations=3, checkpoint=kept, **options
    )
    assert torch.equal(resumed.theta, whole.theta) and resumed.history == whole.history
    assert all(torch.equal(a, b) for a, b in zip(resumed.flow.parameters(), whole.flow.parameters(), strict=True))


def test_it_stops_when_only_its_own_galaxies_are_learned(toy):
    """Twenty galaxies, many steps: the density soon describes the others worse, and no further iteration is made."""
    options, *photometry = toy
    found = expectation_maximisation.posteriors(
        *photometry, generator=torch.Generator().manual_seed(4), iterations=8, **(options | {"refit_steps": 150})
    )
    scores = found.history["held_out"]
    assert len(scores) < 8 and scores[-1] > scores[-2]


def test_wrong_arguments_are_named(toy):
    options, *photometry = toy
    with pytest.raises(ValueError, match="start must be finite"):
        expectation_maximisation.posteriors(
            *photometry, generator=torch.Generator(), **(options | {"start": torch.full((50, 16), torch.nan)})
        )
    with pytest.raises(ValueError, match="each of the 50 galaxies"):
        expectation_maximisation.posteriors(*photometry, generator=torch.Generator(), **(options | {"start": options["start"][:9]}))
