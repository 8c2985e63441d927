"""Trials: data of the likelihood's own law, given that they pass; planted oddities are odd."""

import pytest
import torch
from toy import Normal, Sky, Toy

from popcosmos_lib import survey
from popcosmos_lib.fitting import inference, sbc
from popcosmos_lib.survey import likelihood
from popcosmos_lib.synthesis import filters

FLOOR = 0.02


@pytest.fixture(scope="module")
def trial():
    return sbc.galaxies(4000, Normal(), Toy(), Sky(), torch.Generator().manual_seed(1), floor=FLOOR)


def test_every_galaxy_passes_and_noise_is_students(trial):
    assert survey.select(trial.flux, "r<25").all()
    true = likelihood.model_flux(likelihood.photometry(Toy(), trial.theta))
    t = (trial.flux - true) / (trial.flux_err**2 + (FLOOR * true) ** 2).sqrt()
    r = filters.SHORT.index("r")
    others = torch.cat([t[:, :r], t[:, r + 1 :]], 1)
    assert float(others.abs().median()) == pytest.approx(0.8165, rel=0.02), "median |t| of two degrees of freedom"
    far = true[:, r] < 0.7 * filters.flux_from_magnitude(torch.tensor(25.0))
    assert far.sum() > 20 and (t[far, r] > 0).all(), "galaxies beyond the limit pass by noise only"


def test_missing_bands_are_as_many_as_asked(trial):
    part = sbc.without(trial, 5, torch.Generator().manual_seed(2))
    assert (part.flux.isnan().sum(1) == 5).all() and torch.equal(part.flux.isnan(), part.flux_err.isnan())
    assert part.flux.isnan().any(0).all(), "any band may be missing"


@pytest.mark.parametrize("kind", sbc.ODDITIES)
def test_oddities_change_the_photometry(trial, kind):
    r = filters.magnitude_from_flux(trial.flux[:, filters.SHORT.index("r")])
    rows = ((r > 20) & (r < 23)).nonzero()[:100, 0]
    odd = sbc.planted(kind, trial, 100, torch.Generator().manual_seed(3))
    assert len(odd.theta) > 50, "of the bright ones only, and enough of them"
    torch.testing.assert_close(odd.theta, trial.theta[rows])
    changed = ((odd.flux / trial.flux[rows] - 1).abs() > 0.02).sum(1).float()
    assert odd.flux.isfinite().all() and (odd.flux_err > 0).all()
    assert float(changed.median()) == (1 if kind != "star" else pytest.approx(25, abs=2))


def test_ranks_of_right_and_of_narrow_posteriors():
    g = torch.Generator().manual_seed(4)
    centre = torch.randn(300, 1, 16, generator=g)
    theta, draws = (centre + torch.randn(300, k, 16, generator=g) for k in (1, 256))
    weights = torch.full((300, 256), 1 / 256)
    right = sbc.ranks(inference.Result(draws, weights, None, "pop-cosmos"), theta[:, 0], g)
    assert right.distance.shape == (17,) and float(right.distance.max()) < right.limit and right.spread == pytest.approx(12**-0.5, abs=0.01)
    narrow = sbc.ranks(inference.Result(centre + 0.6 * (draws - centre), weights, None, "pop-cosmos"), theta[:, 0], g)
    assert (narrow.distance > narrow.limit).sum() > 8 and narrow.spread > 0.33


def test_who_knows_the_truth_flags_few_galaxies_and_a_wrong_band(trial):
    r = filters.magnitude_from_flux(trial.flux[:, filters.SHORT.index("r")])
    some = sbc.Trial(*(x[r < 23] for x in trial))  # fainter ones pass by noise, which is no accident to one who knows the truth
    flagged = lambda some: float(sbc.caught(some, Toy(), FLOOR).float().mean())  # noqa: E731
    assert flagged(some) < 0.08
    wrong = some.flux.clone()
    wrong[:, 4] *= 100
    assert flagged(some._replace(flux=wrong)) > 0.9
