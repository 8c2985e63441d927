"""Curves against published wavelengths, and AB photometry against its definition."""

import numpy as np
import pytest
import torch

from popcosmos_lib.synthesis import filters

# survey: (published wavelengths [Angstrom], which wavelength is meant, relative tolerance: one, or one per band)
PUBLISHED = {
    # Weaver et al. (2022), table 1, "central"; u is the older u*
    "cosmos": (
        [3858, 4847, 6219, 7699, 8894, 9761, 10216, 12525, 16466, 21557, 4266, 4635, 4851, 5064, 5261, 5766, 6232, 6780, 7073, 7361, 7694]
        + [8243, 7121, 8150, 35686, 45067],
        "mean",
        0.01,
    ),
    # Rubin technote SMTN-002 (smtn-002.lsst.io), lambda_eff in nm; its u is older than the silver mirrors of the v1.9 curves it describes
    "lsst": ([3660, 4820, 6220, 7540, 8690, 9710], "mean", [0.015, 0.01, 0.01, 0.01, 0.01, 0.01]),
    # SVO Filter Profile Service, Euclid/VIS.vis and Euclid/NISP.Y, J, H, as the documentation of streamobs quotes it; here VIS lacks the
    # detectors
    "euclid": ([7103, 10785, 13621, 17649], "pivot", [0.025, 0.01, 0.01, 0.01]),
    # roman.gsfc.nasa.gov/science/WFI_technical.html, "center": halfway between the edges, while F062 rises to the red
    "roman": ([6200, 8690, 10600, 12930, 14640, 15770, 18420, 21250], "mean", [0.021] + 7 * [0.01]),
    # FILTER keyword of every DECam image, e.g. "g DECam SDSS c0001 4720.0 1520.0": the filters alone, while mirror, detector and air move g
    # to the red and Y to the blue. The u of that keyword (3500) is 9 % bluer than what passes the air: no comparison.
    "decam": ([None, 4720, 6415, 7835, 9260, 10095], "mean", [None, 0.025, 0.01, 0.01, 0.01, 0.02]),
    # ugri: Wright et al. (2019), table 1, which SDSS stands in for; ZYJHKs: Cambridge Astronomical Survey Unit, "central" to two decimals
    "kids": ([3550, 4775, 6230, 7630, 8800, 10200, 12500, 16500, 21500], "mean", 4 * [0.02] + 5 * [0.01]),
}


@pytest.mark.parametrize("survey", PUBLISHED)
def test_effective_wavelengths_are_the_published_ones(survey):
    published, which, tolerance = PUBLISHED[survey]
    bands = filters.load(survey)
    pivot = torch.sqrt((bands.transmission * bands.wave**2).sum(-1) / bands.transmission.sum(-1))
    difference = (bands.effective if which == "mean" else pivot).numpy() / np.array(published, float) - 1
    known = np.isfinite(difference)
    assert known.sum() >= len(bands.names) - 1
    assert (np.abs(difference) < np.broadcast_to(np.array(tolerance, float), len(known)))[known].all(), dict(
        zip(bands.names, difference.round(4), strict=True)
    )
    assert (bands.effective > pivot).all() and (bands.effective < 1.03 * pivot).all()


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


CURVES = {
    "two_columns.txt": "# wavelength transmission\n4000 0\n4100 1\n4900 1  # red edge\n5000 0\n",
    "sedpy.par": "# Units: Angstrom; further columns are single detectors\n6000 0.0 0.1\n5900 0.4 0.1\n5100 0.4 0.1\n5000 0.0 0.1\n",
    "kcorrect.par": "typedef struct {\n  int n;\n  double lambda;\n  double pass;\n} KCORRECTFILTER;\n\n"
    + "".join(f"KCORRECTFILTER {n} {wave} {value}\n" for n, (wave, value) in enumerate([(6000, 0), (6100, 2), (6900, 2), (7000, 0)])),
}


def test_bands_from_files_and_a_folder(tmp_path):
    for name, text in CURVES.items():
        (tmp_path / name).write_text(text)
    centres = torch.tensor([4500.0, 5500.0, 6500.0], dtype=torch.float64)
    listed = filters.load([str(tmp_path / name) for name in CURVES])
    assert torch.allclose(listed.effective, centres, rtol=1e-3)
    (tmp_path / "README").write_text("not a curve")
    folder = filters.load(str(tmp_path))
    assert folder.names == listed.names and torch.equal(folder.transmission, listed.transmission), "from blue to red"
    assert torch.equal(filters.load(folder.names).wave, folder.wave), "the names read the same bands again"
    mixed = filters.load([listed.names[0], "hsc_r", "lsst2023-y"])
    assert mixed.effective.tolist() == pytest.approx([4500, 6229, 9756], rel=1e-3)


def test_sedpy_reads_its_format_alike(tmp_path):
    from sedpy.observate import Filter

    (tmp_path / "sedpy.par").write_text(CURVES["sedpy.par"])
    theirs = Filter("sedpy", directory=str(tmp_path))
    ours = filters.load([str(tmp_path / "sedpy.par")])
    assert ours.effective.item() == pytest.approx(theirs.wave_average, rel=2e-3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("a table of contents\n", "no transmission curve"), ("0.4 0\n0.5 1\n0.6 0\n", "other units"), ("4000 0\n5000 0\n", "no response")],
)
def test_files_that_hold_no_curve_are_named(tmp_path, text, complaint):
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(ValueError, match=f"bad.txt .*{complaint}"):
        filters.load([str(tmp_path / "bad.txt")])


@pytest.mark.parametrize("bad", ["des", ["hsc_q"], ["euclid-Q"]])
def test_unknown_bands_are_named(bad):
    name = bad if isinstance(bad, str) else bad[0]
    with pytest.raises(ValueError, match=name):
        filters.load(bad)


def test_an_empty_folder_is_no_survey(tmp_path):
    with pytest.raises(ValueError, match="no curves in"):
        filters.load(str(tmp_path))
