"""Closed-form priors: density and draws must be one distribution, normalised, with gradients everywhere."""

import math

import pytest
import torch

from popcosmos_lib.galaxies import parameters, priors
from popcosmos_lib.population.metrics import ks, ks_limit

NORMAL = torch.distributions.Normal(0.0, 1.0)


@pytest.fixture
def g():
    return torch.Generator().manual_seed(1)


def proposal(n, g):
    """Points that cover the prior in phi, and their ln density: mass function as drawn, broad normals elsewhere."""
    phi = parameters.to_latent(priors.Broad().sample(n, g).double())
    log_q = priors.Broad().log_prob(phi)
    ratios = slice(2, 8)  # the ratios are concentrated and have tails: a Student-t matches them
    t = torch.distributions.StudentT(torch.tensor(2.0, dtype=torch.float64), 0.0, 0.08)
    u = torch.rand(n, 6, generator=g, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    draws = 0.08 * (2 * u - 1) / torch.sqrt(2 * u * (1 - u))
    old = phi[:, ratios]
    phi = torch.cat([phi[:, :2], draws, phi[:, 8:]], 1)
    return phi, log_q + (t.log_prob(draws) - NORMAL.log_prob(old)).sum(1)


def test_prospector_density_is_normalised(g):
    phi, log_q = proposal(200_000, g)
    weight = (priors.Prospector().log_prob(phi) - log_q).exp()
    error = float(weight.std()) / math.sqrt(len(weight))
    assert error < 0.05
    assert float(weight.mean()) == pytest.approx(1.0, abs=4 * error), "with all Jacobians and truncations it integrates to one"


def test_broad_density_is_normalised_and_uniform_in_theta(g):
    broad = priors.Broad()
    theta = broad.sample(4000, g).double()
    phi = parameters.to_latent(theta)
    per_theta = broad.log_prob(phi) - parameters.log_jacobian(phi)
    widths = (parameters.BOUNDS[:, 1] - parameters.BOUNDS[:, 0]).log().sum()
    assert torch.allclose(per_theta, -widths.expand_as(per_theta), atol=1e-3)


@pytest.fixture(scope="module")
def both_ways():
    g = torch.Generator().manual_seed(2)
    phi, log_q = proposal(200_000, g)
    log_w = priors.Prospector().log_prob(phi) - log_q
    pick = torch.multinomial(torch.softmax(log_w, 0), 3000, replacement=True, generator=g)
    return parameters.to_theta(phi[pick]), priors.Prospector().sample(20_000, g)


@pytest.mark.parametrize("name", ["log10M_formed", "log10Z", "dust2", "dust_index", "dust1_fraction", "log10SFR_ratio3", "z"])
def test_prospector_draws_follow_its_density(name, both_ways):
    """Importance-weighted proposal against draws, one marginal at a time."""
    weighted, direct = (parameters.column(theta, name) for theta in both_ways)
    assert ks(weighted, direct) < 1.5 * ks_limit(3000), f"{name}: sample() and log_prob() are two distributions"


def test_metallicity_is_a_normalised_truncated_normal():
    """Against the public code, whose normaliser holds log10 Z in place of the mean."""
    mean, sd = torch.tensor(-0.6, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    x = torch.linspace(-1.98, 0.19, 20_001, dtype=torch.float64)
    density = priors._log_truncated_normal(x, mean, sd, -1.98, 0.19).exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(1.0, abs=1e-6)


def test_mass_function_at_its_knots():
    """Leja+20 at z = 1.6: both Schechter terms by hand."""
    log_mass, z = torch.tensor(10.5, dtype=torch.float64), torch.tensor(1.6, dtype=torch.float64)
    x = 10 ** (10.5 - 10.88)
    by_hand = math.log(10) * math.exp(-x) * (10**-3.08 * x**0.72 + 10**-3.29 * x**-0.48)
    assert float(priors.log_mass_function(log_mass, z)) == pytest.approx(math.log(by_hand), abs=1e-9)
    assert torch.equal(priors.log_mass_function(log_mass, torch.tensor(5.0)), priors.log_mass_function(log_mass, torch.tensor(3.0)))


@pytest.mark.parametrize("prior", [priors.Prospector(), priors.Broad()])
def test_gradients_are_finite_even_far_outside(prior, g):
    phi = 4 * torch.randn(2000, 16, generator=g)
    phi[:, 0] = 30 * torch.rand(2000, generator=g)  # masses far beyond both bounds
    phi.requires_grad_()
    log_p = prior.log_prob(phi)
    (gradient,) = torch.autograd.grad(log_p.sum(), phi)
    assert torch.isfinite(log_p).all() and torch.isfinite(gradient).all()


def test_library_reaches_bright_galaxies_that_draws_do_not(g):
    prior = priors.Prospector()
    shares = [float((parameters.check(rows)[:, 0] > 11).double().mean()) for rows in (prior.library(5000, g), prior.sample(5000, g))]
    assert shares[0] > 0.2 > 10 * shares[1]


def test_mixture_learns_a_correlated_density(g):
    theta = priors.Prospector().library(6000, g)
    mixture = priors.Mixture(theta[:5000], g, components=12, iterations=12)
    phi = parameters.to_latent(theta[5000:])
    shuffled = torch.stack([column[torch.randperm(len(phi), generator=g)] for column in phi.T], 1)
    assert mixture.log_prob(phi).mean() > mixture.log_prob(shuffled).mean() + 0.5, "the correlations must be in the density"
    # normalised: the mean of p / q over draws of a wide normal q
    wide = 2.0 * mixture.scale
    draws = mixture.shift + wide * torch.randn(200_000, 16, generator=g)
    log_q = (NORMAL.log_prob((draws - mixture.shift) / wide) - wide.log()).sum(1)
    weight = (mixture.log_prob(draws) - log_q).exp().double()
    assert float(weight.mean()) == pytest.approx(1.0, abs=5 * float(weight.std()) / math.sqrt(len(weight)))
    assert torch.isfinite(mixture.log_prob(100 * torch.randn(100, 16, generator=g))).all()
