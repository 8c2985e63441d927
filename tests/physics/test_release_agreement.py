"""Our synthesis (BC03-MILES, Cloudy) against the released pop-cosmos photometry, lines and masses (FSPS, as its authors emulated it)."""

import os

import pytest
import torch

from popcosmos_lib.emulation import release
from popcosmos_lib.galaxies import universe
from popcosmos_lib.synthesis import filters, sps

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


@pytest.fixture(scope="module")
def galaxies():
    return universe.sample(1500, generator=torch.Generator().manual_seed(11))


@pytest.mark.parametrize("wavelength", [3729.86, 4862.71, 5008.24, 6564.60, 6585.27, 6718.29, 9533.20])
def test_lines_agree_as_stellar_libraries_do(galaxies, wavelength):
    """Stellar libraries differ in ionising light by about a quarter; the emulator's corners add scatter."""
    synthesiser, released = sps.load(), release.lines()
    with torch.no_grad():
        ours = synthesiser.lines(galaxies)[:, (synthesiser.line_wave - wavelength).abs().argmin()]
        theirs = released.luminosities(galaxies)[:, (released.wavelength - wavelength).abs().argmin()]
    difference = (theirs / ours).log10()[ours > 1e5]
    low, middle, high = difference.quantile(torch.tensor([0.16, 0.5, 0.84]))
    assert abs(middle) < 0.2, f"median difference {middle:+.3f} dex"
    assert 0.5 * (high - low) < 0.12, f"robust sigma {0.5 * (high - low):.3f} dex"


def test_surviving_masses_agree(galaxies):
    difference = (release.stellar_mass().surviving_fraction(galaxies) / sps.load().surviving_fraction(galaxies)).log10()
    low, middle, high = difference.quantile(torch.tensor([0.16, 0.5, 0.84]))
    assert abs(middle) < 0.02 and 0.5 * (high - low) < 0.01, f"{middle:+.4f} +- {0.5 * (high - low):.4f} dex"
