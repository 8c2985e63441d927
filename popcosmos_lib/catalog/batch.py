"""Posteriors of a whole catalogue: in chunks, on all cores, resuming where an interrupted run stopped.

Each chunk of galaxies becomes one Parquet file in ``<out>.parts``, written under a temporary name and renamed, and is never computed twice.
Complete chunks are joined in the order of the catalogue. Random numbers depend on the seed and the identifier of each galaxy only, so
neither chunks nor workers change a result. ``python -m popcosmos_lib fit`` is the command.
"""

import contextlib
import functools
import io
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from astropy.table import vstack
from tqdm import tqdm

from popcosmos_lib import __version__
from popcosmos_lib.artefacts import store
from popcosmos_lib.catalog import catalogue, cluster, columns, readers, schema, summary
from popcosmos_lib.emulation import emulator
from popcosmos_lib.fitting import inference
from popcosmos_lib.fitting.bandmap import BandMap
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.synthesis import filters

__all__ = ["CHUNK", "Outcome", "Settings", "run"]

CHUNK = 256  # galaxies in a part: minutes of work
_LEAST = 32  # galaxies for which another process is worth its start of four seconds
_ROWS = 65_536  # in a row group of the joined table
_HOPELESS = 8  # galaxies in a chunk all of which fail for a reason that is not theirs
_NETWORKS = ("emulator*", "population", "proposal*")  # artefacts on which a posterior depends


@dataclass(frozen=True)
class Settings:
    """Settings that, with the photometry, determine a posterior; arguments of ``inference.fit``.

    Attributes
    ----------
    prior, engine, profile : str
    seed : int
    draws : int
        Number of weighted draws per galaxy to write; 0 writes none.
    """

    prior: str = "pop-cosmos"
    engine: str = "exact"
    profile: str = "published"
    seed: int = 0
    draws: int = 0

    def posterior(self, flux, flux_err, id, curves=None, fit=None):
        """The ``inference.Result`` of galaxies; ``curves`` as in ``columns.Mapping``; ``fit`` stands in for ``inference.fit``."""
        options = {"n_draws": self.draws} if self.draws else {}
        if curves:
            options["emulator"] = BandMap(curves, emulator.having(curves.values(), self.profile))
        options |= {"engine": self.engine, "profile": self.profile, "seed": self.seed, "id": id}
        return (fit or inference.fit)(flux, flux_err, self.prior, **options)

    def networks(self):
        """Digests of the trained networks, by name."""
        folder = store.SHIPPED if self.profile == "published" else store.home() / "artefacts" / self.profile
        sides = sorted(side for name in _NETWORKS for side in folder.glob(f"{name}.json"))
        return {side.stem: json.loads(side.read_text())["sha256"] for side in sides}


class Outcome(NamedTuple):
    """Result of a run.

    Attributes
    ----------
    rows : int
        Galaxies of the catalogue.
    flagged : dict of int to int
        How many of them have each bit of ``schema.FLAGS``.
    """

    rows: int
    flagged: dict

    @property
    def failed(self):
        """Galaxies that could not be fitted; they keep their rows, with NaN and flag 2048."""
        return self.flagged[schema.FAILED]


@dataclass(frozen=True)
class _Plan:
    """All that a worker needs to know; it travels by pickle with every chunk, so it does not grow with the catalogue."""

    mapping: columns.Mapping
    names: list
    id: str
    settings: Settings
    parts: Path
    fit: object

    def part(self, chunk, kind="posteriors"):
        return self.parts / f"{chunk.first:010d}.{kind}.parquet"


def run(path, out, *, mapping=None, settings=None, chunk=CHUNK, workers=1, scheduler=None, fit=None):
    """Fit every galaxy of a catalogue, or those that an interrupted run left.

    Parameters
    ----------
    path : path
        Catalogue, as for ``readers.load``.
    out : path
        Parquet file to write; ``schema.posteriors`` describes it. With ``settings.draws`` a second one, ``<out>_draws.parquet``, holds
        the draws of all galaxies that have a posterior. Parts of an unfinished run lie in ``<out>.parts``.
    mapping : path, optional
        YAML that explains the columns, see ``columns``.
    settings : Settings, optional
    chunk : int
        Largest number of galaxies in a part; small catalogues are cut so that every worker has one. A resumed run keeps its size.
    workers, scheduler : int, str
        As for ``cluster.run``.
    fit : callable, optional
        Replacement of ``inference.fit``, for tests.

    Returns
    -------
    Outcome

    Raises
    ------
    ValueError
        If the catalogue is not understood, the output cannot be written there, or it belongs to other settings.
    RuntimeError
        If every galaxy of a chunk fails.
    """
    settings, out = settings or Settings(), Path(out).resolve()
    if out.suffix != ".parquet" or not out.parent.is_dir():
        raise ValueError(f"cannot write {out}: give a path that ends in .parquet, in a folder that exists")
    if settings.prior not in inference.PRIORS:
        raise ValueError(f"prior {settings.prior!r} is not known: it is one of {', '.join(inference.PRIORS)}")
    if chunk < 1 or workers < 1 or settings.draws < 0:
        raise ValueError(f"chunk and workers are at least 1, draws at least 0; got {chunk}, {workers} and {settings.draws}")
    source = readers.load(Path(path).resolve())
    meant = columns.resolve(source, mapping)
    plan = _Plan(meant, meant.needed(source.units), columns.identifiers(source, meant), settings, out.with_suffix(".parts"), fit)
    key = _key(source, meant, settings)
    if out.exists():
        _same(key, _written(out), out.name, "give another --out, or remove it")
        print(f"{out.name} holds all {len(source)} galaxies already")
    else:
        for note in meant.notes:
            print(note)
        columns.sample(source, meant)  # what is wrong with all of it is said before the first fit
        chunks = _compute(plan, source, key, chunk, workers, scheduler)
        if settings.draws:
            catalogue.write(out.with_name(f"{out.stem}_draws.parquet"), _joined(plan, chunks, "draws", key))
        catalogue.write(out, _joined(plan, chunks, "posteriors", key))  # last, so that where it is nothing is missing
    shutil.rmtree(plan.parts, ignore_errors=True)
    return Outcome(len(source), summary.flagged(out))


def _key(source, mapping, settings):
    """What decides the result, as JSON gives it back."""
    about = {"catalogue": source.digest(), "rows": len(source), "columns": mapping.key(), "networks": settings.networks()}
    return json.loads(json.dumps(about | asdict(settings) | {"version": __version__}))


def _written(out):
    """The key in a finished output; None in a file of another kind."""
    try:
        return catalogue.head(out).get("key")
    except (OSError, pyarrow.ArrowException):
        return None


def _same(key, old, name, remedy):
    if old is None:
        raise ValueError(f"{name} is there and is no result of this command: {remedy}")
    changed = [field for field in key if key[field] != old.get(field)]
    if changed:
        plain = [f"{field} {old.get(field)} then, {key[field]} now" for field in changed if not isinstance(key[field], dict)]
        said = "; ".join(plain + [f"other {field}" for field in changed if isinstance(key[field], dict)])
        raise ValueError(f"{name} belongs to a run with other settings ({said}): {remedy}")


def _compute(plan, source, key, size, workers, scheduler):
    """Make the parts that are not there; all chunks, in order."""
    told = plan.parts / "key.json"
    if told.exists():
        begun = json.loads(told.read_text())
        _same(key, begun["key"], plan.parts.name, "go on with the old ones, give another --out, or remove the folder")
        size = begun["chunk"]
    else:
        if scheduler is None:  # so that each process has a part, but none that is not worth its start
            size = min(size, max(_LEAST, -(-len(source) // workers)))
        store.write_text(told, json.dumps({"key": key, "chunk": size}))
    chunks, ebv = source.chunks(size), columns.reddening(source, plan.mapping)
    tasks = [(chunk, ebv[chunk.file]) for chunk in chunks if not _whole(plan.part(chunk), len(chunk))]
    done = len(source) - sum(len(chunk) for chunk, _ in tasks)
    with tqdm(total=len(source), initial=done, unit="galaxy", desc="fit", disable=None) as progress:
        for rows, messages in cluster.run(functools.partial(_process, plan), tasks, workers, scheduler):
            for message in messages:
                progress.write(message, file=sys.stderr)
            progress.update(rows)
    return chunks


def _whole(part, rows):
    """Whether a part is there with all its rows."""
    try:
        return pyarrow.parquet.read_metadata(part).num_rows == rows
    except (OSError, pyarrow.ArrowException):
        return False


def _process(plan, task):
    """Fit a chunk and write its part; the number of its galaxies, and what to say about them."""
    chunk, ebv = task
    found, drawn, messages = _attempt(plan, readers.read(chunk, plan.names), chunk.first, ebv)
    if len(messages) == len(chunk) >= _HOPELESS:
        raise RuntimeError(f"every one of {len(chunk)} galaxies failed, which is not their fault; the first: {messages[0]}")
    for kind, table in (("draws", drawn), ("posteriors", found))[not plan.settings.draws :]:  # where the second is, the first is too
        with store.replacing(plan.part(chunk, kind)) as temporary:
            pyarrow.parquet.write_table(pyarrow.table({name: table[name].data for name in table.colnames}), temporary)
    return len(chunk), messages


def _attempt(plan, table, first, ebv):
    """Posteriors and draws of the rows of a table, or of each half of it where something in it cannot be fitted."""
    try:
        return *_fit(plan, table, first, ebv), []
    except (store.Missing, ImportError, MemoryError):
        raise  # no matter of single rows
    except Exception as error:  # whatever a row can make a fit raise costs that row only
        if len(table) == 1:
            id = table[plan.mapping.id][0] if plan.mapping.id else first
            values = {"id": [id], "flags": [schema.FAILED]}
            said = f"galaxy {id} failed: {type(error).__name__}: {' '.join(str(error).split())}"
            return schema.table(schema.posteriors(), values, 1, plan.id), schema.table(schema.draws(), {"id": []}, 0, plan.id), [said]
    half = len(table) // 2
    parts = [_attempt(plan, table[:half], first, ebv), _attempt(plan, table[half:], first + half, ebv)]
    found, drawn, messages = zip(*parts, strict=True)
    return vstack(found, metadata_conflicts="silent"), vstack(drawn, metadata_conflicts="silent"), sum(messages, [])


def _fit(plan, table, first, ebv):
    """Posteriors and draws of the rows of a table; rows without photometry, or that cannot be any galaxy's, are not shown to the fit."""
    seen = plan.mapping.catalogue(table, first, ebv)
    wild = _wild(seen.flux)
    fitted = ((seen.flag & columns.NOTHING) == 0) & ~wild
    known = {"bands": (0, seen.flux.isfinite().sum(1)), "flags": (schema.FAILED, seen.flag), "z_spec": (torch.nan, seen.z_spec)}
    values = {name: torch.where(wild, *pair).numpy() for name, pair in known.items()}  # a row that failed holds its id and its flag
    values["id"] = seen.id
    drawn = {"id": seen.id[:0]}
    if fitted.any():
        shown, rows = seen[fitted], fitted.numpy()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # one bar is enough
            result = plan.settings.posterior(shown.flux, shown.flux_err, shown.id, plan.mapping.curves, plan.fit)
        for column in schema.posteriors():
            if column.name not in values:
                given = np.asarray(result.summary[column.name])
                values[column.name] = np.full(len(table), "" if given.dtype.kind in "UO" else np.nan, given.dtype)
                values[column.name][rows] = given
        values["flags"][rows] |= np.asarray(result.summary["flags"])
        drawn = _drawn(result, shown.id)
    found = schema.table(schema.posteriors(), values, len(table), plan.id)
    return found, schema.table(schema.draws(), drawn, len(drawn["id"]), plan.id)


def _wild(flux):
    """Rows whose typical flux no galaxy has: ``inference.fit`` would refuse a batch of them as being in another unit, (n,)."""
    typical = torch.where(flux > 0, flux, torch.nan).nanmedian(1).values
    bright, faint = catalogue.PLAUSIBLE
    magnitude = filters.magnitude_from_flux(typical)
    return (magnitude <= bright) | (magnitude >= faint)


def _drawn(result, ids):
    """Weighted draws in long format, without galaxies that have none."""
    there = torch.isfinite(result.samples).all(-1).all(-1)
    samples, weights = result.samples[there], result.weights[there]
    theta = dict(zip(parameters.NAMES, samples.flatten(0, 1).T.numpy(), strict=True))
    return {"id": np.repeat(ids[there.numpy()], samples.shape[1]), "weight": weights.flatten().numpy()} | theta


def _joined(plan, chunks, kind, key):
    """Tables of many parts each, in order, holding one at a time."""
    waiting, described = [], getattr(schema, kind)()
    for chunk in chunks:
        waiting.append(pyarrow.parquet.read_table(plan.part(chunk, kind)))
        if sum(map(len, waiting)) >= _ROWS or chunk is chunks[-1]:
            whole, waiting = pyarrow.concat_tables(waiting), []
            values = {name: whole[name].to_numpy() for name in whole.column_names}
            yield schema.table(described, values, len(whole), plan.id, {"key": key})
