"""Scores against cases whose answer is known."""

import math

import pytest
import torch

from popcosmos_lib.population import metrics


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_photoz_scores_follow_their_formulas():
    z_spec = torch.linspace(0.1, 3.0, 10_000, dtype=torch.float64)
    dz = 0.01 + 0.02 * normal(10_000)
    dz[::20] = 0.5  # 5 per cent catastrophic
    score = metrics.photoz(z_spec + dz * (1 + z_spec), z_spec)
    assert score["outliers"] == pytest.approx(0.05, abs=1e-9)
    assert score["median"] == pytest.approx(0.011, abs=1.5e-3)
    assert score["nmad"] == pytest.approx(0.02 * 1.05, abs=1.5e-3)
    assert score["sigma_mad"] == pytest.approx(1.48 * float(dz.abs().median()), rel=1e-3), "sigma_MAD of the papers is not recentred"
    assert score["sigma_mad"] > score["nmad"]
    assert 0.05 <= score["outliers_rail"] < 0.07


def test_photoz_leaves_out_missing_redshifts_and_says_when_none_is_left():
    z = torch.tensor([1.0, float("nan"), 2.0])
    assert metrics.photoz(z, torch.tensor([1.0, 1.0, float("nan")]))["n"] == 1
    with pytest.raises(ValueError, match="no galaxy has both"):
        metrics.photoz(z[1:2], z[:1])


def test_crps_and_cde_loss_of_normal_posteriors_have_their_closed_forms():
    sd, truth = 0.3, normal(50, seed=4)
    draws = sd * normal(50, 2000, seed=5)
    z = truth / sd
    cdf, pdf = torch.special.ndtr(z), torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    assert torch.allclose(metrics.crps(draws, truth), sd * (z * (2 * cdf - 1) + 2 * pdf - 1 / math.sqrt(math.pi)), atol=0.02)
    assert metrics.crps(torch.ones(1, 10), torch.tensor([3.0])) == pytest.approx(2), "a point is scored by its distance"
    loss = 1 / (2 * sd * math.sqrt(math.pi)) - 2 * float((pdf / sd).mean())
    assert metrics.cde_loss(draws, truth) == pytest.approx(loss, abs=0.03)


def test_scores_are_proper():
    """Too narrow, too wide and shifted posteriors all score worse than the right ones."""
    centre = normal(400, seed=6)
    truth = centre + 0.5 * normal(400, seed=7)
    noise = normal(400, 400, seed=8)
    posterior = {
        name: centre[:, None] + shift + width * noise
        for name, shift, width in (("right", 0, 0.5), ("narrow", 0, 0.15), ("wide", 0, 1.5), ("off", 0.7, 0.5))
    }
    for score in (metrics.cde_loss, lambda *a: float(metrics.crps(*a).mean())):
        values = {name: score(draws, truth) for name, draws in posterior.items()}
        assert min(values, key=values.get) == "right", values


def test_tarp_sees_what_each_quantity_alone_hides():
    """Two quantities whose posteriors have the right margins but lack their correlation."""
    centre, turn = normal(1500, 2, seed=9), torch.tensor([[1.0, 0.0], [0.98, 0.2]], dtype=torch.float64)
    truth = centre + 0.5 * normal(1500, 2, seed=10) @ turn.T
    noise = 0.5 * normal(1500, 300, 2, seed=11)
    distance = {}
    for name, draws in (("right", noise @ turn.T), ("uncorrelated", noise)):
        share = metrics.tarp(centre[:, None] + draws, truth, generator=torch.Generator().manual_seed(12))
        distance[name] = metrics.ks(share)
    limit = metrics.ks_limit(1500)
    assert distance["right"] < limit < distance["uncorrelated"], distance


def test_pit_is_uniform_for_calibrated_posteriors_only():
    truth, centre = normal(2000, seed=1), normal(2000, 1, seed=2)
    noisy = truth[:, None] + 0.5 * centre
    mean, sd = noisy / 1.25, math.sqrt(0.2)
    draws = mean + sd * normal(2000, 200, seed=3)
    assert metrics.ks(metrics.pit(draws, truth)) < metrics.ks_limit(2000)
    assert metrics.ks(metrics.pit(mean + 0.5 * sd * normal(2000, 200, seed=3), truth)) > metrics.ks_limit(2000), "too narrow must show"
    low, high = metrics.binomial_range(2000, 0.68)
    assert low <= int(metrics.coverage(draws, truth)) <= high


def test_binomial_range_and_ks_limit_are_the_textbook_ones():
    assert metrics.binomial_range(100, 0.5, 0.95) == (40, 60)
    assert metrics.ks_limit(1000) == pytest.approx(1.628 / math.sqrt(1000), rel=0.02)


def test_ks_of_two_samples():
    assert metrics.ks(normal(4000), normal(4000, seed=1)) < 0.05
    assert metrics.ks(normal(4000), normal(4000, seed=1) + 1) == pytest.approx(0.383, abs=0.03)  # 2 Phi(1/2) - 1


def test_pp_qq_of_a_shift():
    p = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    pp, qq = metrics.pp_qq(normal(50_000), normal(50_000, seed=1) + 0.3, p)
    assert torch.allclose(qq, torch.full_like(qq, 0.3), atol=0.03)
    assert float(pp[1]) == pytest.approx(-0.118, abs=0.01)


def test_classifier_finds_a_difference_that_no_marginal_shows():
    g = torch.Generator().manual_seed(5)
    x, y = normal(1500, 2), normal(1500, 2, seed=9)
    rotated = torch.stack([y[:, 0], 0.9 * y[:, 0] + math.sqrt(1 - 0.81) * y[:, 1]], -1)
    assert metrics.c2st(x, y, generator=g) == pytest.approx(0.5, abs=0.05)
    assert metrics.c2st(x, rotated, generator=g) > 0.65


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.1])
def test_classifier_comes_near_the_best_there_is(shift):
    """26 magnitudes that share their brightness, one of them shifted: the best accuracy is Phi(half the Mahalanobis distance)."""
    g, scatter = torch.Generator().manual_seed(6), 0.05
    x, y = (2 * normal(3000, 1, seed=s) + scatter * normal(3000, 26, seed=s + 1) for s in (10, 20))
    y[:, 3] += shift
    covariance = scatter**2 * torch.eye(26, dtype=torch.float64) + 4
    step = shift * torch.eye(26, dtype=torch.float64)[3]
    best = 0.5 * (1 + math.erf(float(step @ torch.linalg.solve(covariance, step)) ** 0.5 / math.sqrt(8)))
    assert metrics.c2st(x, y, generator=g) == pytest.approx(best, abs=0.035)


def test_scatter_is_that_of_a_normal():
    """For normal residuals sigma_MAD and NMAD are the standard deviation: 1 / 0.67449 = 1.4826 (Thorp+25 rounds to 1.48)."""
    dz = 0.02 * torch.special.ndtri((torch.arange(100_001, dtype=torch.float64) + 0.5) / 100_001)
    score = metrics.photoz(dz, torch.zeros_like(dz))
    assert score["nmad"] == pytest.approx(0.02, rel=1e-3) and score["sigma_mad"] == pytest.approx(0.02, rel=3e-3)


def test_an_outlier_is_beyond_fifteen_per_cent():
    """|dz| / (1 + z) > 0.15 (Thorp+25 sect. 4.3)."""
    z = torch.tensor([1.0, 1.0, 1.0, 0.0])
    far = metrics.outlying(z + (1 + z) * torch.tensor([0.149, 0.151, -0.151, 0.12]), z)
    assert far.tolist() == [False, True, True, False]
