"""Which column of a table holds which quantity, in which unit, and the photometry that follows from it. ``columns`` finds it out."""

import difflib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from astropy import units
from astropy.table import Table

from popcosmos_lib import survey
from popcosmos_lib.artefacts import provenance
from popcosmos_lib.catalog import catalogue
from popcosmos_lib.synthesis import filters

__all__ = ["AB", "NOTHING", "UNITS", "Mapping", "factor", "near"]

NOTHING = 16  # bit of catalog.FLAGS: no usable band
AB = "AB mag"
UNITS = {"uJy": 1.0, "mJy": 1e3, "Jy": 1e6, "maggies": 3.631e9, "nanomaggies": 3.631, "cgs": 1e29, AB: None}  # µJy in one
_SYNONYMS = {
    "µJy": "uJy", "μJy": "uJy", "microJy": "uJy", "maggy": "maggies", "mgy": "maggies", "nanomaggy": "nanomaggies", "nmgy": "nanomaggies",
    "nMgy": "nanomaggies", "mag(AB)": AB, "ABmag": AB, "AB": AB,
}  # fmt: skip
_NO_MAGNITUDE = 50.0  # 99 and -99 are written where nothing was measured


@dataclass(frozen=True)
class Mapping:
    """Assignment of columns to quantities.

    Attributes
    ----------
    names : str
        Whose names they are: "COSMOS2020", "mock", "KiDS", or the name of a YAML file.
    bands : dict of str to (str, str)
        Short name of a band -> columns of flux and error.
    curves : dict of str to str
        Short name of a band -> the curve of another survey that is in its place.
    scale : dict of str to float or None
        Column -> µJy in one of its unit; None for AB magnitudes.
    id, z_spec : str or None
        Columns; row numbers where there is no ``id``.
    ebv : str, float or None
        Column or value of E(B-V) [mag].
    zero_points : dict of str to float, or str
        Band -> offset added to its magnitudes [mag]; of official names whose offsets, as for ``catalog.interpret``.
    notes : tuple of str
        What should be known about it, one sentence each.
    """

    names: str
    bands: dict
    scale: dict
    id: str | None = None
    z_spec: str | None = None
    ebv: str | float | None = None
    zero_points: dict | str | None = field(default_factory=dict)
    curves: dict = field(default_factory=dict)
    notes: tuple = ()

    @property
    def official(self):
        """Whether ``catalog`` knows these columns and their corrections."""
        return self.names == "COSMOS2020"

    def needed(self, names):
        """The columns to be read, among all of the file's."""
        own = {self.id, self.z_spec, self.ebv, *(column for pair in self.bands.values() for column in pair)}
        return [name for name in names if name in own or (self.official and name in catalogue.known(names))]

    def key(self):
        """What decides the result, as JSON values; a file of a curve is known by its content."""
        curves = {band: provenance.sha256(curve) if Path(curve).is_file() else curve for band, curve in self.curves.items()}
        return {name: value for name, value in asdict(self).items() if name != "notes"} | {"curves": curves}

    def catalogue(self, table, first=0, median_ebv=np.nan):
        """Photometry ready for the model.

        Parameters
        ----------
        table : Table
            The columns ``needed``, of any rows.
        first : int
            Number of the first of them.
        median_ebv : float
            E(B-V) of rows that have none [mag]; the median of the others where that is NaN.

        Returns
        -------
        catalog.Catalogue
            [µJy], corrected for extinction and zero points.

        Raises
        ------
        ValueError
            If a column holds text, or fluxes cannot be in the unit that was told.
        """
        flux = {band: _microjansky(table, *pair, self.scale) for band, pair in self.bands.items()}
        ebv = np.zeros(len(table)) if self.ebv is None else self.ebv
        if isinstance(self.ebv, str):
            ebv = catalogue.values(table, self.ebv)
            others = np.nanmedian(ebv) if np.isnan(median_ebv) and np.isfinite(ebv).any() else median_ebv
            ebv = np.where(np.isfinite(ebv), ebv, np.nan_to_num(others))
        if self.official:
            ready = table.copy(copy_data=False)
            for band, pair in self.bands.items():
                for name, values in zip(pair, flux[band], strict=True):
                    ready[name] = values
            if isinstance(self.ebv, str):
                ready[self.ebv] = ebv
            found = catalogue.interpret(ready, self.zero_points, "official names")
        else:
            ready = Table()
            for band, (value, error) in flux.items():
                i = filters.SHORT.index(band)
                lift = 10 ** (0.4 * (ebv * float(survey.BANDS["extinction"][i]) - self.zero_points.get(band, 0.0)))
                ready[f"flux_{band}"], ready[f"flux_err_{band}"] = value * lift, error * lift
            if self.z_spec:
                ready["z_spec"] = catalogue.values(table, self.z_spec)
            found = catalogue.from_table(ready)
        found.id = np.asarray(table[self.id]) if self.id else np.arange(first, first + len(table))
        return found


def _microjansky(table, value, error, scale):
    """A band's flux and error [µJy], from fluxes or AB magnitudes; NaN = missing."""
    x, e = catalogue.values(table, value, flux=True), catalogue.values(table, error, flux=True)
    if scale[value] is None:
        there = (np.abs(x) < _NO_MAGNITUDE) & (np.abs(e) < _NO_MAGNITUDE)
        flux = 10 ** (0.4 * (23.9 - np.where(there, x, np.nan)))
        return flux, flux * e * 0.4 * np.log(10)
    return x * scale[value], e * scale[error]


def factor(unit, column):
    """µJy in one unit of flux density; None for AB magnitudes.

    Parameters
    ----------
    unit : str
        A name of ``UNITS``, or a unit as astropy reads it.
    column : str
        For the message.

    Raises
    ------
    ValueError
        If it is no flux density; the message says what to write.
    """
    unit = _SYNONYMS.get(unit.strip(), unit.strip())
    if unit in UNITS:
        return UNITS[unit]
    remedy = f"say which it is in the YAML, unit: {', '.join(UNITS)}"
    if unit.lower() == "mag":
        raise ValueError(f"column {column} is in mag: if that is AB, write unit: {AB} in the YAML; convert Vega magnitudes first")
    try:
        return float(units.Unit(unit).to(units.uJy))
    except (ValueError, units.UnitConversionError):
        raise ValueError(f"column {column} is in {unit!r}, which is no flux density{near(unit, UNITS)}: {remedy}") from None


def near(word, words):
    near = difflib.get_close_matches(str(word), list(words), 1, 0.5)
    near = near or [known for known in words if known.lower() == str(word).lower()]
    return f" (did you mean {near[0]}?)" if near else ""
