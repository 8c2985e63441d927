"""Catalogues in: official COSMOS2020 tables, the built-in mock, or a table that uses either set of names.

What comes out is always the same: 26 total fluxes in µJy with NaN for a missing band, corrected for Milky-Way extinction
and for the zero-point offsets of the catalogue. Rows are never dropped; what is wrong with one is flagged and said.
Used by notebooks 07 and 08.

References
----------
Weaver et al. (2022), ADS 2022ApJS..258...11W (columns, offsets of its table 3 as in cosmic-dawn/cosmos2020-readcat);
Thorp et al. (2025), arXiv:2506.12122 sect. 2 (bands and cuts).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import psutil
import pyarrow
import pyarrow.parquet
from astropy.io import fits
from astropy.table import Table, meta

from popcosmos_lib.artefacts import store
from popcosmos_lib.survey.photometry import BANDS, FLAGS, PLAUSIBLE, Catalogue, assemble, from_table, validate, values
from popcosmos_lib.synthesis import filters

__all__ = [
    "FLAGS", "PLAUSIBLE", "REDSHIFTS", "Catalogue", "from_table", "guess", "head", "interpret", "known", "official", "read", "validate",
    "values", "write",
]  # fmt: skip

_PACKED = {"compression": "zstd", "use_dictionary": False}  # of floats no two of which are equal a dictionary is half as much again
REDSHIFTS = ("z_spec", "zspec", "specz", "ZSPEC", "Z_SPEC")
_KEEP = ("ID", "SAMPLE", "ALPHA_J2000", "DELTA_J2000", "EBV_MW", "UL_MASK", "QC_LYMAN", "FLAG_COMBINED", "MODEL_FLAG", "lp_type",
         "lp_zBEST", "ez_z_phot", "total_off2", "ID_CLASSIC", "ID_FARMER", *REDSHIFTS)  # fmt: skip


def read(path: Path | str, zero_points: str | None = "guess") -> Catalogue:
    """Read a catalogue with official COSMOS2020 names or with the names of the mock.

    Fluxes and errors are multiplied by 10**(0.4 R_b EBV_MW) and by 10**(-0.4 offset_b); CLASSIC 2-arcsec aperture fluxes by
    10**(-0.4 total_off2) first. Bands whose bit is set in UL_MASK (non-detections published as an upper limit) enter as zero flux
    with the limit as error: a one-sided limit of unknown significance then weighs no more than a one-sigma one.

    Parameters
    ----------
    path : path
        FITS, Parquet, CSV or ECSV file.
    zero_points : {"guess", "farmer", "classic", None}
        Whose LePhare offsets to take (Weaver+22); guessed from the columns, then from the file name.

    Returns
    -------
    Catalogue
        Its ``notes`` are also printed: missing bands, corrections, flagged galaxies.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file is not there, its kind or names are not known, or a flux column is not in µJy.
    """
    return _say(interpret(_open(Path(path)), zero_points, Path(path).name))


def interpret(table: Table, zero_points: str | None = "guess", name: str = "") -> Catalogue:
    """A catalogue from a table that has been read already, a part of a larger one for instance; nothing is printed.

    Parameters
    ----------
    table : Table
        With the names that ``read`` knows.
    zero_points : {"guess", "farmer", "classic", None}
        As for ``read``.
    name : str
        Of the file it is from, for the notes and the guess.

    Returns
    -------
    Catalogue

    Raises
    ------
    ValueError
        As for ``read``.
    """
    if any(f"flux_{band}" in table.colnames for band in filters.SHORT):
        return from_table(table)
    if zero_points == "guess":
        zero_points = guess(table.colnames, name)
    if zero_points not in ("farmer", "classic", None):
        raise ValueError(f'zero_points must be "farmer", "classic" or None; got {zero_points!r}')
    pairs = {i: pair for i, name in enumerate(BANDS["column"]) if (pair := official(table.colnames, name))}
    notes = [f"{name}: {len(table)} rows, {len(pairs)} of {len(filters.SHORT)} bands"]
    return assemble(table, pairs, "ID", REDSHIFTS, notes, lambda f, e: _correct(f, e, table, pairs, zero_points, notes))


def known(names: Sequence[str]) -> list[str]:
    """Those of a table's column names that ``interpret`` looks at, in their order."""
    mock = {name for name in names if name.lower().startswith("flux_")} | {"id", "z"}
    return [name for name in names if name in _WANTED | mock]


def _open(path):
    """The columns of interest; a full COSMOS2020 file has 754, and reading them all would take 7 GB."""
    if not path.exists():
        raise FileNotFoundError(f"there is no catalogue at {path}; give the path of a FITS, Parquet or CSV file")
    if path.name.endswith((".fits", ".fits.gz", ".fit")):
        with fits.open(path, memmap=True) as hdus:
            hdu = next((h for h in hdus if isinstance(h, fits.BinTableHDU)), None)
            if hdu is None:
                raise ValueError(f"{path} holds no binary table; is it an image?")
            names = known(hdu.columns.names)
            table = Table({name: np.array(hdu.data[name]).astype(hdu.data[name].dtype.newbyteorder("=")) for name in names})
            for name in names:
                table[name].unit = hdu.columns[name].unit
        return table
    kinds = {".parquet": "parquet", ".csv": "ascii.csv", ".ecsv": "ascii.ecsv"}
    if path.suffix not in kinds:
        raise ValueError(f"{path.name} is not a FITS, Parquet, CSV or ECSV file; save the table as one of these")
    return Table.read(path, format=kinds[path.suffix])


def _names(band):
    """Column pairs that hold a band, in order of preference: total (FARMER, and IRAC in CLASSIC), then CLASSIC 2-arcsec aperture."""
    return (f"{band}_FLUX", f"{band}_FLUXERR"), (f"{band}_FLUX_APER2", f"{band}_FLUXERR_APER2")


_WANTED = {*_KEEP, *(c for name in BANDS["column"] for pair in _names(name) for c in (*pair, f"{name}_VALID"))}


def official(columns: Sequence[str], band: str) -> tuple[str, str] | None:
    """The pair of columns that holds a band of ``BANDS["column"]``, total fluxes before aperture ones; None where there is none."""
    return next((pair for pair in _names(band) if pair[0] in columns and pair[1] in columns), None)


def guess(columns: Sequence[str], name: str) -> str | None:
    """Whose zero points a table needs, by its columns, then by its name: "farmer", "classic" or None."""
    if "total_off2" in columns or "ID_FARMER" in columns:
        return "classic"
    if "MODEL_FLAG" in columns or "ID_CLASSIC" in columns:
        return "farmer"
    return next((kind for kind in ("classic", "farmer") if kind in name.lower()), None)


def _correct(flux, flux_err, table, pairs, zero_points, notes):
    """Total flux, validity, upper limits, extinction and zero points; notes say which of them were done."""
    offset = np.zeros_like(flux)  # mag, to be added
    aperture = [i for i, pair in pairs.items() if pair[0].endswith("_APER2")]
    if aperture:
        if "total_off2" not in table.colnames:
            raise ValueError("aperture fluxes need the column total_off2 to become total; keep it when you cut the catalogue")
        offset[:, aperture] += values(table, "total_off2")[:, None]
    for i, name in enumerate(BANDS["column"]):
        if f"{name}_VALID" in table.colnames:
            flux[~np.asarray(table[f"{name}_VALID"]).astype(bool), i] = np.nan
    if "UL_MASK" in table.colnames:
        limit = (np.asarray(table["UL_MASK"])[:, None] >> np.arange(flux.shape[1])) & 1 == 1
        flux = np.where(limit & (flux_err > 0), 0.0, flux)
        notes.append(f"{int(limit.sum())} non-detections enter as zero flux with the published limit as error")
    reddening = values(table, "EBV_MW") if "EBV_MW" in table.colnames else np.full(len(table), np.nan)
    if np.isfinite(reddening).any():
        if not np.isfinite(reddening).all():
            notes.append(f"EBV_MW is missing in {int((~np.isfinite(reddening)).sum())} rows: the median of the others is used there")
            reddening = np.where(np.isfinite(reddening), reddening, np.nanmedian(reddening))
        offset -= reddening[:, None] * np.asarray(BANDS["extinction"])
    else:
        notes.append("no EBV_MW: fluxes are taken as corrected for Milky-Way extinction")
    if zero_points:
        offset += np.asarray(BANDS[f"offset_{zero_points}"])
    notes.append(f"zero-point offsets: {f'{zero_points} (Weaver+22)' if zero_points else 'none'}")
    factor = 10 ** (-0.4 * offset)
    return flux * factor, flux_err * factor


def write(path: Path | str, tables: Iterable[Table]) -> None:
    """Write tables one below the other into one Parquet file, a row group each, holding one at a time.

    The file appears under its name once it is whole; a killed run leaves a hidden temporary file, which the next one removes. astropy reads
    units and metadata back; other readers find units in the metadata of each field, and the rest as JSON under the key ``popcosmos``.

    Parameters
    ----------
    path : path
        Ends in ``.parquet``; a file of that name is replaced.
    tables : iterable of Table
        All with the columns, types, units and metadata of the first; metadata are JSON values.

    Raises
    ------
    ValueError
        If the path does not end in ``.parquet`` or its folder is not there.
    """
    path = Path(path)
    if path.suffix != ".parquet" or not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: give a path that ends in .parquet, in a folder that exists")
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        if not psutil.pid_exists(int(left.suffixes[-2][1:])):
            left.unlink()
    tables = iter(tables)
    first = next(tables)
    names, units = first.colnames, {name: str(first[name].unit or "") for name in first.colnames}
    fields = [
        pyarrow.field(name, pyarrow.from_numpy_dtype(first[name].dtype), nullable=False, metadata={"unit": units[name]}) for name in names
    ]
    about = {"table_meta_yaml": "\n".join(meta.get_yaml_from_table(first[:0])), "popcosmos": json.dumps(first.meta | {"units": units})}
    about |= {f"table::len::{name}": str(first[name].dtype.itemsize // 4) for name in names if first[name].dtype.kind == "U"}  # for astropy
    schema = pyarrow.schema(fields, about)
    with store.replacing(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema, **_PACKED) as file:
        for table in itertools.chain([first], tables):
            file.write_table(pyarrow.table([table[name].data for name in names], schema))


def head(path: Path | str) -> dict:
    """What ``write`` put into the head of a Parquet file beside units, as a dict; empty if the file is of another origin."""
    told = (pyarrow.parquet.read_schema(path).metadata or {}).get(b"popcosmos")
    return json.loads(told) if told else {}


def _say(catalogue):
    for note in catalogue.notes:
        print(note)
    return catalogue
