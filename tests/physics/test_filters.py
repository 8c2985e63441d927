"""Curves against published wavelengths, and AB photometry against its definition."""

import numpy as np
import pytest
import torch

from popcosmos_lib import filters

# Central wavelengths [Angstrom], Weaver et al. (2022), table 1 (u is the older u*)
WEAVER = dict(
    zip(
        filters.SHORT,
        [3858, 4847, 6219, 7699, 8894, 9761, 10216, 12525, 16466, 21557, 4266, 4635, 4851, 5064, 5261, 5766, 6232, 6780, 7073, 7361, 7694]
        + [8243, 7121, 8150, 35686, 45067],
        strict=True,
    )
)
LSST = [3671, 4827, 6223, 7546, 8691, 9712]  # ugrizy of the Rubin baseline throughputs (SMTN-002)
KIDS_VIKING = [3550, 4775, 6230, 7630, 8780, 10200, 12520, 16450, 21470]  # Wright et al. (2019), table 1


@pytest.mark.parametrize(
    ("survey", "published", "tolerance"),
    [("cosmos", list(WEAVER.values()), 0.01), ("lsst", LSST, 0.012), ("kids", KIDS_VIKING, 0.03)],
)
def test_effective_wavelengths_are_the_published_ones(survey, published, tolerance):
    difference = filters.load(survey).effective.numpy() / np.array(published) - 1
    assert np.abs(difference).max() < tolerance, dict(zip(filters.SURVEYS[survey], difference.round(4), strict=True))


def test_names_are_the_upstream_ones():
    assert len(filters.COSMOS26) == len(filters.SHORT) == len(set(filters.COSMOS26)) == len(set(filters.SHORT)) == 26
    assert filters.COSMOS26[1] == "hsc_g" and filters.SHORT[22:] == ["NB711", "NB816", "Ch1", "Ch2"]


def test_analytic_bands_have_their_published_width():
    bands = filters.load(["NB711.SuprimeCam", "NB816.SuprimeCam"])
    for wave, transmission, width in zip(bands.wave, bands.transmission, (72.0, 120.0), strict=True):
        above = wave[transmission > 0.5]
        assert (above[-1] - above[0]).item() == pytest.approx(width, rel=0.02)


def test_flat_spectrum_has_its_flux_in_every_band():
    bands = filters.load("cosmos")
    wave = np.geomspace(2000, 60_000, 500)
    assert torch.allclose(bands.average(wave, np.full(500, 3.0)), torch.tensor(3.0, dtype=torch.float64))
    nodes, weight = bands.quadrature(48)
    assert torch.allclose(weight.sum(-1), torch.ones(26, dtype=torch.float64))
    assert (nodes[:, 0] > bands.wave[:, 0]).all() and (nodes[:, -1] < bands.wave[:, -1]).all()


def test_quadrature_agrees_with_the_exact_average():
    bands = filters.load("cosmos")
    wave = np.geomspace(2000, 60_000, 20_000)
    flux = (wave / 1e4) ** 1.5 * (1 + 0.3 * np.sin(40 * np.log(wave)))  # features as wide as a broad band
    nodes, weight = bands.quadrature(48)
    fast = (weight * torch.as_tensor(np.interp(nodes, wave, flux))).sum(-1)
    assert (2.5 * torch.log10(fast / bands.average(wave, flux))).abs().max() < 2e-3


def test_sedpy_computes_the_same_ab_magnitude():
    from sedpy.observate import Filter

    wave = np.geomspace(3000, 30_000, 30_000)
    f_lambda = 1e-17 * (wave / 5000) ** -1.3
    for name in ("hsc_r", "vista_vircam_Y"):
        f_nu = f_lambda * wave**2 / 2.99792458e18
        ours = -2.5 * np.log10(filters.load([name]).average(wave, f_nu).item()) - 48.60
        assert ours == pytest.approx(Filter(name).ab_mag(wave, f_lambda), abs=0.01)


def test_fluxes_and_magnitudes():
    assert filters.flux_from_magnitude(torch.tensor(23.9)).item() == pytest.approx(1.0)
    flux = torch.tensor([1.0, 100.0, 0.0, -2.0, float("nan")])
    magnitude = filters.magnitude_from_flux(flux)
    assert torch.allclose(magnitude[:2], torch.tensor([23.9, 18.9])) and magnitude[2:].isnan().all()


def test_a_band_from_a_file(tmp_path):
    path = tmp_path / "mine.par"
    path.write_text("# wavelength transmission\n" + "\n".join(f"{w} {t}" for w, t in [(4000, 0), (4100, 1), (4900, 1), (5000, 0)]))
    assert filters.load([str(path)]).effective.item() == pytest.approx(4500, rel=1e-3)


@pytest.mark.parametrize("bad", ["des", ["hsc_q"], ["euclid-Q"]])
def test_unknown_bands_are_named(bad):
    name = bad if isinstance(bad, str) else bad[0]
    with pytest.raises(ValueError, match=name):
        filters.load(bad)
