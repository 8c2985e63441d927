"""Our synthesis (BC03-MILES, Cloudy) against the released pop-cosmos photometry (FSPS, as its authors emulated it)."""

import os

import pytest
import torch

from popcosmos_lib import filters, release, sps, universe

pytestmark = pytest.mark.skipif("POPCOSMOS_DATA" not in os.environ, reason="needs the released networks: set POPCOSMOS_DATA")


@pytest.fixture(scope="module")
def difference():
    """Ours minus theirs, NaN where theirs is fainter than 30, (n, 26)."""
    theta = universe.sample(4000, generator=torch.Generator().manual_seed(11))
    with torch.no_grad():
        ours, theirs = sps.load().magnitudes(theta), release.photulators().magnitudes(theta)
    return torch.where(theirs < 30, ours - theirs, torch.nan)


@pytest.mark.parametrize("band", filters.SHORT)
def test_bands_agree_as_stellar_libraries_do(difference, band):
    values = difference[:, filters.SHORT.index(band)]
    low, middle, high = values.nanquantile(torch.tensor([0.16, 0.5, 0.84]))
    assert abs(middle) < 0.15, f"median difference {middle:+.3f} mag"
    assert 0.5 * (high - low) < 0.19, f"robust sigma {0.5 * (high - low):.3f} mag"


def test_no_galaxy_is_far_off(difference):
    values = difference[difference.isfinite()].abs()
    assert (values > 0.7).float().mean() < 0.005
