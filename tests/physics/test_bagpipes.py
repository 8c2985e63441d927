"""The synthesiser against bagpipes itself, where the physics of the two is the same."""

import importlib.util

import bagpipes_model
import numpy as np
import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("bagpipes") is None, reason="bagpipes is not installed: pip install bagpipes==1.3.6"),
]


@pytest.fixture(scope="module")
def galaxies():
    return bagpipes_model.galaxies(150, torch.Generator().manual_seed(8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bagpipes")


@pytest.mark.parametrize(
    ("resolution", "median", "most"),
    [
        (None, 0.01, 0.04),  # as shipped: R_phot = 100
        (1000, 0.006, 0.012),  # most of the difference was that sampling; the rest is in its age cells of 0.1 dex
    ],
)
def test_bagpipes_computes_the_same_magnitudes(galaxies, folder, resolution, median, most):
    difference = np.abs(bagpipes_model.differences(galaxies, folder, resolution))
    measured = f"median {np.median(difference):.4f}, 95 % {np.percentile(difference, 95):.4f} mag of {difference.size}"
    print(measured)
    assert difference.size > 2500 and np.isfinite(difference).all()
    assert np.median(difference) <= median and np.percentile(difference, 95) <= most, measured
