"""The dry run: a catalogue beside the model, band by band, so that a wrong unit or zero point shows before anything is fitted.

Used by ``python -m popcosmos_lib fit --dry-run``.
"""

from pathlib import Path

import numpy as np
import torch
from astropy.table import Table

from popcosmos_lib import population, survey
from popcosmos_lib.catalog import columns, schema
from popcosmos_lib.emulation import emulator
from popcosmos_lib.fitting.bandmap import BandMap
from popcosmos_lib.survey import likelihood
from popcosmos_lib.survey.forward_model import ForwardModel
from popcosmos_lib.synthesis import filters

__all__ = ["SUSPECT", "compare", "report"]

SUSPECT = 0.5  # mag by which a band may stand apart from the others
_DETECTED = 3.0  # flux over error
_SCATTER = 1.5  # mag: error of the offset of a single galaxy
_BRIGHTEST = 10  # galaxies of the model beyond which there is none to compare with
_SLIP = 2.5  # mag between the typical galaxies of catalogue and model beyond which the unit is questioned
_GALAXIES = 20_000  # of the model, and rows of the catalogue that are looked at


@torch.no_grad()
def compare(catalogue, profile="published", seed=0, curves=None):
    """Median magnitudes of a catalogue and of the model.

    The model is observed twice: as COSMOS2020 would, with r < 25; and, to judge offsets, as this catalogue would. For the latter every
    galaxy is replaced by a model galaxy of the same brightness in the reference band, with the errors and missing bands of the former, so
    that colours are compared; galaxies brighter than any of the model are left out. The reference band is r, or the nearest band of the
    catalogue.

    Parameters
    ----------
    catalogue : catalog.Catalogue
        Only clean rows brighter than 25 in the reference band are used.
    profile : str
        Whose population, emulator and errors, as for ``population.load``.
    seed : int
    curves : dict of str to str, optional
        Of another survey, as in ``columns.Mapping``: at equal brightness the model is then seen through these.

    Returns
    -------
    Table
        Row by row of the 26 bands: ``band``; ``detected``, galaxies above 3 sigma; ``catalogue`` and ``model``, median magnitude of those
        [AB mag]; ``offset``, catalogue minus model [mag]; ``colour``, the same at equal brightness in the reference band [mag];
        ``suspect``, whether that is more than ``SUSPECT``, and three times its own error, from the median of all bands.
        ``meta["reference"]`` is the reference band.

    Raises
    ------
    store.Missing
        If the profile has no networks yet.
    """
    generator = torch.Generator().manual_seed(seed)
    sky = survey.load(profile)
    forward = ForwardModel(emulator.load(profile=profile), sky)
    theta = population.load(profile).sample(_GALAXIES, generator)
    made = forward(theta, forward.draws(_GALAXIES, generator))
    own = made.flux_true
    if curves:
        own = likelihood.model_flux(BandMap(curves, emulator.having(curves.values(), profile)).magnitudes(theta))
    flux, error = catalogue.flux[catalogue.clean], catalogue.flux_err[catalogue.clean]
    reference = _reference((flux > _DETECTED * error).any(0), forward.reference)
    passed = survey.select(flux, population.SELECTION.replace("r", filters.SHORT[reference]))
    flux, error = flux[passed], error[passed]
    order = own[:, reference].argsort()
    known = (flux > _DETECTED * error)[:, reference] & (flux[:, reference] < own[order[-_BRIGHTEST], reference])
    likely = known.nonzero()[:, 0]
    near = torch.searchsorted(own[order, reference], flux[likely, reference])
    twin = own[order[near]]
    twin = twin * (flux[likely, reference] / twin[:, reference])[:, None]
    twin = sky.observe(twin, error[likely], draws=sky.noise(twin.shape, generator))
    seen, count = _median(flux, error)
    usual = _median(made.flux[made.selected], made.flux_err[made.selected])[0]
    colour = _median(flux[likely], error[likely])[0] - _median(twin, error[likely])[0]
    colour[reference] = 0.0 if len(likely) else np.nan
    apart = np.abs(colour - (np.nanmedian(colour) if np.isfinite(colour).any() else 0.0))
    found = Table({"band": filters.SHORT, "detected": count, "catalogue": seen, "model": usual, "offset": seen - usual, "colour": colour})
    found["suspect"] = np.nan_to_num(apart) > np.maximum(SUSPECT, 3 * _SCATTER / np.sqrt(np.maximum(count, 1)))
    found.meta["reference"] = filters.SHORT[reference]
    return found


def _reference(there, wanted):
    """The band nearest to the wanted one among those that are there; extinction, which falls with wavelength, is the measure."""
    extinction = survey.BANDS["extinction"]
    return int(torch.where(there, (extinction - extinction[wanted]).abs(), torch.inf).argmin())


def _median(flux, error):
    """Median magnitude of the detections of each band, NaN where there is none, and their number."""
    detected = flux > _DETECTED * error
    middle = torch.where(detected, flux, torch.nan).nanmedian(0).values if len(flux) else torch.full(flux.shape[1:], torch.nan)
    return filters.magnitude_from_flux(middle).numpy(), detected.sum(0).numpy()


def report(source, mapping, profile="published"):
    """Report how a catalogue was understood, how it compares with the model, and what would be written, as lines of text.

    Parameters
    ----------
    source : readers.Source
    mapping : mapping.Mapping
    profile : str
        As for ``compare``.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If the catalogue cannot be read or has the wrong unit.
    """
    found = columns.sample(source, mapping, _GALAXIES)
    unit = {value: name for name, value in columns.UNITS.items()}
    missing = [band for band in filters.SHORT if band not in mapping.bands]
    yield f"{source.path.name}: {len(source):,} rows" + f" in {len(source.files)} partitions" * source.path.is_dir()
    yield f"names of {mapping.names}; id {mapping.id or 'row number'}; spectroscopic redshift {mapping.z_spec or 'none'}"
    yield f"{len(mapping.bands)} of {len(filters.SHORT)} bands:"
    for band, pair in mapping.bands.items():
        inside = dict.fromkeys(unit.get(scale, f"{scale or 0:.6g} uJy") for scale in map(mapping.scale.get, pair))
        curve = f" through {Path(mapping.curves[band]).name}" if band in mapping.curves else ""
        yield f"  {band:6} {', '.join(pair)} [{', '.join(inside)}]{curve}"
    yield f"missing bands: {' '.join(missing) or 'none'}"
    if not mapping.official:
        yield f"Milky-Way extinction: {'taken as corrected' if mapping.ebv is None else f'corrected with E(B-V) = {mapping.ebv}'}"
        yield f"zero points: {' '.join(f'{band} {value:+.3f}' for band, value in mapping.zero_points.items()) or 'none'}"
    yield from mapping.notes
    yield f"of {len(found):,} rows that were looked at:"
    yield from (f"  {note}" for note in found.notes if not note.startswith("missing bands"))
    yield from _lines(compare(found, profile, curves=mapping.curves))
    yield "columns of the output:"
    for column in schema.posteriors():
        yield f"  {column.name:22} {column.unit or '-':16} {column.meaning}"


def _lines(table):
    """The comparison as text."""
    reference = table.meta["reference"]
    yield f"median magnitudes of detections above {_DETECTED:g} sigma, clean rows with {reference} < 25; the model is in COSMOS2020"
    yield f"  {'band':6} {'detected':>9} {'catalogue':>9} {'model':>9} {'offset':>9} {f'at equal {reference}':>12}"
    for row in table[table["detected"] > 0]:
        numbers = f"{row['catalogue']:9.2f} {row['model']:9.2f} {row['offset']:+9.2f} {row['colour']:+12.2f}".replace("+nan", "   -")
        mark = "  <-- apart from the other bands: unit or zero point?" if row["suspect"] else ""
        yield f"  {row['band']:6} {row['detected']:9,} {numbers}{mark}"
    slip = float(np.nanmedian(table["offset"])) if np.isfinite(table["offset"]).any() else 0.0
    if abs(slip) > _SLIP:
        yield (
            f"  all bands are {abs(slip):.1f} mag {'brighter' if slip < 0 else 'fainter'} than the model: right for a "
            f"{'bright' if slip < 0 else 'deep'} sample, wrong if the unit slipped (a factor 1000 is 7.5 mag)"
        )
    if not (table["detected"] > 0).any():
        yield "  nothing is detected in any band: are the columns of flux and error the right way round?"
