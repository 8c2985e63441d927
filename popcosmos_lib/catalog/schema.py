"""The columns of a table of posteriors: name, unit, meaning; what ``fit`` writes and ``--dry-run`` prints.

Used by ``batch``.
"""

import functools
from typing import NamedTuple

import numpy as np
from astropy import units
from astropy.table import Column as TableColumn
from astropy.table import Table

from popcosmos_lib.fitting import inference
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.synthesis import filters

__all__ = ["FLAGS", "Column", "draws", "posteriors", "table"]

FAILED = 2048
FLAGS = inference.FLAGS | {FAILED: "the fit failed"}
_DERIVED = {
    "log10SFR": ("dex(Msun / yr)", "star-formation rate over 100 Myr"),
    "log10sSFR": ("dex(1 / yr)", "star-formation rate over 100 Myr per formed mass"),
    "age": ("Gyr", "mass-weighted age"),
    "log10M_remain": ("dex(Msun)", "surviving stellar mass"),
    "A_V": ("mag", "attenuation by the diffuse dust in V"),
}
_MEANING = {
    "log10M_formed": "stellar mass formed", "log10Z": "stellar metallicity", "dust2": "optical depth of the diffuse dust in V",
    "dust_index": "offset of the slope of the attenuation curve", "dust1_fraction": "optical depth of birth clouds over the diffuse one",
    "lnfAGN": "ln of the luminosity of the AGN torus over that of the stars", "lntauAGN": "ln of the optical depth of the torus",
    "log10Zgas": "gas-phase metallicity", "log10Ugas": "ionisation parameter", "z": "redshift",
}  # fmt: skip


class Column(NamedTuple):
    """One column of a table.

    Attributes
    ----------
    name, unit, meaning : str
        The unit is empty where there is none.
    kind : str
        "number", "integer" or "text"; "id" for what the catalogue has.
    """

    name: str
    unit: str
    meaning: str
    kind: str = "number"


def _parameters():
    """Name, unit and meaning of the 16 parameters."""
    for name, unit in zip(parameters.NAMES, parameters.UNITS, strict=True):
        i = name.removeprefix("log10SFR_ratio")
        yield name, unit, _MEANING[name] if name in _MEANING else f"log ratio of the star-formation rates of age bins {i} and {int(i) + 1}"


def posteriors():
    """The columns of the table of posteriors, one row a galaxy, as a list of `Column`."""
    found = [Column("id", "", "identifier in the catalogue, or row number from 0", "id")]
    for name, unit, meaning in (*_parameters(), *((name, *_DERIVED[name]) for name in inference.DERIVED)):
        for suffix, share in inference.QUANTILES.items():
            found.append(Column(f"{name}_{suffix}", unit, f"{meaning}: {100 * share:.2f} % of the posterior lies below"))
    flags = "; ".join(f"{bit}: {text}" for bit, text in FLAGS.items())
    return [
        *found,
        Column("ess", "", "effective number of independent draws"),
        Column("khat", "", "Pareto shape of the importance weights: below 0.7 they can be trusted"),
        Column("rhat", "", "worst R-hat of redshift, mass and SFR where there were chains: 1 when they agree"),
        Column("engine", "", "what drew the posterior; empty where there is none", "text"),
        Column("chi2", "", "sum of squared residuals of the most likely draw over error and floor"),
        Column("p_fit", "", "chance of photometry as unlikely as this under the posterior: small means that the model does not fit"),
        Column("p_band", "", "the same of the band that fits worst"),
        Column("p_rare", "", "share of the galaxies of the prior that are rarer than those of the posterior: a star is like none of them"),
        Column("bands", "", f"bands used, of {len(filters.SHORT)}", "integer"),
        Column("flags", "", f"sum of bits, 0 = nothing to say; {flags}", "integer"),
        Column("z_spec", "", "spectroscopic redshift of the catalogue, not used by the fit"),
    ]


def draws():
    """The columns of the table of weighted draws, several rows a galaxy, as a list of `Column`."""
    first = [Column("id", "", "identifier of the galaxy", "id"), Column("weight", "", "weight of the draw; those of a galaxy sum to one")]
    return first + [Column(*rest) for rest in _parameters()]


def table(columns, values, length, identifier, meta=None):
    """A table of these columns, of the same types whatever the values.

    Parameters
    ----------
    columns : list of Column
    values : dict of str to array_like of shape (length,)
        Those that are not there are NaN, 0 or empty.
    length : int
    identifier : dtype
        Of the column ``id``.
    meta : dict, optional
        Beside the meanings, which go under ``columns``.

    Returns
    -------
    Table
    """
    types = {"number": (np.float32, np.nan), "integer": (np.int64, 0), "text": ("U16", ""), "id": (identifier, None)}
    found = []
    for column in columns:
        dtype, missing = types[column.kind]
        given = values[column.name] if column.name in values else np.full(length, missing, dtype)
        found.append(TableColumn(np.asarray(given).astype(dtype), column.name, unit=_unit(column.unit)))
    return Table(found, meta=(meta or {}) | {"columns": {column.name: column.meaning for column in columns}}, copy=False)


@functools.lru_cache
def _unit(text):
    """Parsing a unit takes longer than copying a column of a thousand galaxies."""
    return units.Unit(text, parse_strict="silent") if text else None
