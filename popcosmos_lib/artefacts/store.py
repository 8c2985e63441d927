"""Artefacts on disk: computed once, verified at each reading, recomputed when anything they depend on has changed.

An artefact is one file (safetensors, npz or parquet) and a JSON sidecar that holds its key: the version of the stage, its parameters,
its seed and the digests of its inputs. Both are written to a temporary name and renamed, so a killed run loses at most the stage in
progress. Every reason to recompute is printed. Introduced in notebook 00.
"""

import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table
from safetensors.torch import load_file, save_file

from popcosmos_lib.artefacts import provenance

__all__ = ["SHIPPED", "Artefact", "Damaged", "Missing", "home", "load", "load_or_compute", "replacing", "write_text"]

_EXTENSION = {"safetensors": ".safetensors", "npz": ".npz", "parquet": ".parquet"}
SHIPPED = Path(__file__).resolve().parent / "weights"  # networks that come with the package
_ABSENT = object()


class Missing(FileNotFoundError):
    """An artefact that nothing has made yet; the message names the command that makes it."""


class Damaged(ValueError):
    """An artefact whose bytes are not the ones that were recorded."""


@dataclass(frozen=True)
class Artefact:
    """What ``load`` and ``load_or_compute`` return.

    Attributes
    ----------
    name : str
    data : dict of str to Tensor, dict of str to ndarray, or Table
        According to its kind: safetensors, npz, parquet. Tensors are on the CPU.
    meta : dict
        What the stage said about its result (histories, scores); plain JSON values.
    sha256 : str
        Digest of the file.
    path : Path
        The file.
    seconds : float
        What it cost to compute [s].
    """

    name: str
    data: object
    meta: dict
    sha256: str
    path: Path
    seconds: float


def home():
    """Repository root: the folder above this package, or ``POPCOSMOS_HOME`` where that is set."""
    return Path(os.environ.get("POPCOSMOS_HOME") or Path(__file__).resolve().parent.parent.parent)


def load_or_compute(name, compute, *, profile, kind="safetensors", version=1, parameters=None, seed=None, inputs=()):
    """Read an artefact, or compute and keep it.

    Parameters
    ----------
    name : str
        Its name; one file per name and profile.
    compute : callable
        Without arguments; returns the data, or ``(data, meta)``. Make its random generators inside, so that a cached run and a fresh one
        leave the notebook in the same state.
    profile : str
        Folder under ``artefacts/``.
    kind : {"safetensors", "npz", "parquet"}
        For a dict of Tensors, a dict of ndarrays, or an astropy Table.
    version : int
        Raise it when the computation changes meaning.
    parameters : dict, optional
        Everything else that decides the result; JSON values.
    seed : int, optional
    inputs : iterable of Artefact, or dict of str to str
        What the computation reads; digests by name.

    Returns
    -------
    Artefact

    Raises
    ------
    ValueError
        If the kind is unknown or the name is not a plain word.
    TypeError
        If a parameter or the meta is not a JSON value, or the data do not fit the kind.
    """
    if kind not in _EXTENSION:
        raise ValueError(f"kind must be one of {', '.join(_EXTENSION)}; got {kind!r}")
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"an artefact's name is a word of letters, digits and underscores; got {name!r}")
    digests = dict(inputs) if isinstance(inputs, Mapping) else {item.name: item.sha256 for item in inputs}
    key = _plain({"version": version, "parameters": parameters or {}, "seed": seed, "inputs": digests}, f"parameters of {name!r}")
    path = home() / "artefacts" / profile / (name + _EXTENSION[kind])
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        if path.exists():
            try:
                artefact, side = _read(path)
                reasons = list(_differences(side["key"], key))
            except Damaged as error:
                reasons = [str(error)]
            if not reasons:
                return artefact
            for reason in reasons:
                print(f"store: {name}: {reason}; recomputing", file=sys.stderr)
        began = time.perf_counter()
        result = compute()
        data, meta = result if isinstance(result, tuple) else (result, {})
        return _write(path, kind, data, _plain(meta, f"meta of {name!r}"), key, time.perf_counter() - began)


def load(name, profile="fast"):
    """Read an artefact that a notebook made.

    Parameters
    ----------
    name : str
    profile : str
        Whose artefact: ``"published"``, a network shipped with the package (``SHIPPED``), or that of a profile; ``"fast"`` is what
        ``make figures`` makes.

    Returns
    -------
    Artefact

    Raises
    ------
    Missing
        If nothing has made it yet; the message says which command does.
    Damaged
        If the file is truncated or altered.
    """
    if profile == "published":
        path = SHIPPED / f"{name}.safetensors"
        if not path.exists():
            raise Missing(f"no published {name!r}: read profile 'fast' instead, after {_command(name, 'fast')}")
        return _read(path)[0]
    found = [path for suffix in _EXTENSION.values() if (path := home() / "artefacts" / profile / (name + suffix)).exists()]
    if not found:
        raise Missing(f"no {name!r} for profile {profile!r} yet: run {_command(name, profile)}")
    try:
        return _read(found[0])[0]
    except Damaged as error:
        raise Damaged(f"{error}: run {_command(name, profile)} to make it again") from None


def write_text(path, text):
    """Write a small text file so that readers see the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text)


def _command(name, profile):
    """The command that makes an artefact, found in the notebooks themselves so that it cannot go stale."""
    pattern = re.compile(rf"""\.artefact\(\s*["']{re.escape(name)}["']""")
    makers = [path for path in sorted((home() / "notebooks").glob("[0-9][0-9]_*.py")) if pattern.search(path.read_text())]
    if not makers:
        return "the notebook that makes it (no notebook in notebooks/ does)"
    option = "" if profile == "fast" else f" --profile {profile}"
    return f"`python -m popcosmos_lib run notebooks/{makers[0].name}{option}` (or `make {makers[0].stem}`{_make_note(profile)})"


def _make_note(profile):
    return "" if profile == "fast" else f" with PROFILE={profile}"


def _plain(value, what):
    """A value as JSON would give it back, so that fresh and stored ones compare equal."""

    def scalar(item):
        if isinstance(item, np.generic) or (isinstance(item, torch.Tensor) and item.ndim == 0):
            return item.item()
        if isinstance(item, np.ndarray | torch.Tensor):
            return item.tolist()
        raise TypeError(f"{what} must hold numbers, strings, lists and dicts only; got a {type(item).__name__}")

    return json.loads(json.dumps(value, default=scalar))


def _differences(old, new, prefix=""):
    """One sentence for each field in which two keys differ."""
    for field in sorted(old.keys() | new.keys()):
        was, now = old.get(field, _ABSENT), new.get(field, _ABSENT)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _differences(was, now, f"{prefix}{field}.")
        elif was != now:
            yield f"{prefix}{field} was {_short(was)}, is {_short(now)}"


def _short(value):
    text = "absent" if value is _ABSENT else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _read(path):
    """Artefact and sidecar of a file; Damaged where the bytes are not the recorded ones."""
    shown = path.relative_to(home()) if path.is_relative_to(home()) else path.name
    try:
        side = json.loads(path.with_suffix(".json").read_text())
        recorded = side["sha256"]
    except (OSError, ValueError, KeyError):
        raise Damaged(f"{shown} has no readable sidecar") from None
    digest = provenance.sha256(path)
    if digest != recorded:
        raise Damaged(f"{shown} is truncated or altered (sha256 {digest[:12]}, recorded {recorded[:12]}, {path.stat().st_size} bytes)")
    return Artefact(path.stem, _READERS[path.suffix](path), side["meta"], digest, path, side["made"]["seconds"]), side


def _read_npz(path):
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


_READERS = {".safetensors": load_file, ".npz": _read_npz, ".parquet": lambda path: Table.read(path, format="parquet")}


def _write(path, kind, data, meta, key, seconds):
    wanted = Table if kind == "parquet" else dict
    if not isinstance(data, wanted):
        raise TypeError(f"a {kind} artefact is a {wanted.__name__}; {path.stem!r} computed a {type(data).__name__}")
    with replacing(path) as temporary:
        if kind == "safetensors":
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in data.items()}, temporary)
        elif kind == "npz":
            with open(temporary, "wb") as file:  # an open file, because numpy would append .npz to the name
                np.savez(file, **data)
        else:
            data.write(temporary, format="parquet", overwrite=True)
        digest = provenance.sha256(temporary)
    made = provenance.git(home()) | {"versions": provenance.versions(), "device": provenance.device(), "seconds": round(seconds, 2)}
    side = {"name": path.stem, "kind": kind, "sha256": digest, "bytes": path.stat().st_size, "key": key, "meta": meta, "made": made}
    write_text(path.with_suffix(".json"), json.dumps(side, indent=1) + "\n")
    return _read(path)[0]  # from the file, so that a fresh run and a cached one hold the same bits


@contextmanager
def replacing(path):
    """A temporary name beside ``path`` that becomes ``path`` when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(path):
    """One process at a time per artefact; the lock vanishes with its process, and the next one sweeps what a killed one left."""
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in path.parent.glob(f".{path.stem}.*.tmp"):
            left.unlink()
        yield
