"""What columns mean: names that are recognised, YAML that tells, units, corrections, and one sentence for every mistake."""

import numpy as np
import pytest
import standin
from astropy import units
from astropy.table import Table

from popcosmos_lib import catalog, survey
from popcosmos_lib.catalog import columns, readers
from popcosmos_lib.synthesis import filters

U, R = filters.SHORT.index("u"), filters.SHORT.index("r")


@pytest.fixture
def mine(tmp_path):
    """Write a table of two bands in my own names and a YAML; the source and the path of the YAML."""

    def make(told, unit=None, name="mine.ecsv", **changed):
        table = Table({"num": [3, 4, 5], "fu": [1.0, 2.0, -99.0], "eu": [0.1, 0.2, 0.3], "fr": [2.0, 4.0, 8.0], "er": [0.1, 0.1, 0.1]})
        for column, values in changed.items():
            table[column] = values
        for column in ("fu", "eu", "fr", "er"):
            table[column].unit = unit
        table.write(tmp_path / name, format="ascii.ecsv", overwrite=True)
        (tmp_path / "map.yaml").write_text(told)
        return readers.load(tmp_path / name), tmp_path / "map.yaml"

    return make


def catalogue(source, path=None):
    mapping = columns.resolve(source, path)
    return columns.sample(source, mapping)


BANDS = "bands: {u: [fu, eu], r: [fr, er]}\n"


@pytest.mark.parametrize(
    ("told", "stated", "scale"),
    [
        ("unit: uJy\n", None, 1.0),
        ("unit: mJy\n", None, 1e3),
        ("unit: Jy\n", None, 1e6),
        ("unit: maggies\n", None, 3.631e9),
        ("unit: nanomaggies\n", None, 3.631),
        ("unit: cgs\n", None, 1e29),
        ("", units.mJy, 1e3),
        ("", units.Unit("nJy"), 1e-3),
        ("", units.Unit("erg / (s cm2 Hz)"), 1e29),
        ("unit: mJy\n", units.uJy, 1e3),  # the YAML has the last word
    ],
)
def test_units_of_the_yaml_or_of_the_file(mine, told, stated, scale):
    source, path = mine(BANDS + told, stated)
    for column in ("fu", "eu", "fr", "er"):  # so that they are microjanskys afterwards
        assert columns.resolve(source, path).scale[column] == pytest.approx(scale)
    values = {"fu": np.array([1, 2, np.nan]) / scale, "eu": np.array([0.1, 0.2, 0.3]) / scale}
    values |= {"fr": np.array([2, 4, 8]) / scale, "er": np.full(3, 0.1) / scale}
    values["fu"][2] = -99.0  # no flux, whatever the unit
    got = catalogue(*mine(BANDS + told, stated, **values))
    np.testing.assert_allclose(got.flux[:, U], [1, 2, np.nan], rtol=1e-5)
    np.testing.assert_allclose(got.flux_err[:, R], 0.1, rtol=1e-5)
    assert got.flux[:, 1].isnan().all(), "a band that is not told is missing"


def test_ab_magnitudes(mine):
    source, path = mine(BANDS + "unit: AB mag\n", fu=[23.9, 99.0, -99.0], eu=[0.1, 0.1, -99.0], fr=[21.4, 21.4, 26.4], er=[0.01, 0.02, 0.5])
    got = catalogue(source, path)
    np.testing.assert_allclose(got.flux[:, U], [1, np.nan, np.nan], rtol=1e-5)
    np.testing.assert_allclose(got.flux[:, R], [10, 10, 0.1], rtol=1e-5)
    np.testing.assert_allclose(got.flux_err[:, R], [0.0921, 0.1842, 0.04605], rtol=1e-3)


def test_corrections_of_the_yaml(mine):
    plain = catalogue(*mine(BANDS + "unit: uJy\n"))
    got = catalogue(*mine(BANDS + "unit: uJy\nebv: 0.1\nzero_points: {r: 0.2}\nid: num\n"))
    assert got.id.tolist() == [3, 4, 5] and plain.id.tolist() == [0, 1, 2]
    np.testing.assert_allclose(got.flux[:2, U] / plain.flux[:2, U], 10 ** (0.4 * 0.1 * 4.807), rtol=1e-5)
    for values in ("flux", "flux_err"):
        ratio = getattr(got, values)[:, R] / getattr(plain, values)[:, R]
        np.testing.assert_allclose(ratio, 10 ** (0.4 * (0.1 * 2.715 - 0.2)), rtol=1e-5, err_msg="offsets are added to magnitudes")
    column = catalogue(*mine(BANDS + "unit: uJy\nebv: dust\nz_spec: red\n", dust=[0.1, np.nan, 0.3], red=[0.5, -99.0, 1.5]))
    np.testing.assert_allclose(column.flux[:, R] / plain.flux[:, R], 10 ** (0.4 * 2.715 * np.array([0.1, 0.2, 0.3])), rtol=1e-5)
    np.testing.assert_allclose(column.z_spec, [0.5, np.nan, 1.5])


def test_curves_of_another_survey(mine, tmp_path):
    assert columns.resolve(*mine(BANDS + "unit: uJy\n")).curves == {}
    mapping = columns.resolve(*mine(BANDS + "unit: uJy\ncurves: {u: sdss_u0}\n"))
    assert mapping.curves == {"u": "sdss_u0", "r": filters.COSMOS26[R]}, "a band that is not told keeps the curve of COSMOS2020"
    (tmp_path / "own.dat").write_text("3000 0\n3500 1\n4000 0\n")
    told = BANDS + "unit: uJy\ncurves: {u: own.dat}\n"
    mapping = columns.resolve(*mine(told))
    assert mapping.curves["u"] == str(tmp_path / "own.dat"), "found beside the YAML, from wherever the command is given"
    before = mapping.key()["curves"]["u"]
    (tmp_path / "own.dat").write_text("3000 0\n3600 1\n4000 0\n")
    assert columns.resolve(*mine(told)).key()["curves"]["u"] != before, "known by its content, not by its name"


def test_reddening_of_rows_without_does_not_depend_on_the_chunk(mine):
    source, path = mine(BANDS + "unit: uJy\nebv: dust\n", dust=[0.1, np.nan, 0.3])
    mapping = columns.resolve(source, path)
    (ebv,) = columns.reddening(source, mapping).values()
    assert ebv == pytest.approx(0.2)
    chunk = source.chunks(1)[1]
    alone = mapping.catalogue(readers.read(chunk, mapping.needed(source.units)), chunk.first, ebv)
    assert alone.flux[0, R] == catalogue(source, path).flux[1, R] and alone.id[0] == 1


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("bands: {u: [fu, eux]}", "band u is 'eux', but mine.ecsv has no such column .did you mean eu..$"),
        ("bands: {u: [fu, weight]}", "no such column: its columns are num, fu, eu, fr, er$"),
        ("bands: {U: [fu, eu]}", "unknown band 'U' .did you mean u..: the bands are u g r"),
        ("bands: {u: fu}", r"band u needs \[flux column, error column\]; got 'fu'"),
        ("bands: {}", "it needs at least bands"),
        ("u: [fu, eu]", "it needs at least bands"),
        ("[1, 2", "map.yaml is not YAML"),
        (BANDS + "units: uJy", "unknown field 'units' .did you mean unit."),
        (BANDS, "does not state the unit of fu: add to the YAML one of unit: uJy, mJy"),
        (BANDS + "unit: mjy", "'mjy', which is no flux density .did you mean mJy."),
        (BANDS + "unit: mag", "write unit: AB mag in the YAML; convert Vega"),
        (BANDS + "unit: km", "'km', which is no flux density: say which"),
        (BANDS + "unit: uJy\nid: numb", "id is 'numb', but mine.ecsv has no such column .did you mean num."),
        (BANDS + "unit: uJy\nebv: red", "ebv is 'red'"),
        (BANDS + "unit: uJy\nzero_points: {q: 0.1}", "unknown band 'q'"),
        (BANDS + "unit: uJy\nzero_points: {u: much}", "zero_points are numbers"),
        (BANDS + "unit: maggies", "the typical flux is"),
        (BANDS + "unit: uJy\ncurves: {g: sdss_g0}", "curves are {<band>: <curve>} of bands that bands: names .u r.; got {'g': 'sdss_g0'}"),
        (BANDS + "unit: uJy\ncurves: sdss_u0", "curves are {<band>: <curve>}"),
        (BANDS + "unit: uJy\ncurves: {u: sdss_uu}", "the curve of band u: .*sdss_uu"),
    ],
)
def test_mistakes_in_the_yaml_are_said_in_one_sentence(mine, told, message):
    with pytest.raises(ValueError, match=message) as error:
        catalogue(*mine(told))
    assert "\n" not in str(error.value)


def test_no_usable_band_in_any_row(mine):
    with pytest.raises(ValueError, match="mine.ecsv has no usable band in any row"):
        catalogue(*mine(BANDS + "unit: uJy\n", eu=[0.0, 0.0, -1.0], fr=[-99.0, np.nan, -999.0]))
    assert catalogue(*mine(BANDS + "unit: uJy\n", fr=[-150.0, 2.0, 3.0])).flux[0, R] == -150, "a negative flux is a measurement"


def test_a_missing_yaml_and_unknown_names(mine, tmp_path):
    source, _ = mine(BANDS)
    with pytest.raises(FileNotFoundError, match="--columns takes a YAML file"):
        columns.resolve(source, tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="no band was recognised among the 5 columns of mine.ecsv .num, fu, eu, fr, er"):
        columns.resolve(source)
    with pytest.raises(ValueError, match="column fu is in 's'"):
        columns.resolve(*mine(BANDS, units.s))


def official(n=4):
    rng = np.random.default_rng(3)
    table = Table({"ID": np.arange(n) + 11, "EBV_MW": [0.02, np.nan, 0.04, 0.06], "MODEL_FLAG": np.zeros(n, int)})
    for name in survey.BANDS["column"]:
        for kind in ("FLUX", "FLUXERR"):
            table[f"{name}_{kind}"] = rng.uniform(0.5, 5.0, n) * (0.05 if kind == "FLUXERR" else 1) * units.uJy
    return table


@pytest.mark.parametrize("chunk", [1, 3])
def test_official_names_go_through_the_reader_of_official_names(tmp_path, chunk):
    official().write(tmp_path / "farmer.fits")
    whole = catalog.read(tmp_path / "farmer.fits")
    source = readers.load(tmp_path / "farmer.fits")
    mapping = columns.resolve(source)
    assert mapping.official and mapping.id == "ID" and mapping.zero_points == "farmer" and len(mapping.bands) == 26
    (ebv,) = columns.reddening(source, mapping).values()
    needed = mapping.needed(source.units)
    got = [mapping.catalogue(readers.read(part, needed), part.first, ebv) for part in source.chunks(chunk)]
    np.testing.assert_allclose(np.concatenate([part.flux for part in got]), whole.flux, rtol=1e-6)
    np.testing.assert_allclose(np.concatenate([part.flux_err for part in got]), whole.flux_err, rtol=1e-6)
    assert np.concatenate([part.id for part in got]).tolist() == whole.id.tolist()


def test_official_names_in_another_unit_are_converted(tmp_path):
    official().write(tmp_path / "farmer.fits")
    table = official()
    for name in table.colnames[3:]:
        table[name] = table[name].to(units.mJy)
    table.write(tmp_path / "farmer_mjy.fits")
    one, two = (catalogue(readers.load(tmp_path / name)) for name in ("farmer.fits", "farmer_mjy.fits"))
    np.testing.assert_allclose(one.flux, two.flux, rtol=1e-5)


def test_names_of_the_mock(tmp_path):
    standin.mock(5).write(tmp_path / "mock.parquet")
    source = readers.load(tmp_path / "mock.parquet")
    mapping, got = columns.resolve(source), catalogue(source)
    assert mapping.names == "mock" and mapping.id == "id" and got.id.tolist() == [1001, 1002, 1003, 1004, 1005]
    assert (got.flux == catalog.read(tmp_path / "mock.parquet").flux).all() and got.z_spec.isfinite().all()
    assert "states no units" in mapping.notes[0]


def test_a_mock_of_another_survey_is_not_taken_for_cosmos(tmp_path):
    table = standin.mock(3)[["id", "flux_u", "flux_err_u", "flux_z", "flux_err_z"]]
    table["flux_z"].name, table["flux_err_z"].name = "flux_Z", "flux_err_Z"
    table.write(tmp_path / "plain.parquet")
    with pytest.raises(ValueError, match="plain.parquet has fluxes of u Z, not all of which are bands .* their curves"):
        columns.resolve(readers.load(tmp_path / "plain.parquet"))
    table.meta["bands"] = {"u": "sdss_u0", "Z": "vista_vircam_Z"}
    catalog.write(tmp_path / "mock.parquet", [table])
    mapping = columns.resolve(readers.load(tmp_path / "mock.parquet"))
    assert mapping.bands == {"u": ("flux_u", "flux_err_u"), "z": ("flux_Z", "flux_err_Z")}
    assert mapping.curves == {"u": "sdss_u0", "z": "vista_vircam_Z"}, "the file says which"
    table.meta["bands"]["u"] = "no_such_curve"
    catalog.write(tmp_path / "mock.parquet", [table])
    with pytest.raises(ValueError, match="no_such_curve"):
        columns.resolve(readers.load(tmp_path / "mock.parquet"))
    table.meta["bands"] = {"u": filters.COSMOS26[U]}
    table.remove_columns(["flux_Z", "flux_err_Z"])
    catalog.write(tmp_path / "mock.parquet", [table])
    assert columns.resolve(readers.load(tmp_path / "mock.parquet")).curves == {}


@pytest.mark.parametrize("value", ["MAG_GAAP_{}", "FLUX_GAAP_{}", "{}_FLUX"])
def test_names_of_kids(tmp_path, value):
    error = value.replace("MAG", "MAGERR").replace("FLUX", "FLUXERR")
    table = Table({"SeqNr": [1, 2]})
    for band in ("u", "g", "r", "i", "Z", "Y", "J", "H", "Ks"):
        table[value.format(band)] = [22.0, 23.0] if "MAG" in value else [5.754, 2.291]
        table[error.format(band)] = [0.1, 0.1]
        for name in (value.format(band), error.format(band)):
            table[name].unit = units.mag if "MAG" in value else units.uJy
    table.write(tmp_path / "kids.ecsv")
    source = readers.load(tmp_path / "kids.ecsv")
    mapping, got = columns.resolve(source), catalogue(source)
    assert mapping.names == "KiDS" and mapping.id == "SeqNr" and "through the curves of KiDS" in mapping.notes[0]
    assert mapping.curves["z"] == "vista_vircam_Z" and list(mapping.curves) == list(mapping.bands)
    there = got.flux.isfinite().all(0)
    assert [band for band, seen in zip(filters.SHORT, there, strict=True) if seen] == ["u", "g", "r", "i", "z", "Y", "J", "H", "Ks"]
    np.testing.assert_allclose(got.flux[:, there], [[5.754] * 9, [2.291] * 9], rtol=1e-3)


def test_identifiers_must_tell_galaxies_apart(mine):
    told = BANDS + "unit: uJy\nid: num\n"

    def check(**changed):
        source, path = mine(told, **changed)
        return columns.identifiers(source, columns.resolve(source, path))

    assert check() == "<i8" and check(num=["a", "bbb", "cc"]) == "<U3"
    with pytest.raises(ValueError, match="1 values of num in mine.ecsv occur more than once .the first: 4.: give each galaxy one of"):
        check(num=[4, 5, 4])
    with pytest.raises(ValueError, match="1 rows of mine.ecsv have no num"):
        check(num=np.ma.masked_equal([4, 5, -1], -1))
    source, path = mine(BANDS + "unit: uJy\n", num=[4, 4, 4])
    assert columns.identifiers(source, columns.resolve(source, path)) == "<i8", "row numbers are always unique"
