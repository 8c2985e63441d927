"""The 16 parameters: latent space, star-formation bins and derived quantities."""

import math

import numpy as np
import pytest
import torch
from astropy.cosmology import Planck18

from popcosmos_lib.galaxies import parameters, universe


@pytest.fixture(scope="module")
def theta():
    return universe.sample(200, generator=torch.Generator().manual_seed(3)).double()


def test_latent_round_trip(theta):
    back = parameters.to_theta(parameters.to_latent(theta))
    assert torch.allclose(back, theta, atol=1e-5)


def test_uniform_parameters_are_normal_latents():
    lower, upper = parameters.BOUNDS.T
    u = torch.rand(20_000, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    phi = parameters.to_latent(lower + (upper - lower) * u)[:, 1:]
    assert phi.mean().abs() < 0.01 and (phi.std() - 1).abs() < 0.01


def test_jacobian_is_that_of_the_map(theta):
    phi = parameters.to_latent(theta[:5])
    rows = torch.stack([torch.autograd.functional.jacobian(parameters.to_theta, row) for row in phi])
    assert torch.allclose(parameters.log_jacobian(phi), torch.linalg.slogdet(rows)[1], atol=1e-6)


def test_bins_follow_the_upstream_edges():
    edges = parameters.age_edges(torch.tensor([0.0, 1.3, 5.5], dtype=torch.float64))
    age = Planck18.age([0.0, 1.3, 5.5]).value
    assert np.allclose(edges[:, [0, 1, 2]], [0.0, 0.03, 0.1])
    assert np.allclose(edges[:, 6], 0.85 * age, rtol=1e-5) and np.allclose(edges[:, 7], age, rtol=1e-5)
    ratio = edges[:, 3:7] / edges[:, 2:6]
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio)), "bins 3 to 6 are equal in log age"


def test_mass_fractions_are_the_recursion_of_the_paper(theta):
    fractions = parameters.mass_fractions(theta)
    width = parameters.age_edges(theta[:, 15]).diff(dim=-1)
    sfr = fractions / width
    assert torch.allclose(fractions.sum(-1), torch.ones(len(theta), dtype=torch.float64))
    assert torch.allclose(torch.log10(sfr[:, :-1] / sfr[:, 1:]), theta[:, 2:8], atol=1e-9), "log10(SFR_i / SFR_i+1), youngest first"


def test_derived_quantities_of_a_constant_history():
    theta = torch.zeros(1, 16, dtype=torch.float64)
    theta[:, 0], theta[:, 15] = 10.0, 0.5
    age = Planck18.age(0.5).value
    assert parameters.mass_weighted_age(theta).item() == pytest.approx(age / 2, rel=1e-4)
    assert parameters.log_sfr(theta).item() == pytest.approx(math.log10(1e10 / (age * 1e9)), abs=1e-4)


def test_check_names_what_is_wrong(theta):
    assert parameters.check(theta) is theta
    for name, value in (("z", 7.0), ("dust2", -0.5), ("log10Z", math.nan)):
        bad = theta.clone()
        bad[3, parameters.INDEX[name]] = value
        with pytest.raises(ValueError, match=name):
            parameters.check(bad)
    with pytest.raises(ValueError, match="16 columns"):
        parameters.check(theta[:, :15])
