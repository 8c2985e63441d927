"""Rows of a catalogue on disk: the same from every kind of file, in any pieces, and one sentence for what cannot be read."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from astropy import units
from astropy.io import fits
from astropy.table import Table

from popcosmos_lib import catalog
from popcosmos_lib.catalog import readers

N = 23


@pytest.fixture
def table():
    rng = np.random.default_rng(2)
    found = Table({"ID": np.arange(N) + 100, "name": [f"g{i}" for i in range(N)], "FLUX": rng.normal(size=N)})
    found["FLUX"].unit = units.uJy
    return found


def write(table, folder, name):
    path = folder / name
    table.write(path, format={"fits": "fits", "parquet": "parquet", "csv": "ascii.csv", "ecsv": "ascii.ecsv"}[name.split(".")[1]])
    return path


def hats(table, folder, sizes, version=2):
    """A HATS catalogue of partitions of these sizes; the layout of version 1 has ``properties`` and no ``dataset``."""
    root = folder / "dataset" if version == 2 else folder
    start = 0
    for pixel, size in sizes.items():
        path = root / f"Norder={pixel[0]}" / "Dir=0" / f"Npix={pixel[1]}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = table[start : start + size]
        pyarrow.parquet.write_table(pyarrow.table({name: np.asarray(rows[name]) for name in rows.colnames}), path)
        start += size
    about = f"#HATS catalog\ndataproduct_type=object\nhats_nrows={sum(sizes.values())}\n"
    (folder / ("hats.properties" if version == 2 else "properties")).write_text(about)
    pyarrow.parquet.write_metadata(pyarrow.parquet.read_schema(path), root / "_metadata")
    return folder


@pytest.mark.parametrize("name", ["t.fits", "t.fits.gz", "t.parquet", "t.csv", "t.ecsv"])
def test_every_kind_gives_the_same_rows_in_any_pieces(table, tmp_path, name):
    source = readers.load(write(table, tmp_path, name))
    assert len(source) == N and list(source.units) == table.colnames
    assert source.units["FLUX"] == ("" if name == "t.csv" else "uJy") and source.units["ID"] == ""
    for size in (1, 7, 1000):
        chunks = source.chunks(size)
        assert sum(map(len, chunks)) == N and [chunk.first for chunk in chunks] == list(range(0, N, size))
        parts = [readers.read(chunk, ["FLUX", "name", "ID"]) for chunk in chunks]
        for column in table.colnames:
            assert (np.concatenate([part[column] for part in parts]) == table[column]).all()
    assert parts[0]["FLUX"].dtype.isnative and parts[0]["name"].dtype.kind == "U"


def test_row_groups_of_parquet_do_not_show(table, tmp_path):
    catalog.write(tmp_path / "t.parquet", [table[["ID", "FLUX"]][:5], table[["ID", "FLUX"]][5:6], table[["ID", "FLUX"]][6:]])
    source = readers.load(tmp_path / "t.parquet")
    assert source.units["FLUX"] == "uJy"
    for size in (2, 3, 9):
        assert np.concatenate([readers.read(chunk, ["ID"])["ID"] for chunk in source.chunks(size)]).tolist() == list(table["ID"])


def test_what_is_absent_is_nan_or_empty(tmp_path):
    holes = pyarrow.table({"ID": ["a", None, "c"], "FLUX": [1.0, None, 3.0], "mask": pyarrow.array([1, 2, None], pyarrow.int64())})
    pyarrow.parquet.write_table(holes, tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("ID,FLUX,mask\na,1.0,1\n,,2\nc,3.0,\n")
    for name in ("t.parquet", "t.csv"):
        source = readers.load(tmp_path / name)
        read = readers.read(source.chunks(10)[0], ["ID", "FLUX", "mask"])
        assert read["ID"].tolist() == ["a", "", "c"]
        np.testing.assert_array_equal(read["FLUX"], [1, np.nan, 3])
        np.testing.assert_array_equal(read["mask"], [1, 2, np.nan])


@pytest.mark.parametrize("version", [1, 2])
def test_hats_partitions_in_the_order_of_their_pixels(table, tmp_path, version):
    folder = hats(table, tmp_path / "sky", {(1, 2): 4, (1, 10): 9, (2, 3): 10}, version)
    source = readers.load(folder)
    assert len(source) == N and len(source.files) == 3
    chunks = source.chunks(6)
    assert [len(chunk) for chunk in chunks] == [4, 6, 3, 6, 4], "no chunk spans two partitions"
    assert np.concatenate([readers.read(chunk, ["ID"])["ID"] for chunk in chunks]).tolist() == list(table["ID"])
    before = source.digest()
    assert readers.load(folder).digest() == before
    hats(table[::-1], tmp_path / "sky", {(1, 2): 4, (1, 10): 9, (2, 3): 10}, version)
    assert readers.load(folder).digest() != before, "other rows in partitions of the same names"


def test_of_a_collection_the_catalogue_without_its_margins(table, tmp_path):
    hats(table, tmp_path / "sky" / "mine", {(1, 2): 4, (1, 3): N - 4})
    hats(table, tmp_path / "sky" / "mine_margin", {(1, 2): 3, (1, 3): 2})
    (tmp_path / "sky" / "collection.properties").write_text("#HATS Collection\nhats_primary_table_url=mine\nall_margins=mine_margin\n")
    source = readers.load(tmp_path / "sky")
    assert len(source) == N and all("mine_margin" not in str(file) for file in source.files)


def test_what_lsdb_writes_is_read_whole_and_once(table, tmp_path):
    lsdb = pytest.importorskip("lsdb", reason="LSDB is not installed: .venv/bin/pip install lsdb")
    rng = np.random.default_rng(3)
    frame = table.to_pandas().assign(ra=150 + rng.uniform(0, 1, N), dec=2 + rng.uniform(0, 1, N))
    made = lsdb.from_dataframe(frame, ra_column="ra", dec_column="dec", lowest_order=3, highest_order=9, partition_rows=6)
    made.write_catalog(tmp_path / "sky")  # a collection: the catalogue and a margin, in which rows are found again
    source = readers.load(tmp_path / "sky")
    assert len(source) == N and len(source.files) > 3
    parts = [readers.read(chunk, ["ID", "FLUX"]) for chunk in source.chunks(1000)]
    found = dict(zip(*(np.concatenate([part[name] for part in parts]) for name in ("ID", "FLUX")), strict=True))
    assert found == dict(zip(table["ID"], table["FLUX"], strict=True))


def test_a_partition_that_is_missing_is_missed(table, tmp_path):
    folder = hats(table, tmp_path / "sky", {(1, 2): 4, (1, 3): N - 4})
    next(folder.rglob("Npix=2.parquet")).unlink()
    with pytest.raises(ValueError, match=f"sky announces {N} rows but its partitions have {N - 4}: some are missing"):
        readers.load(folder)


def test_a_file_is_known_by_its_content(table, tmp_path):
    one, two = write(table, tmp_path, "a.ecsv"), write(table, tmp_path, "b.ecsv")
    table["FLUX"][3] += 1e-6
    three = write(table, tmp_path, "c.ecsv")
    assert readers.load(one).digest() == readers.load(two).digest() != readers.load(three).digest()


@pytest.mark.parametrize("name", ["t.fits", "t.fits.gz", "t.parquet"])
def test_a_truncated_file_is_refused_at_once(tmp_path, name):
    table = Table({"ID": np.arange(4000), "FLUX": np.random.default_rng(1).normal(size=4000)})
    path = write(table, tmp_path, name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ValueError, match=f"{name} cannot be read, it may be truncated"):
        readers.load(path)


def test_a_file_that_loses_its_end_later_is_named(tmp_path):
    path = write(Table({"ID": np.arange(4000)}), tmp_path, "t.parquet")
    chunk = readers.load(path).chunks(4000)[0]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="t.parquet cannot be read"):
        readers.read(chunk, ["ID"])


def test_what_is_no_catalogue_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no catalogue at"):
        readers.load(tmp_path / "none.fits")
    with pytest.raises(ValueError, match="without HATS partitions"):
        readers.load(tmp_path)
    (tmp_path / "t.txt").write_text("1 2 3")
    with pytest.raises(ValueError, match="does not end in .fits, .parquet, .csv or .ecsv"):
        readers.load(tmp_path / "t.txt")
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(tmp_path / "image.fits")
    with pytest.raises(ValueError, match="is it an image"):
        readers.load(tmp_path / "image.fits")
    (tmp_path / "t.fits").write_text("no FITS at all")
    with pytest.raises(ValueError, match="t.fits cannot be read"):
        readers.load(tmp_path / "t.fits")
    (tmp_path / "t.csv").write_text("ID,FLUX\n")
    with pytest.raises(ValueError, match="t.csv has no rows"):
        readers.load(tmp_path / "t.csv")
