"""Rows of a catalogue on disk, a part at a time: FITS, Parquet, CSV, ECSV, or the partitions of a HATS folder.

A HATS catalogue is a folder of Parquet files, one per pixel of the sky, named ``Norder=k/Dir=d/Npix=p.parquet``; its rows are taken pixel
by pixel, in the order of order and pixel. Used by ``batch``.
"""

import contextlib
import functools
import hashlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from astropy.io import fits
from astropy.table import Table, meta

from popcosmos_lib.artefacts import provenance
from popcosmos_lib.catalog import catalogue

__all__ = ["Chunk", "Source", "load", "read"]

_FOOTER = 65_536  # last bytes of a Parquet file: sizes, offsets and statistics of all its columns
_PIXEL = re.compile(r"(?:dataset/)?Norder=(\d+)/(?:Dir=\d+/)?Npix=(\d+)")


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one file.

    Attributes
    ----------
    file : Path
    start, stop : int
        Rows of that file.
    first : int
        Number of the row ``start`` in the whole catalogue.
    """

    file: Path
    start: int
    stop: int
    first: int

    def __len__(self):
        return self.stop - self.start


@dataclass(frozen=True)
class Source:
    """A catalogue on disk: names, units and lengths, without its rows.

    Attributes
    ----------
    path : Path
        File, or HATS folder.
    files : dict of Path to int
        Rows of each file.
    units : dict of str to str
        Unit of every column as the file states it; empty where it states none.
    """

    path: Path
    files: dict
    units: dict

    def __len__(self):
        return sum(self.files.values())

    def chunks(self, size):
        """The rows in pieces of at most ``size``, in order; no piece spans two files."""
        first, found = 0, []
        for file, rows in self.files.items():
            found += [Chunk(file, start, min(start + size, rows), first + start) for start in range(0, rows, size)]
            first += rows
        return found

    def about(self):
        """What this package wrote into the head of the (first) Parquet file, such as the ``photometry`` of a mock; else empty."""
        file = next(iter(self.files))
        return catalogue.head(file) if file.suffix == ".parquet" else {}

    def digest(self):
        """Fingerprint of the content: SHA-256 of the file; of a HATS folder, of the names, sizes and footers of its partitions."""
        if self.path.is_file():
            return provenance.sha256(self.path)
        found = hashlib.sha256()
        for file in self.files:
            size = file.stat().st_size
            with open(file, "rb") as opened:
                opened.seek(max(0, size - _FOOTER))
                found.update(f"{file.relative_to(self.path)} {size} ".encode() + opened.read())
        return found.hexdigest()


def load(path):
    """Open a catalogue without reading its rows.

    Parameters
    ----------
    path : path
        FITS (first binary table), Parquet, CSV or ECSV file, or the folder of a HATS catalogue.

    Returns
    -------
    Source

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    ValueError
        If it is of another kind, damaged, truncated or empty.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no catalogue at {path}: give a FITS, Parquet, CSV or ECSV file, or a HATS folder")
    files, units = {}, {}
    order, announced = _partitions(path) if path.is_dir() else ([path], None)
    for file in order:
        with _named(file):
            units, files[file] = _KINDS[_kind(file)][0](file)
    if announced not in (None, sum(files.values())):
        raise ValueError(f"{path.name} announces {announced} rows but its partitions have {sum(files.values())}: some are missing or new")
    if not sum(files.values()):
        raise ValueError(f"{path.name} has no rows")
    return Source(path, files, units)


def read(chunk, names):
    """Columns of a chunk.

    Parameters
    ----------
    chunk : Chunk
    names : sequence of str

    Returns
    -------
    Table
        Without units; masked entries of Parquet and CSV are NaN in columns of numbers.

    Raises
    ------
    ValueError
        If the file ends early or is damaged.
    """
    with _named(chunk.file):
        return _KINDS[_kind(chunk.file)][1](chunk.file, list(names), chunk.start, chunk.stop)


def _partitions(folder):
    """The Parquet files of a HATS folder, in the order of order and pixel; of a collection those of its catalogue, not of its margins."""
    root = folder / _properties(folder / "collection.properties").get("hats_primary_table_url", ".")
    found = [file for file in root.glob("**/*.parquet") if _PIXEL.match(file.relative_to(root).as_posix())]
    if not found:
        raise ValueError(f"{folder} is a folder without HATS partitions (Norder=*/Dir=*/Npix=*.parquet): give a file, or a HATS catalogue")
    rows = _properties(root / "hats.properties").get("hats_nrows") or _properties(root / "properties").get("hats_nrows")
    order = sorted(found, key=lambda file: ([int(x) for x in _PIXEL.match(file.relative_to(root).as_posix()).groups()], file.name))
    return order, None if rows is None else int(rows)


def _properties(path):
    """The words of a Java properties file; none where there is no file."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


@contextlib.contextmanager
def _named(file):
    """Errors of the readers as one sentence with the name of the file; warnings of astropy's that say the same are silenced."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*truncated.*")
            warnings.filterwarnings("ignore", message=".*did not parse as fits unit.*")
            yield
    except (OSError, EOFError, ValueError, TypeError, pyarrow.ArrowException) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{file.name} cannot be read, it may be truncated or of another kind: {text}") from error


def _kind(file):
    kind = next((ending for ending in _KINDS if file.name.endswith(ending)), None)
    if kind is None:
        raise ValueError("its name does not end in .fits, .parquet, .csv or .ecsv")
    return kind


def _fits(file):
    """The first binary table of an open FITS file."""
    hdu = next((hdu for hdu in file if isinstance(hdu, fits.BinTableHDU)), None)
    if hdu is None:
        raise ValueError("it holds no binary table; is it an image?")
    return hdu


def _look_fits(path):
    with fits.open(path, memmap=True) as file:
        hdu = _fits(file)
        ends = hdu.fileinfo()["datLoc"] + hdu.header["NAXIS1"] * hdu.header["NAXIS2"]
        if path.suffix != ".gz" and ends > path.stat().st_size:
            raise ValueError(f"{ends} bytes are announced, {path.stat().st_size} are there")
        return {column.name: column.unit or "" for column in hdu.columns}, hdu.header["NAXIS2"]


def _read_fits(path, names, start, stop):
    with fits.open(path, memmap=True) as file:
        data = _fits(file).data
        return Table({name: _native(np.array(data[name][start:stop])) for name in names})


def _native(values):
    """Text as text; numbers in the byte order of this machine."""
    return values.astype(str) if values.dtype.kind in "SO" else values.astype(values.dtype.newbyteorder("="))


def _look_parquet(path):
    with pyarrow.parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        units = {field.name: (field.metadata or {}).get(b"unit", b"").decode() for field in schema}
        header = (schema.metadata or {}).get(b"table_meta_yaml")  # where astropy keeps them
        if header:
            told = meta.get_header_from_yaml(header.decode().split("\n"))
            units |= {column["name"]: str(column["unit"]) for column in told["datatype"] if column.get("unit")}
        return units, file.metadata.num_rows


def _read_parquet(path, names, start, stop):
    with pyarrow.parquet.ParquetFile(path) as file:
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
    groups = np.flatnonzero((ends > start) & (np.r_[0, ends[:-1]] < stop)).tolist()
    before = int(ends[groups[0] - 1]) if groups[0] else 0
    table = _groups(path, path.stat().st_mtime_ns, tuple(groups), tuple(names)).slice(start - before, stop - start)
    return Table({name: _numpy(table[name]) for name in names})


@functools.lru_cache(maxsize=1)
def _groups(path, changed, groups, names):
    """Row groups, which can only be read whole; kept because the next chunk is likely to be of the same ones."""
    with pyarrow.parquet.ParquetFile(path) as file:
        return file.read_row_groups(groups, columns=names)


def _numpy(column):
    """An Arrow column; absent numbers are NaN, absent texts empty."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
        column = column.fill_null("")
    return _native(column.to_numpy())


@functools.lru_cache(maxsize=1)
def _text(path, changed):
    """A CSV or ECSV table, which can only be read whole; kept between chunks as long as the file is not changed."""
    return Table.read(path, format={".csv": "ascii.csv", ".ecsv": "ascii.ecsv"}[path.suffix])


def _look_text(path):
    table = _text(path, path.stat().st_mtime_ns)
    return {name: str(table[name].unit or "") for name in table.colnames}, len(table)


def _read_text(path, names, start, stop):
    table = _text(path, path.stat().st_mtime_ns)[names][start:stop]
    return Table({name: _filled(table[name]) for name in names})


def _filled(column):
    values = np.ma.asarray(column.data)
    if values.dtype.kind in "fiu" and np.ma.is_masked(values):
        return values.astype(float).filled(np.nan)
    return values.filled("") if values.dtype.kind == "U" else values.data


_KINDS = {
    **dict.fromkeys((".fits", ".fit", ".fits.gz"), (_look_fits, _read_fits)),
    ".parquet": (_look_parquet, _read_parquet),
    **dict.fromkeys((".ecsv", ".csv"), (_look_text, _read_text)),
}
