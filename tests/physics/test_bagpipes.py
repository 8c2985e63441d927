"""The synthesiser against bagpipes itself, where the physics of the two is the same."""

import importlib.util

import bagpipes_model
import numpy as np
import pytest
import torch

from popcosmos_lib import filters, parameters, sps, universe

N = 150
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("bagpipes") is None, reason="bagpipes is not installed: pip install bagpipes==1.3.6"),
]


@pytest.fixture(scope="module")
def galaxies():
    """Population-like histories and dust at z = 0.05 to 5.5, kept to what both engines have.

    Gas has the metallicity of the stars, below solar (``ssp`` has no gas above); dust_index is 0 and birth clouds add nothing, so that the
    attenuation curves are one; the torus is at its lower bound.
    """
    generator = torch.Generator().manual_seed(8)
    theta = universe.sample(N, generator).double()
    u = torch.rand(2, N, generator=generator, dtype=torch.float64)
    to_gas = float(np.log10(0.0142 / 0.02))  # log10Z counts from 0.0142, log10Zgas from 0.02
    stars = -1.85 + u[0] * (1.85 - to_gas)
    fixed = {"z": 0.05 + 5.45 * u[1], "log10Z": stars, "log10Zgas": stars + to_gas, "dust_index": 0.0, "dust1_fraction": 0.0}
    for name, value in (fixed | {"lnfAGN": float(parameters.BOUNDS[parameters.INDEX["lnfAGN"], 0])}).items():
        theta[:, parameters.INDEX[name]] = value
    return theta


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
    bands = filters.load("cosmos")
    theirs, _ = bagpipes_model.magnitudes(galaxies, bands, folder, resolution)
    difference = np.abs(sps.load().double().magnitudes(galaxies).numpy() - theirs)
    bluest = bands.wave[:, 0] / (1 + parameters.column(galaxies, "z")[:, None])
    difference = difference[bluest.numpy() > 1250]  # bluewards the laws of intergalactic absorption differ
    measured = f"median {np.median(difference):.4f}, 95 % {np.percentile(difference, 95):.4f} mag of {difference.size}"
    print(measured)
    assert difference.size > 2500 and np.isfinite(difference).all()
    assert np.median(difference) <= median and np.percentile(difference, 95) <= most, measured
