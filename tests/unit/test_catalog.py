"""Catalogues as they come: official names, both releases, and everything that can be wrong with them."""

import numpy as np
import pytest
import torch
from astropy import units
from astropy.table import MaskedColumn, Table

from popcosmos_lib import catalog, survey
from popcosmos_lib.artefacts import data
from popcosmos_lib.synthesis import filters

N = 6
R, KS, CH1 = filters.SHORT.index("r"), filters.SHORT.index("Ks"), filters.SHORT.index("Ch1")


@pytest.fixture
def official():
    """Six galaxies with FARMER names, all bands present, without reddening."""
    table = Table({"ID": np.arange(N) + 11, "EBV_MW": np.zeros(N), "MODEL_FLAG": np.zeros(N, int)})
    rng = np.random.default_rng(3)
    for name in survey.BANDS["column"]:
        table[f"{name}_FLUX"] = rng.uniform(0.5, 5.0, N).astype("f4")
        table[f"{name}_FLUXERR"] = np.full(N, 0.05, "f4")
        table[f"{name}_FLUX"].unit = table[f"{name}_FLUXERR"].unit = units.uJy
    return table


def write(table, tmp_path, name="farmer.fits"):
    path = tmp_path / name
    formats = {".fits": "fits", ".csv": "ascii.csv", ".ecsv": "ascii.ecsv", ".parquet": "parquet"}
    table.write(path, format=formats[path.suffix], overwrite=True)
    return path


@pytest.mark.parametrize("name", ["t.fits", "t.parquet", "t.csv", "t.ecsv"])
def test_every_format_gives_the_same_numbers(official, tmp_path, name):
    got = catalog.read(write(official, tmp_path, name), zero_points=None)
    assert got.flux.shape == (N, 26) and list(got.id) == list(official["ID"])
    np.testing.assert_allclose(got.flux[:, R], official["HSC_r_FLUX"], rtol=1e-6)
    np.testing.assert_allclose(got.flux_err[:, CH1], 0.05, rtol=1e-6)
    assert got.z_spec.isnan().all() and (got.flag == 0).all() and got.clean.all()


def test_extinction_and_zero_points(official, tmp_path):
    official["EBV_MW"] = 0.1
    plain = catalog.read(write(official, tmp_path), zero_points=None)
    np.testing.assert_allclose(plain.flux[:, R], official["HSC_r_FLUX"] * 10 ** (0.4 * 2.715 * 0.1), rtol=1e-5)
    farmer = catalog.read(write(official, tmp_path))
    np.testing.assert_allclose(farmer.flux[:, R] / plain.flux[:, R], 10 ** (-0.4 * 0.101), rtol=1e-5)
    classic = catalog.read(write(official, tmp_path), zero_points="classic")
    np.testing.assert_allclose(classic.flux[:, R] / plain.flux[:, R], 10 ** (-0.4 * 0.127), rtol=1e-5)
    torch.testing.assert_close(farmer.flux / farmer.flux_err, plain.flux / plain.flux_err, msg="corrections must keep the S/N")
    assert any("farmer" in note for note in farmer.notes)
    with pytest.raises(ValueError, match="zero_points"):
        catalog.read(write(official, tmp_path), zero_points="eazy")


def test_unknown_release_gets_no_zero_points(official, tmp_path):
    official.remove_column("MODEL_FLAG")
    got = catalog.read(write(official, tmp_path, "mine.fits"))
    assert "zero-point offsets: none" in got.notes
    assert any("classic" in note for note in catalog.read(write(official, tmp_path, "my_Classic_cut.fits")).notes)


def test_missing_reddening_takes_the_median(official, tmp_path):
    official["EBV_MW"] = [0.1, 0.1, 0.1, np.nan, -99.0, 0.1]
    got = catalog.read(write(official, tmp_path), zero_points=None)
    np.testing.assert_allclose(got.flux[:, R], official["HSC_r_FLUX"] * 10 ** (0.4 * 2.715 * 0.1), rtol=1e-5)
    assert any("missing in 2 rows" in note for note in got.notes)


def test_classic_apertures_become_total(official, tmp_path):
    for name in survey.BANDS["column"][:24]:
        official.rename_columns([f"{name}_FLUX", f"{name}_FLUXERR"], [f"{name}_FLUX_APER2", f"{name}_FLUXERR_APER2"])
    official["total_off2"] = -0.3
    got = catalog.read(write(official, tmp_path), zero_points=None)
    np.testing.assert_allclose(got.flux[:, R], official["HSC_r_FLUX_APER2"] * 10 ** (0.4 * 0.3), rtol=1e-5)
    np.testing.assert_allclose(got.flux[:, CH1], official["IRAC_CH1_FLUX"], rtol=1e-5, err_msg="IRAC is total already")
    official.remove_column("total_off2")
    with pytest.raises(ValueError, match="total_off2"):
        catalog.read(write(official, tmp_path))


def test_missing_bands_are_nan_and_listed(official, tmp_path, capsys):
    official.remove_columns(["UVISTA_Ks_FLUX", "SC_IB427_FLUXERR"])
    got = catalog.read(write(official, tmp_path))
    assert got.flux[:, KS].isnan().all() and got.flux_err[:, KS].isnan().all() and got.flux[:, R].isfinite().all()
    assert "missing bands: Ks IB427" in capsys.readouterr().out


def test_masked_null_and_invalid_values_are_missing(official, tmp_path):
    official["HSC_r_FLUX"] = MaskedColumn(official["HSC_r_FLUX"], mask=[1, 0, 0, 0, 0, 0], unit=units.uJy)
    official["HSC_r_FLUX"][1], official["HSC_r_FLUX"][2] = -99.0, -0.3
    official["HSC_g_VALID"] = [True, False, True, True, True, True]
    got = catalog.read(write(official, tmp_path, "t.parquet"), zero_points=None)
    assert got.flux[:2, R].isnan().all(), "masked and -99 are missing"
    assert abs(got.flux[2, R] + 0.3) < 1e-6, "a negative flux is a measurement"
    assert got.flux[:, 1].isnan().tolist() == [False, True, False, False, False, False]
    assert got.flag[:2].tolist() == [4, 4], "the error that is left without its flux is flagged"


@pytest.mark.parametrize("unit, remedy", [("mJy", "1000"), ("Jy", "1e+06"), ("mag", "not magnitudes"), ("nmgy", None)])
def test_wrong_unit_is_refused_in_one_sentence(official, tmp_path, unit, remedy):
    official["HSC_r_FLUX"].unit = units.Unit(unit, parse_strict="silent")
    with pytest.raises(ValueError) as error:
        catalog.read(write(official, tmp_path, "farmer.ecsv"))
    assert "HSC_r_FLUX" in str(error.value) and "µJy" in str(error.value) and (remedy or "") in str(error.value)


def test_wrong_unit_in_a_fits_header(official, tmp_path):
    official["HSC_r_FLUX"].unit = units.mJy
    with pytest.raises(ValueError, match="HSC_r_FLUX is in mJy"):
        catalog.read(write(official, tmp_path))


@pytest.mark.parametrize("factor", [1 / 3.631e9, 1e-29, 1e-6])
def test_wrong_unit_without_a_header_is_recognised(official, tmp_path, factor):
    for name in official.colnames:
        if "FLUX" in name:
            official[name] = np.asarray(official[name], float) * factor
    with pytest.raises(ValueError, match="convert to µJy"):
        catalog.read(write(official, tmp_path, "t.csv"))


def test_bad_values_are_flagged_and_no_row_is_lost(official, tmp_path, capsys):
    error = official["HSC_r_FLUXERR"]
    error[0], error[1], error[2] = 0.0, -0.1, np.nan
    official["HSC_r_FLUX"][3], official["HSC_r_FLUX"][4] = np.nan, np.inf
    for name in survey.BANDS["column"]:
        official[f"{name}_FLUX"][5] = official[f"{name}_FLUXERR"][5] = np.nan
    got = catalog.read(write(official, tmp_path))
    assert len(got) == N and got.flag.tolist() == [1, 1, 2, 4, 8, 16]
    assert got.flux[:, R].isnan().all() and got.flux_err[:, R].isnan().all()
    assert got.clean.tolist() == [True] * 5 + [False]
    printed = capsys.readouterr().out
    assert all(text in printed for text in catalog.FLAGS.values())
    assert "2 of 6 galaxies have a band whose error is zero or negative (first: row 0)" in printed


def test_upper_limits_enter_as_zero_flux(official, tmp_path):
    official["UL_MASK"] = [1 << R, 0, (1 << KS) | 1, 0, 0, 0]
    official["HSC_r_FLUXERR"][0] = 0.7
    got = catalog.read(write(official, tmp_path), zero_points=None)
    assert got.flux[0, R] == 0 and abs(got.flux_err[0, R] - 0.7) < 1e-6
    assert got.flux[2, KS] == 0 and got.flux[2, 0] == 0 and got.flux[1, R] > 0


def test_redshifts_and_cuts(official, tmp_path):
    official["zspec"] = [0.5, 1.0, -99.0, np.nan, 2.0, 3.0]
    official["FLAG_COMBINED"] = [0, 1, 0, 0, 0, 0]
    official["lp_type"] = [0, 0, 1, 2, -9, 0]
    got = catalog.read(write(official, tmp_path))
    assert got.z_spec.isnan().tolist() == [False, False, True, True, False, False]
    assert got.clean.tolist() == [True, False, False, True, False, True]
    part = got[got.clean]
    assert len(part) == 3 and list(part.id) == [11, 14, 16] and len(part.table) == 3
    assert len(got[:2]) == 2 and got[1].flux.shape == (1, 26)


def test_mock_names(tmp_path):
    table = Table({"id": np.arange(3), "z": [0.1, 0.2, 0.3]})
    for band in filters.SHORT:
        table[f"flux_{band}"], table[f"flux_err_{band}"], table[f"flux_true_{band}"] = np.full((3, 3), [[1.0], [0.5], [2.0]])
    files = [write(table, tmp_path, name) for name in ("mock.parquet", "mock.fits")]
    for got in (catalog.from_table(table), *map(catalog.read, files)):
        assert (got.flux == 1).all() and (got.flux_err == 0.5).all()
        assert got.z_spec.tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_nothing_recognised_says_what_would_be(tmp_path):
    with pytest.raises(ValueError, match="HSC_r_FLUX"):
        catalog.read(write(Table({"mag_r": [20.0]}), tmp_path, "t.csv"))
    with pytest.raises(FileNotFoundError, match="there is no catalogue"):
        catalog.read(tmp_path / "no.fits")
    (tmp_path / "t.txt").write_text("x")
    with pytest.raises(ValueError, match="FITS, Parquet"):
        catalog.read(tmp_path / "t.txt")


def test_text_in_a_flux_column_is_named(official, tmp_path):
    official["HSC_r_FLUX"] = ["n/a"] * N
    with pytest.raises(ValueError, match="HSC_r_FLUX holds text"):
        catalog.read(write(official, tmp_path, "t.csv"))


def test_validate_shapes_units_and_types():
    flux = torch.ones(2, 26)
    with pytest.raises(ValueError, match=r"\(2, 25\)"):
        catalog.validate(flux[:, :25], flux[:, :25])
    with pytest.raises(ValueError, match="both have shape"):
        catalog.validate(flux, flux[:1])
    with pytest.raises(ValueError, match="mJy"):
        catalog.validate(np.ones((2, 26)) * units.mJy, flux)
    got = catalog.validate(np.ones((2, 26)) * units.uJy, flux)
    assert got[0].dtype == torch.float32 and got[3] == []


def test_real_galaxies_read_as_published():
    try:
        path = data.shared("data/cosmos2020/cosmos2020_classic_26band_allz.fits")
        faint = data.shared("data/cosmos2020/cosmos2020_classic_26band_z2.5plus.fits")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    got = catalog.read(path)
    assert len(got) == 50 and got.z_spec.isfinite().all() and got.clean.all()
    assert any("classic" in note for note in got.notes)
    raw = Table.read(path)
    factor = 10 ** (0.4 * 0.163 * raw["EBV_MW"] - 0.4 * -0.087)
    np.testing.assert_allclose(got.flux[:, CH1], raw["IRAC_CH1_FLUX"] * factor, rtol=1e-5)
    got = catalog.read(faint)
    bits = sum(int(mask).bit_count() for mask in got.table["UL_MASK"])
    assert len(got) == 2662 and any(note.startswith(f"{bits} non-detections") for note in got.notes)
    limits = (np.asarray(got.table["UL_MASK"]) >> R) & 1 == 1
    assert limits.any() and (got.flux[torch.from_numpy(limits), R] == 0).all()
