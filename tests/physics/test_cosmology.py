"""The tabulated cosmology against astropy's own functions."""

import numpy as np
import pytest
import torch
from astropy.cosmology import Planck18

from popcosmos_lib.galaxies import cosmology

Z = np.array([1e-4, 0.0013, 0.05, 0.7, 1.99951, 3.3333, 6.0, 12.0])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (cosmology.age, lambda z: Planck18.age(z).value),
        (cosmology.luminosity_distance, lambda z: Planck18.luminosity_distance(z).value),
        (cosmology.distance_modulus, lambda z: Planck18.distmod(z).value),
        (cosmology.comoving_volume, lambda z: 4 * np.pi * Planck18.differential_comoving_volume(z).value),
    ],
)
def test_agrees_with_astropy(ours, theirs):
    assert torch.allclose(ours(torch.tensor(Z)), torch.tensor(theirs(Z)), rtol=2e-5)


def test_derivatives_of_distance_are_those_of_the_expansion():
    z = torch.tensor(Z[2:-1], requires_grad=True)
    comoving = cosmology.luminosity_distance(z) / (1 + z)
    (slope,) = torch.autograd.grad(comoving.sum(), z)
    expected = 299792.458 / Planck18.H(Z[2:-1]).value  # d comoving / dz = c / H
    assert torch.allclose(slope, torch.tensor(expected), rtol=2e-3)


def test_redshift_zero_is_finite():
    z = torch.zeros(1, requires_grad=True)
    (slope,) = torch.autograd.grad(cosmology.distance_modulus(z), z)
    assert cosmology.distance_modulus(z).isfinite().all() and slope.isfinite().all()
