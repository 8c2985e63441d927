"""External data: the manifest, the state of each item, and downloads.

``data_manifest.yaml`` declares every item; ``python -m popcosmos_lib data`` lists them and ``... data ID`` downloads one into
``data/`` with verification. The default run needs none of them.
"""

import importlib.metadata
import json
import os
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pooch
import yaml
from requests.exceptions import RequestException

from popcosmos_lib.artefacts import provenance, store

__all__ = ["File", "Item", "Unreachable", "fetch", "folder", "main", "manifest", "shared", "size", "state"]

_RETRIES = 2  # after a failed transfer or a wrong digest; pooch waits a second longer each time


class Unreachable(RuntimeError):
    """A file that could not be downloaded; the message says where it is and where it belongs."""


@dataclass(frozen=True)
class File:
    """One file of an item; ``size`` [bytes] and ``sha256`` are None where no source states them."""

    file: str
    url: str | None = None
    size: int | None = None
    sha256: str | None = None
    about: str | None = None


@dataclass(frozen=True)
class Item:
    """One entry of the manifest.

    Attributes
    ----------
    id, what, page, licence, citation, needed_by : str
    files : tuple of File
        Empty where no source names them: they are then fetched by hand from ``page``.
    package : str or None
        The installed package whose resource this is.
    unpack : str or None
        Folder under ``folder()`` that the archive becomes.
    """

    id: str
    what: str
    page: str
    licence: str
    citation: str
    needed_by: str
    files: tuple
    package: str | None = None
    unpack: str | None = None


def manifest():
    """The declared items by id, in order.

    Raises
    ------
    ValueError
        If an entry has an unknown or a missing field.
    """
    items = {}
    for name, entry in yaml.safe_load((store.home() / "data_manifest.yaml").read_text()).items():
        try:
            items[name] = Item(name, **{**entry, "files": tuple(File(**file) for file in entry["files"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"data_manifest.yaml: {name}: {error}") from None
    return items


def folder():
    """Where downloads lie: ``data/`` under the repository root or ``POPCOSMOS_HOME``."""
    return store.home() / "data"


def shared(relative):
    """A file given by its place under ``POPCOSMOS_DATA`` (or, failing that, under ``folder()``).

    Parameters
    ----------
    relative : str
        For example ``"data/cosmos2020/cosmos2020_classic_26band_allz.fits"``.

    Returns
    -------
    Path

    Raises
    ------
    FileNotFoundError
        If it is in neither.
    """
    roots = [Path(os.environ["POPCOSMOS_DATA"])] if "POPCOSMOS_DATA" in os.environ else []
    for root in (*roots, folder()):
        if (root / relative).exists():
            return root / relative
    where = f"not under {roots[0]}" if roots else "POPCOSMOS_DATA is not set"
    raise FileNotFoundError(f"{relative} was not found ({where}): set POPCOSMOS_DATA to its folder, or put it under {folder()}")


def state(item):
    """One of here, installed, absent, incomplete, altered, by hand; sizes are compared, digests only by ``fetch``."""
    if item.package:
        return _combined([_package_state(item, file) for file in item.files])
    if not item.files:
        return "by hand"
    if item.unpack and (folder() / item.unpack).is_dir():
        return "here"
    return _combined([_size_state(folder() / file.file, _known(file)["size"]) for file in item.files])


def fetch(id):
    """Download an item, or verify it where it is already here.

    Parameters
    ----------
    id : str
        Key of the manifest.

    Returns
    -------
    list of Path
        Its files; for an archive the unpacked folder.

    Raises
    ------
    ValueError
        If the id is unknown, or a file is not the recorded one.
    Unreachable
        If a file cannot be downloaded.
    """
    items = manifest()
    if id not in items:
        raise ValueError(f"no data item {id!r}: data_manifest.yaml has {', '.join(items)}")
    item = items[id]
    if item.package:
        return [_verified(item, file) for file in item.files]
    if not item.files:
        raise Unreachable(f"the files of {id} are listed on {item.page}: fetch them by hand into {folder()}")
    paths = [_fetched(item, file) for file in item.files]
    return [_unpacked(paths[0], folder() / item.unpack)] if item.unpack else paths


def size(item):
    """Size of an item as its sources state it, in words."""
    stated = sum(file.size or 0 for file in item.files)
    words = " + ".join(file.about for file in item.files if file.about)
    return _readable(stated) if stated else words or "size unknown"


def main(id=None):
    """The command: list the items, or fetch one and print where it is."""
    if id:
        print("\n".join(str(path) for path in fetch(id)))
        return
    for item in manifest().values():
        known = sum(_known(file)["size"] or 0 for file in item.files)
        print(f"{item.id:27} {state(item):11} {_readable(known) if known else size(item):>13}  {item.what}")


def _readable(size):
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _combined(states):
    return states[0] if len(set(states)) == 1 else "altered" if "altered" in states else "incomplete"


def _size_state(path, size):
    if not path.exists():
        return "absent"
    return "here" if size in (None, path.stat().st_size) else "altered"


def _package_state(item, file):
    try:
        found = _size_state(Path(importlib.metadata.distribution(item.package).locate_file(file.file)), file.size)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
    return {"here": "installed"}.get(found, found)


def _verified(item, file):
    """A package's resource, with the digest that its wheel recorded."""
    try:
        path = Path(importlib.metadata.distribution(item.package).locate_file(file.file))
    except importlib.metadata.PackageNotFoundError:
        raise Unreachable(f"the package {item.package} is not installed: run `make setup`") from None
    if not path.exists() or provenance.sha256(path) != file.sha256:
        raise ValueError(f"{path.name} of the package {item.package} is missing or altered: reinstall it (see {item.page})")
    return path


def _record():
    path = folder() / "checksums.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _known(file):
    """Size and digest from the manifest, else those seen at the first download."""
    seen = _record().get(file.file, {})
    return {"size": file.size or seen.get("size"), "sha256": file.sha256 or seen.get("sha256")}


def _fetched(item, file):
    known, path = _known(file), folder() / file.file
    by_hand = f"fetch it by hand from {file.url} (or {item.page}) into {folder()} and run this again"
    if not path.exists() or known["sha256"]:
        only = {"registry": {file.file: known["sha256"]}, "urls": {file.file: file.url}}
        keeper = pooch.create(folder(), base_url="", retry_if_failed=_RETRIES, **only)
        try:
            keeper.fetch(file.file, downloader=pooch.HTTPDownloader(progressbar=sys.stderr.isatty()))
        except RequestException as error:
            raise Unreachable(f"{file.file} could not be downloaded ({type(error).__name__}): {by_hand}") from None
        except ValueError:
            wanted = known["sha256"][:12]
            raise ValueError(f"what the server sent as {file.file} is not the recorded file (sha256 {wanted}...): {by_hand}") from None
    if known["size"] not in (None, path.stat().st_size):
        found = path.stat().st_size
        path.unlink()
        raise ValueError(f"{file.file} had {found} bytes instead of {known['size']} and was removed: run this again, or {by_hand}")
    if not known["sha256"]:
        entry = {"sha256": provenance.sha256(path), "size": path.stat().st_size, "first_seen": date.today().isoformat()}
        store.write_text(folder() / "checksums.json", json.dumps(_record() | {file.file: entry}, indent=1) + "\n")
    return path


def _unpacked(archive, target):
    """The archive's single top folder as ``target``; made under a temporary name, so a killed run leaves no half of it."""
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
            top = [path for path in Path(temporary).iterdir() if path.is_dir()]
            if len(top) != 1:
                raise ValueError(f"{archive.name} has {len(top)} top folders where one was expected: unpack it by hand as {target}")
            top[0].rename(target)
    return target
