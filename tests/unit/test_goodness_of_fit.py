"""Posterior-predictive p-values against the law they claim."""

import pytest
import torch

from popcosmos_lib import survey
from popcosmos_lib.fitting import goodness_of_fit


@pytest.mark.parametrize("bands", [9, 26])
def test_uniform_for_galaxies_of_the_model(bands):
    residual = survey.student_t((20_000, 1, bands), torch.Generator().manual_seed(1))
    there = torch.ones(20_000, bands, dtype=torch.bool)
    whole, worst = goodness_of_fit.p_values(residual, there, torch.ones(20_000, 1))
    for level in (0.01, 0.05, 0.5):
        assert float((worst < level).float().mean()) == pytest.approx(level, abs=4 * (level / 20_000) ** 0.5)
        assert float((whole < level).float().mean()) == pytest.approx(level, rel=0.3), "the gamma law is an approximation"


def test_missing_bands_neither_help_nor_harm():
    residual = survey.student_t((4000, 1, 26), torch.Generator().manual_seed(2))
    there = torch.ones(4000, 26, dtype=torch.bool)
    there[:, 10:] = False
    short = goodness_of_fit.p_values(residual[..., :10], there[:, :10], torch.ones(4000, 1))
    padded = goodness_of_fit.p_values(torch.where(there[:, None], residual, 0.0), there, torch.ones(4000, 1))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(short, padded, strict=True))


def test_one_wrong_band_and_a_wrong_spectrum_are_seen():
    good = torch.full((1, 1, 26), 0.5)
    band, spectrum = good.clone(), good * 8
    band[..., 3] = 60.0
    p = goodness_of_fit.p_values(torch.cat([good, band, spectrum]), torch.ones(3, 26, dtype=torch.bool), torch.ones(3, 1))
    assert p[0][0] > 0.5 and p[1][0] > 0.5
    assert p[1][1] < 0.01 < p[0][1], "one band at 60 errors is one among 26 of Student's t, which the largest residual sees"
    assert (goodness_of_fit.combined(*p, torch.ones(len(p[0]))) < goodness_of_fit.UNLIKELY).tolist() == [False, True, True]


def test_false_alarms_are_as_many_as_said():
    residual = survey.student_t((20_000, 1, 26), torch.Generator().manual_seed(3))
    p = goodness_of_fit.p_values(residual, torch.ones(20_000, 26, dtype=torch.bool), torch.ones(20_000, 1))
    share = float((goodness_of_fit.combined(*p, torch.ones(len(p[0]))) < goodness_of_fit.UNLIKELY).float().mean())
    assert 0.9 * goodness_of_fit.UNLIKELY - 0.01 < share < goodness_of_fit.UNLIKELY + 0.005, "the two tests are nearly independent"


def test_a_posterior_where_the_prior_has_hardly_a_galaxy_is_rare():
    g = torch.Generator().manual_seed(4)
    log_p = lambda x: -0.5 * x.square().sum(-1)  # noqa: E731
    levels = log_p(torch.randn(4096, 16, generator=g)).sort().values
    truth = torch.randn(2000, 1, 16, generator=g)
    posterior = (truth + torch.randn(2000, 1, 16, generator=g)) / 2 + 0.5**0.5 * torch.randn(2000, 50, 16, generator=g)
    weight = torch.full((2000, 50), 1 / 50)
    share = goodness_of_fit.rarity(log_p(posterior), weight, levels)
    assert abs(float(share.mean()) - 0.5) < 0.02 and float((share < goodness_of_fit.RARE).float().mean()) < goodness_of_fit.RARE
    assert float(goodness_of_fit.rarity(log_p(posterior + 3), weight, levels).max()) < goodness_of_fit.RARE
    ones = torch.ones(1)
    assert (
        goodness_of_fit.combined(ones, ones, ones * 0.99 * goodness_of_fit.RARE)
        < goodness_of_fit.UNLIKELY
        < goodness_of_fit.combined(ones, ones, ones * 1.01 * goodness_of_fit.RARE)
    )
