"""Photometry as every later stage wants it: the table of the 26 bands, asinh magnitudes, and catalogues of checked fluxes.

Fluxes are microjanskys (AB zero point 23.9); NaN marks a missing band. Rows are never dropped; what is wrong with one is flagged and said.
asinh magnitudes stay finite for a galaxy measured at negative flux. Introduced in notebook 03.

References
----------
Thorp et al. (2025), arXiv:2506.12122, sect. 2.1 (bands), after Lupton, Gunn & Szalay (1999).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
import torch
from astropy import units
from astropy.table import Table

from popcosmos_lib.synthesis import filters

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = [
    "BANDS", "FLAGS", "PLAUSIBLE", "Catalogue", "asinh_magnitude", "assemble", "flux_from_asinh", "from_table", "validate", "values",
]  # fmt: skip

FLAGS = {  # bit: what is wrong with at least one band of that galaxy
    1: "a band whose error is zero or negative",
    2: "a flux without an error",
    4: "an error without a flux",
    8: "an infinite value",
    16: "no usable band at all",
}
PLAUSIBLE = (8.0, 32.0)  # AB magnitudes between which the typical measurement lies
_NULLS = (-99.0, -999.0)  # what versions of the catalogue write where there is no value
_TEXT = ("short", "filter", "column", "group")
_POGSON = 2.5 / math.log(10.0)


def _read():
    lines = (resources.files("popcosmos_lib.survey") / "cosmos26.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    table = {name: [row[name] for row in rows] for name in rows[0]}
    return {k: v if k in _TEXT else torch.tensor([float(x) for x in v], dtype=torch.float64) for k, v in table.items()}


BANDS = _read()  # column of cosmos26.csv -> list of str, or Tensor of shape (26,) in float64; units in its header


def asinh_magnitude(flux: torch.Tensor, softening: torch.Tensor | None = None) -> torch.Tensor:
    """Magnitude on a scale that stays finite through zero flux.

    Parameters
    ----------
    flux : Tensor of shape (..., n_band)
        Flux [µJy]; any sign; NaN marks a missing band and stays NaN.
    softening : Tensor of shape (n_band,), optional
        Flux at which the scale turns from logarithmic to linear [µJy], > 0; by default that of the 26 bands.

    Returns
    -------
    Tensor of shape (..., n_band)
        AB magnitude; equals the logarithmic one to 0.003 mag above 20 softenings.

    Raises
    ------
    ValueError
        If a softening is not positive: the scale is then undefined.

    References
    ----------
    Thorp et al. (2025), arXiv:2506.12122, eq. 1.
    """
    softening = _softening(softening, flux)
    return 23.9 - _POGSON * (torch.asinh(flux / (2 * softening)) + softening.log())


def flux_from_asinh(magnitude: torch.Tensor, softening: torch.Tensor | None = None) -> torch.Tensor:
    """The inverse of `asinh_magnitude`: AB asinh magnitude to flux [µJy], same shapes."""
    softening = _softening(softening, magnitude)
    return 2 * softening * torch.sinh((23.9 - magnitude) / _POGSON - softening.log())


def _softening(softening, like):
    softening = (BANDS["softening"] if softening is None else torch.as_tensor(softening)).to(like)
    if not (softening > 0).all():
        raise ValueError(f"softening must be positive in every band; got minimum {softening.min():.3g}")
    return softening


@dataclass
class Catalogue:
    """Photometry ready for the model.

    Attributes
    ----------
    id : ndarray of shape (n,)
        Identifier in the source table.
    flux, flux_err : Tensor of shape (n, 26)
        Flux and its standard error [µJy], in the order of ``filters.COSMOS26``; NaN = missing.
    z_spec : Tensor of shape (n,)
        Spectroscopic (mock: true) redshift; NaN = none.
    flag : Tensor of shape (n,)
        Sum of the bits of ``FLAGS``; 0 = nothing to say.
    clean : Tensor of shape (n,), bool
        Passes FLAG_COMBINED = 0 and lp_type 0 or 2 (galaxy or X-ray source) where the table has them, and has a usable band.
    table : Table
        The columns read from the source, uncorrected.
    notes : list of str
        What was done and found, one sentence each.
    """

    id: np.ndarray
    flux: torch.Tensor
    flux_err: torch.Tensor
    z_spec: torch.Tensor
    flag: torch.Tensor
    clean: torch.Tensor
    table: Table
    notes: list = field(default_factory=list)

    def __len__(self):
        return len(self.flux)

    def __getitem__(self, rows):
        """A part of the catalogue, by slice, index array or boolean mask of length n."""
        i = np.atleast_1d(np.arange(len(self))[rows.numpy() if torch.is_tensor(rows) else rows])
        parts = [getattr(self, name)[torch.from_numpy(i)] for name in ("flux", "flux_err", "z_spec", "flag", "clean")]
        return Catalogue(self.id[i], *parts, self.table[i], list(self.notes))


def validate(flux: ArrayLike, flux_err: ArrayLike) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
    """Check photometry and mark as missing what cannot be used.

    Parameters
    ----------
    flux, flux_err : array_like of shape (n, 26)
        Flux and error [µJy]; NaN = missing; astropy quantities must carry µJy.

    Returns
    -------
    flux, flux_err : Tensor of shape (n, 26), float32
        Both NaN wherever a band cannot be used.
    flag : Tensor of shape (n,)
        Sum of the bits of ``FLAGS`` per galaxy.
    messages : list of str
        One sentence per kind of trouble, with the number of galaxies and the first row.

    Raises
    ------
    ValueError
        If the shapes are wrong, a unit is not µJy, or the typical flux cannot be in µJy.
    """
    for name, value in (("flux", flux), ("flux_err", flux_err)):
        if getattr(value, "unit", None) is not None:
            _require_microjansky(value.unit, name)
    flux, flux_err = (torch.as_tensor(np.ma.filled(np.ma.asarray(x, float), np.nan)) for x in (flux, flux_err))
    if flux.ndim != 2 or flux.shape[1] != len(filters.COSMOS26) or flux.shape != flux_err.shape:
        raise ValueError(
            f"flux and flux_err must both have shape (galaxies, {len(filters.COSMOS26)}), one column per band of filters.COSMOS26; "
            f"got {tuple(flux.shape)} and {tuple(flux_err.shape)}"
        )
    usable = flux.isfinite() & flux_err.isfinite() & (flux_err > 0)
    trouble = {
        1: flux.isfinite() & (flux_err <= 0),
        2: flux.isfinite() & flux_err.isnan(),
        4: flux.isnan() & flux_err.isfinite(),
        8: flux.isinf() | flux_err.isinf(),
        16: ~usable.any(1, keepdim=True),
    }
    flag = sum(bit * bad.any(1).long() for bit, bad in trouble.items())
    outcome = {16: "kept, but it cannot be fitted"}
    messages = [
        f"{int(bad.any(1).sum())} of {len(flux)} galaxies have {FLAGS[bit]} (first: row {int(bad.any(1).nonzero()[0])}): "
        f"{outcome.get(bit, 'that band is treated as missing')}"
        for bit, bad in trouble.items()
        if bad.any()
    ]
    _plausible(flux[usable])
    hole = torch.tensor(float("nan"))
    return torch.where(usable, flux, hole).float(), torch.where(usable, flux_err, hole).float(), flag, messages


def _plausible(flux):
    """A median outside PLAUSIBLE is another unit: maggies, Jy, mJy or cgs would all land far beyond it."""
    typical = flux[flux > 0].median() if (flux > 0).any() else None
    if typical is not None and not PLAUSIBLE[0] < 23.9 - 2.5 * torch.log10(typical) < PLAUSIBLE[1]:
        raise ValueError(
            f"the typical flux is {typical:.2g}, which in µJy would be magnitude {23.9 - 2.5 * torch.log10(typical):.1f}: "
            "convert to µJy first (maggies x 3.631e9, Jy x 1e6, mJy x 1e3, erg/s/cm2/Hz x 1e29)"
        )


def _require_microjansky(unit, column):
    if unit == units.uJy:
        return
    try:
        remedy = f"multiply fluxes and errors by {unit.to(units.uJy):.6g}"
    except units.UnitConversionError:
        remedy = "give flux densities, not magnitudes or rates"
    raise ValueError(f"column {column} is in {unit}, but fluxes are read in µJy: {remedy} and set the unit to uJy")


def from_table(table: Table) -> Catalogue:
    """A catalogue from the columns of the built-in mock.

    Parameters
    ----------
    table : Table
        With ``flux_<short>`` and ``flux_err_<short>`` [µJy] for any of ``filters.SHORT``; ``id`` and ``z`` (or ``z_spec``) where known.

    Returns
    -------
    Catalogue
        No extinction or zero-point correction is applied.
    """
    pairs = {i: (f"flux_{band}", f"flux_err_{band}") for i, band in enumerate(filters.SHORT)}
    return assemble(table, pairs, "id", ("z_spec", "z"), [])


def values(table: Table, name: str, flux: bool = False) -> np.ndarray:
    """A column as float64 with NaN for masked and null values (a flux may be below -99, so there only the exact nulls count)."""
    try:
        found = np.ma.filled(np.ma.asarray(table[name]).astype(float), np.nan)
    except ValueError as error:
        raise ValueError(f"column {name} holds text where numbers belong ({error}): leave missing values empty") from None
    null = np.isin(found, _NULLS) if flux or "flux" in name.lower() else found <= max(_NULLS)
    return np.where(null, np.nan, found)


def assemble(
    table: Table,
    pairs: dict[int, tuple[str, str]],
    identifier: str,
    redshifts: Sequence[str],
    notes: list[str],
    correct: Callable[..., tuple] | None = None,
) -> Catalogue:
    if not pairs or not any(pair[0] in table.colnames for pair in pairs.values()):
        raise ValueError(
            "no flux column was recognised: name them as COSMOS2020 does (HSC_r_FLUX, HSC_r_FLUXERR, ...) or as the mock does "
            "(flux_r, flux_err_r, ...), in µJy"
        )
    flux = np.full((len(table), len(filters.SHORT)), np.nan)
    flux_err = flux.copy()
    for i, (f, e) in pairs.items():
        if f in table.colnames and e in table.colnames:
            for name in (f, e):
                if table[name].unit is not None:
                    _require_microjansky(table[name].unit, name)
            flux[:, i], flux_err[:, i] = values(table, f), values(table, e)
    absent = [band for i, band in enumerate(filters.SHORT) if not np.isfinite(flux[:, i]).any()]
    if absent:
        notes.append(f"missing bands: {' '.join(absent)}")
    if correct:
        flux, flux_err = correct(flux, flux_err)
    flux, flux_err, flag, messages = validate(flux, flux_err)
    name = next((c for c in redshifts if c in table.colnames), None)
    z = values(table, name) if name else np.full(len(table), np.nan)
    z = torch.from_numpy(np.where(z >= 0, z, np.nan)).float()
    clean = (flag & 16) == 0
    for cut, allowed in (("FLAG_COMBINED", (0,)), ("lp_type", (0, 2))):
        if cut in table.colnames:
            passed = torch.from_numpy(np.isin(values(table, cut), allowed))
            notes.append(f"{cut}: {int((~passed).sum())} rows outside the cut (kept; see clean)")
            clean &= passed
    ids = np.asarray(table[identifier]) if identifier in table.colnames else np.arange(len(table))
    return Catalogue(ids, flux, flux_err, z, flag, clean, table, notes + messages)
