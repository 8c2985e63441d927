"""Joint model of the flux errors: recovers a law that is known, keeps a group of bands on one tile, stays differentiable."""

import math

import pytest
import torch

from popcosmos_lib.survey import joint_errors, uncertainty

N = 6000


@pytest.fixture(scope="module")
def sky():
    """Fluxes from faint to bright, and the errors that two depths give them."""
    generator = torch.Generator().manual_seed(3)
    flux = 10 ** (0.5 * torch.randn(N, 26, generator=generator))
    return flux, uncertainty.TwoDepths().sample(flux, generator=generator)


@pytest.fixture(scope="module")
def learned(sky):
    generator = torch.Generator().manual_seed(4)
    margin = uncertainty.train(*sky, 200, generator, components=1)[0]
    return joint_errors.train(*sky, margin, 4000, generator)[0]


def test_the_near_infrared_bands_lie_on_one_tile(sky, learned):
    """The sign of the residual says which tile a galaxy is on: bands of a group agree, as in the truth, more than a copula could say."""
    generator = torch.Generator().manual_seed(5)
    flux, sigma = sky
    drawn = learned.sample(flux, generator=generator)
    y, ks = (uncertainty.BANDS["short"].index(band) for band in ("Y", "Ks"))

    def agree(errors):
        side = learned.residual(flux, errors)[:, [y, ks]] > 0
        return float((side[:, 0] == side[:, 1]).float().mean())

    assert agree(sigma) > 0.9 and abs(agree(drawn) - agree(sigma)) < 0.08


def test_marginals_are_calibrated(sky, learned):
    generator = torch.Generator().manual_seed(6)
    values = uncertainty.pit(learned, sky[0][:2000], sky[1][:2000], generator).sort(0).values
    distance = (values - torch.linspace(0, 1, 2000)[:, None]).abs().amax(0)
    assert distance.median() < 0.04 and distance.max() < 0.1


def test_draws_fix_the_errors_and_gradients_are_finite(sky, learned):
    flux = sky[0][:40].clone().requires_grad_()
    draws = torch.randn(40, learned.width, generator=torch.Generator().manual_seed(7))
    first = learned.sample(flux, draws=draws)
    assert torch.equal(first, learned.sample(flux, draws=draws)) and (first > 0).all()
    slope = torch.autograd.grad(first.log().sum(), flux)[0]
    assert slope.isfinite().all() and slope.abs().sum() > 0
    with pytest.raises(ValueError, match=r"\(40, 26\)"):
        learned.sample(flux, draws=draws[:, :3])


def test_missing_bands_neither_stop_the_training_nor_the_draws(sky):
    generator = torch.Generator().manual_seed(8)
    flux, sigma = (values[:800].clone() for values in sky)
    flux[:200, 3], sigma[100:300, 7] = torch.nan, torch.nan
    margin = uncertainty.train(flux, sigma, 20, generator, components=1)[0]
    model = joint_errors.train(flux, sigma, margin, 20, generator)[0]
    drawn = model.sample(flux, generator=generator)
    assert drawn[:, [0, 25]].isfinite().all()
    with pytest.raises(ValueError, match="not positive"):
        joint_errors.train(flux, torch.zeros_like(sigma), margin, 1, generator)


def test_a_state_gives_the_same_model_of_either_kind(sky, learned):
    draws = torch.randn(20, 26, generator=torch.Generator().manual_seed(9))
    for model in (learned, learned.margin):
        again = joint_errors.from_state(model.state_dict())
        assert type(again) is type(model)
        assert torch.equal(again.sample(sky[0][:20], draws=draws), model.sample(sky[0][:20], draws=draws))


def test_the_joint_density_prefers_the_sky_to_shuffled_errors(sky, learned):
    """Errors that are right band by band but belong to different galaxies are less likely together."""
    flux, sigma = (values[:300] for values in sky)
    mixed = sigma.clone()
    for band in range(0, 26, 2):
        mixed[:, band] = sigma[torch.randperm(300, generator=torch.Generator().manual_seed(band)), band]
    with torch.no_grad():
        assert learned.joint_log_prob(flux, sigma).mean() > learned.joint_log_prob(flux, mixed).mean() + 3


def test_a_gaussian_law_is_learned_by_one_gaussian():
    """ln sigma = -4 - 0.3 ln F + 0.2 n: mean, width and uniform probabilities."""
    generator = torch.Generator().manual_seed(10)
    flux = 10 ** torch.randn(8000, 26, generator=generator)
    sigma = (-4 - 0.3 * flux.log() + 0.2 * torch.randn(flux.shape, generator=generator)).exp()
    margin = uncertainty.train(flux, sigma, 400, generator, components=1)[0]
    middle = 10 ** torch.linspace(-1, 1.5, 9)[:, None].expand(-1, 26)
    model = joint_errors.train(flux, sigma, margin, 1, generator)[0]
    with torch.no_grad():
        mean, width = model._place(middle)
        probability = margin.cdf(flux, sigma).sort(0).values
    assert (mean + 4 + 0.3 * middle.log()).abs().max() < 0.06 and (width - 0.2).abs().max() < 0.03
    assert (probability - torch.linspace(0, 1, len(flux))[:, None]).abs().max() < 0.03


def test_holes_are_filled_with_the_conditional_gaussian():
    generator = torch.Generator().manual_seed(11)
    law = torch.tensor([[1.0, 0.8, 0.3], [0.8, 2.0, 0.5], [0.3, 0.5, 0.7]], dtype=torch.float64)
    x = torch.full((40_000, 3), torch.nan, dtype=torch.float64)
    x[:, 1] = 1.5
    filled = joint_errors._impute(x, law, generator)
    others = [0, 2]
    mean = law[others, 1] / law[1, 1] * 1.5
    spread = law[others][:, others] - law[others, 1:2] @ law[1:2, others] / law[1, 1]
    assert (filled[:, 1] == 1.5).all()
    assert torch.allclose(filled[:, others].mean(0), mean, atol=0.02) and torch.allclose(torch.cov(filled[:, others].T), spread, atol=0.02)


def test_covariance_of_pairs_is_not_diluted_by_holes():
    generator = torch.Generator().manual_seed(12)
    x = torch.randn(50_000, 1, generator=generator) + 0.5 * torch.randn(50_000, 3, generator=generator)
    whole = uncertainty.covariance(x)
    x[torch.rand(x.shape, generator=generator) < 0.4] = torch.nan
    assert torch.allclose(uncertainty.covariance(x), whole, atol=0.04)


def test_what_is_tied_may_depend_on_brightness():
    """Two bands vary together in bright galaxies and against each other in faint ones: no copula of one correlation does that."""
    generator = torch.Generator().manual_seed(13)
    magnitude = 22 + 2 * torch.randn(6000, 1, generator=generator)
    flux = (10 ** (0.4 * (23.9 - magnitude))).expand(-1, 26)
    normal = torch.randn(flux.shape, generator=generator)
    normal[:, 1] = torch.where(magnitude[:, 0] < 22, 1.0, -1.0) * (0.9 * normal[:, 0]) + math.sqrt(1 - 0.81) * normal[:, 1]
    sigma = (-3 + 0.2 * normal).exp()
    margin = uncertainty.train(flux, sigma, 150, generator, components=1)[0]
    model = joint_errors.train(flux, sigma, margin, 2000, generator)[0]
    with torch.no_grad():
        for level, sign in ((19.5, 1), (24.5, -1)):
            drawn = model.sample(torch.full((4000, 26), 10 ** (0.4 * (23.9 - level))), generator=generator).log()
            assert sign * torch.corrcoef(drawn[:, :2].T)[0, 1] > 0.6


def test_the_gradient_in_flux_is_that_of_the_draw(sky, learned):
    model = joint_errors.from_state(learned.state_dict()).double()
    flux, draws = sky[0][:30].double(), torch.randn(30, 26, generator=torch.Generator().manual_seed(14)).double()
    probe, step = flux.clone().requires_grad_(), 1e-5 * flux
    slope = torch.autograd.grad(model.sample(probe, draws=draws).log().sum(), probe)[0]
    direction = torch.randn(flux.shape, generator=torch.Generator().manual_seed(15)).double() * step
    with torch.no_grad():
        change = (model.sample(flux + direction, draws=draws).log() - model.sample(flux - direction, draws=draws).log()).sum(-1) / 2
    assert torch.allclose((slope * direction).sum(-1), change, rtol=1e-3, atol=1e-9)


def test_no_draw_runs_away(sky, learned):
    """Where nothing was learned the network says anything; a draw that follows it would end at an infinite error."""
    far = 20 * torch.eye(26)
    sigma = learned.sample(sky[0][:26], draws=far)
    mean, width = learned._place(sky[0][:26])
    bound = (width * (learned.centre.abs() + joint_errors._FARTHEST * learned.mixing.abs().sum(-1))).exp()
    assert (sigma <= 1.01 * mean.exp() * bound).all() and (sigma >= 0.99 * mean.exp() / bound).all()
