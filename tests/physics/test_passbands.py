"""Spectra through bands on a redshifted grid: the integral, not an approximation that ripples with redshift."""

import numpy as np
import pytest
import torch

from popcosmos_lib.synthesis import filters

WAVE = torch.as_tensor(np.geomspace(300.0, 1e7, 3125))


@pytest.fixture(scope="module")
def bands():
    return filters.load("cosmos")


@pytest.fixture(scope="module")
def through(bands):
    return filters.Passbands(bands, WAVE).double()


@pytest.fixture(scope="module")
def light():
    """Two spectra that jump from pixel to pixel, as lines of stellar atmospheres make real ones do."""
    g = torch.Generator().manual_seed(1)
    return torch.rand(2, len(WAVE), generator=g, dtype=torch.float64) * (WAVE / 5000) ** 1.5


def test_flat_spectrum_has_its_flux_at_every_redshift(through):
    z = torch.linspace(0, 6, 400, dtype=torch.float64)
    seen = through(torch.full((400, len(WAVE)), 3.0, dtype=torch.float64), z)
    torch.testing.assert_close(seen, torch.full_like(seen, 3.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("z", [0.0, 0.3337, 1.0016, 5.9])
def test_jagged_spectra_have_their_exact_average(bands, through, light, z):
    for row in light:
        expected = bands.average(WAVE.numpy() * (1 + z), row.numpy())
        seen = through(row[None], torch.tensor([z], dtype=torch.float64))[0]
        assert (2.5 * torch.log10(seen / expected)).abs().max() < 4e-3


def test_the_response_does_not_ripple_from_pixel_to_pixel(through, light):
    """Two spectra, one pixel apart, through the same bands at redshifts one pixel apart are one observation."""
    step = through.step
    z = torch.expm1(torch.arange(0.5, 0.5 + 40 * step, step / 7, dtype=torch.float64))
    seen = through(light[:1].expand(len(z), -1), z)
    moved = through(light[:1].roll(1, -1).expand(len(z), -1), torch.expm1(torch.log1p(z) - step))
    torch.testing.assert_close(seen, moved, rtol=1e-9, atol=0)
    slope, bend = seen.diff(dim=0), seen.diff(n=2, dim=0)
    assert (bend.abs().amax(0) < slope.abs().amax(0)).all(), "the slope itself must be continuous"


def test_gradient_in_redshift_is_that_of_the_flux(through, light):
    z = torch.tensor([0.7, 2.2], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(through(light, z).sum(), z)
    numeric = (through(light, z + 1e-6).sum(-1) - through(light, z - 1e-6).sum(-1)) / 2e-6
    torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=1e-8)
