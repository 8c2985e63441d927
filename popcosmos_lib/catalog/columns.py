"""Meaning of the columns of a catalogue: recognised names, or a short YAML, and units.

Names of COSMOS2020, of the built-in mock and of KiDS are recognised. Any other table is explained by a YAML file:

    id: ID                               # left out: row numbers
    bands: {u: [flux_u, err_u], ...}     # short names of filters.SHORT, any of the 26
    curves: {u: sdss_u0, ...}            # bands of another survey in the places of these: what filters.load takes, or files
    unit: uJy                            # mJy, Jy, maggies, nanomaggies, cgs (erg/s/cm2/Hz), AB mag; left out: as the file states
    z_spec: ZSPEC                        # passed on to the output
    ebv: EBV                             # column or number, E(B-V) of the Milky Way still to be corrected; left out: corrected already
    zero_points: {u: -0.03, ...}         # mag, added to the magnitudes of a band

Used by ``batch`` and ``dry_run``.
"""

from pathlib import Path

import numpy as np
import yaml
from astropy.table import vstack

from popcosmos_lib import survey
from popcosmos_lib.catalog import catalogue, readers
from popcosmos_lib.catalog.mapping import AB, NOTHING, UNITS, Mapping, factor, near
from popcosmos_lib.synthesis import filters

__all__ = ["KIDS", "KIDS_CURVES", "NOTHING", "UNITS", "Mapping", "factor", "identifiers", "reddening", "resolve", "sample"]

_FIELDS = ("id", "bands", "curves", "unit", "z_spec", "ebv", "zero_points")
_IDENTIFIERS = ("ID", "id", "SeqNr")
KIDS = {"u": "u", "g": "g", "r": "r", "i": "i", "z": "Z", "Y": "Y", "J": "J", "H": "H", "Ks": "Ks"}  # place: band
KIDS_CURVES = dict(zip(KIDS, filters.SURVEYS["kids"], strict=True))
_KIDS_NAMES = (("MAG_GAAP_{}", "MAGERR_GAAP_{}"), ("FLUX_GAAP_{}", "FLUXERR_GAAP_{}"), ("{}_FLUX", "{}_FLUXERR"))
_KIDS_NOTE = (
    "KiDS names: fitted through the curves of KiDS and VIKING (of SDSS for u, g, r, i); "
    "GAaP fluxes have the right colours but miss light, so masses and star-formation rates come out low"
)


def resolve(source, path=None):
    """Assign the columns of a catalogue to bands, redshift and extinction.

    Parameters
    ----------
    source : readers.Source
    path : path, optional
        YAML file with the fields explained at the head of this module; by default columns are recognised by their names.

    Returns
    -------
    Mapping

    Raises
    ------
    FileNotFoundError, ValueError
        If the YAML or a column that it names is not there, no band is recognised, or a unit is neither in the file nor in the YAML.
    """
    if path is not None:
        return _told(source, Path(path))
    names = source.units
    bands = [name[9:] for name in names if name.startswith("flux_err_") and f"flux_{name[9:]}" in names]
    if set(bands) & set(filters.SHORT):
        return _mock(source, bands)
    pairs = zip(filters.SHORT, (catalogue.official(names, stem) for stem in survey.BANDS["column"]), strict=True)
    bands = {band: pair for band, pair in pairs if pair}
    if bands:
        release = catalogue.guess(names, source.path.name)
        ebv = "EBV_MW" if "EBV_MW" in names else None
        return _recognised(source, "COSMOS2020", bands, catalogue.REDSHIFTS, "uJy", ebv=ebv, zero_points=release)
    for value, error in _KIDS_NAMES:
        pairs = {band: (value.format(measured), error.format(measured)) for band, measured in KIDS.items()}
        bands = {band: pair for band, pair in pairs.items() if set(pair) <= names.keys()}
        if len(bands) > 1:
            unit, curves = AB if value.startswith("MAG") else None, {band: KIDS_CURVES[band] for band in bands}
            return _recognised(source, "KiDS", bands, catalogue.REDSHIFTS, unit, curves=curves, notes=(_KIDS_NOTE,))
    raise ValueError(
        f"no band was recognised among the {len(names)} columns of {source.path.name} ({', '.join(list(names)[:6])}, ...): "
        "say which is which with --columns map.yaml, for instance bands: {r: [flux_r, flux_err_r]}"
    )


def _mock(source, bands):
    """The mapping of a mock with these bands, through the curves of its survey if the file says that they are not those of COSMOS2020."""
    told = source.about().get("bands", {})
    other = not set(told.values()) <= set(filters.COSMOS26)
    place = {band.lower() if other and band not in filters.SHORT else band: band for band in bands}
    if len(place) < len(bands) or not place.keys() <= set(filters.SHORT) or (other and not told.keys() >= set(bands)):
        raise ValueError(
            f"{source.path.name} has fluxes of {' '.join(bands)}, not all of which are bands of COSMOS2020: say with --columns map.yaml "
            "which column belongs to which band, and if they are bands of another survey, their curves"
        )
    pairs = {short: (f"flux_{place[short]}", f"flux_err_{place[short]}") for short in filters.SHORT if short in place}
    curves = {short: told[place[short]] for short in pairs} if other else {}
    if curves:
        filters.load(list(curves.values()))  # one that is nowhere to be found is said now
    return _recognised(source, "mock", pairs, ("z_spec", "z"), "uJy", curves=curves)


def _recognised(source, names, bands, redshifts, unit, **more):
    columns = source.units
    identifier = next((name for name in _IDENTIFIERS if name in columns), None)
    z_spec = next((name for name in redshifts if name in columns), None)
    notes = list(more.pop("notes", ()))
    if unit == "uJy" and not any(columns[name] for pair in bands.values() for name in pair):
        notes.append(f"the file states no units: fluxes are taken as µJy, which {names} columns are in")
    return Mapping(names, bands, _scale(source, bands, None, unit), identifier, z_spec, notes=tuple(notes), **more)


def _scale(source, bands, told, usual=None):
    """µJy in one unit of each column: what the YAML tells, else what the file states, else what is usual."""
    found = {}
    for column in (name for pair in bands.values() for name in pair):
        stated = source.units[column]
        unit = told or (usual if usual and (not stated or usual == AB) else stated)
        if not unit:
            raise ValueError(f"{source.path.name} does not state the unit of {column}: add to the YAML one of unit: {', '.join(UNITS)}")
        found[column] = factor(unit, column)
    return found


def _told(source, path):
    """The mapping of a YAML file, once every word of it has been checked."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: --columns takes a YAML file such as bands: {{r: [flux_r, flux_err_r]}}")
    try:
        told = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from None

    def wrong(text):
        return ValueError(f"{path.name}: {text}")

    def column(name, what):
        if name not in source.units:
            like = near(name, source.units) or f": its columns are {', '.join(list(source.units)[:8])}{', ...' * (len(source.units) > 8)}"
            raise wrong(f"{what} is {name!r}, but {source.path.name} has no such column{like}")
        return name

    if not isinstance(told, dict) or not isinstance(told.get("bands"), dict) or not told["bands"]:
        raise wrong("it needs at least bands: {<band>: [<flux column>, <error column>]}, such as bands: {r: [flux_r, flux_err_r]}")
    for name in told:
        if name not in _FIELDS:
            raise wrong(f"unknown field {name!r}{near(name, _FIELDS)}: the fields are {', '.join(_FIELDS)}")
    for band, pair in told["bands"].items():
        _known_band(band, wrong)
        if not isinstance(pair, list) or len(pair) != 2:
            raise wrong(f"band {band} needs [flux column, error column]; got {pair!r}")
    bands = {band: tuple(column(name, f"band {band}") for name in pair) for band, pair in told["bands"].items()}
    ebv, points = told.get("ebv"), told.get("zero_points") or {}
    for band in points:
        _known_band(band, wrong)
    if not all(isinstance(value, int | float) for value in points.values()):
        raise wrong(f"zero_points are numbers of magnitudes, one a band; got {points!r}")
    return Mapping(
        path.name,
        bands,
        _scale(source, bands, None if told.get("unit") is None else str(told["unit"])),
        *(told.get(name) and column(told[name], name) for name in ("id", "z_spec")),
        float(ebv) if isinstance(ebv, int | float) else ebv and column(ebv, "ebv"),
        {band: float(value) for band, value in points.items()},
        _curves(told.get("curves") or {}, bands, path, wrong),
    )


def _curves(told, bands, path, wrong):
    """Curves of the bands, those that are not told their own, files by their full path; empty where none is told."""
    if not isinstance(told, dict) or not told.keys() <= bands.keys():
        raise wrong(f"curves are {{<band>: <curve>}} of bands that bands: names ({' '.join(bands)}); got {told!r}")
    found = {}
    for band in bands if told else ():
        found[band] = filters.beside(told.get(band, filters.COSMOS26[filters.SHORT.index(band)]), path.resolve().parent)
        try:
            filters.load([found[band]])
        except ValueError as error:
            raise wrong(f"the curve of band {band}: {error}") from None
    return found


def _known_band(band, wrong):
    if band not in filters.SHORT:
        raise wrong(f"unknown band {band!r}{near(band, filters.SHORT)}: the bands are {' '.join(filters.SHORT)}")


def reddening(source, mapping):
    """Median E(B-V) of each file [mag], for its rows that have none: dict of Path to float, NaN where nothing is known."""
    if not isinstance(mapping.ebv, str):
        return dict.fromkeys(source.files, np.nan)
    found = {}
    for chunk in source.chunks(len(source)):
        ebv = catalogue.values(readers.read(chunk, [mapping.ebv]), mapping.ebv)
        found[chunk.file] = float(np.nanmedian(ebv)) if np.isfinite(ebv).any() else np.nan
    return found


def sample(source, mapping, n=20_000):
    """Photometry of about ``n`` rows, evenly spread in ten pieces over the catalogue, as a ``catalog.Catalogue``; all rows if fewer.

    Raises
    ------
    ValueError
        If they cannot be read, cannot be in the unit that was told, or have no usable band at all.
    """
    size = max(1, n // 10)
    chunks = source.chunks(size)
    needed, kept = mapping.needed(source.units), chunks[:: max(1, len(chunks) * size // n)]
    table = vstack([readers.read(chunk, needed) for chunk in kept], metadata_conflicts="silent")
    found = mapping.catalogue(table)
    if (found.flag & NOTHING).all():
        raise ValueError(f"{source.path.name} has no usable band in any row: fluxes or errors are missing, or errors not positive")
    return found


def identifiers(source, mapping):
    """Refuse identifiers that do not tell galaxies apart, file by file (in a HATS catalogue each object lies in one partition).

    Returns
    -------
    str
        Type of the column, as numpy writes it.

    Raises
    ------
    ValueError
        If an identifier is missing or occurs twice.
    """
    if mapping.id is None:
        return "<i8"
    found, remedy = [], "give each galaxy one of its own, or leave id out of the YAML of --columns, which numbers the rows"
    for chunk in source.chunks(len(source)):
        ids = np.asarray(readers.read(chunk, [mapping.id])[mapping.id])
        missing = ~np.isfinite(ids) if ids.dtype.kind == "f" else ids == ""
        if np.any(missing):
            raise ValueError(f"{int(np.sum(missing))} rows of {chunk.file.name} have no {mapping.id}: {remedy}")
        values, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            raise ValueError(
                f"{int((counts > 1).sum())} values of {mapping.id} in {chunk.file.name} occur more than once (the first: "
                f"{values[counts > 1][0]}): {remedy}"
            )
        found.append(ids.dtype)
    return np.result_type(*found).str
