"""Joint model of the flux errors: recovers a law that is known, keeps a group of bands on one tile, stays differentiable."""

import pytest
import torch

from popcosmos_lib import residuals, uncertainty

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
    return residuals.train(*sky, margin, 4000, generator)[0]


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
    model = residuals.train(flux, sigma, margin, 20, generator)[0]
    drawn = model.sample(flux, generator=generator)
    assert drawn[:, [0, 25]].isfinite().all()
    with pytest.raises(ValueError, match="not positive"):
        residuals.train(flux, torch.zeros_like(sigma), margin, 1, generator)


def test_a_state_gives_the_same_model_of_either_kind(sky, learned):
    draws = torch.randn(20, 26, generator=torch.Generator().manual_seed(9))
    for model in (learned, learned.margin):
        again = residuals.from_state(model.state_dict())
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
