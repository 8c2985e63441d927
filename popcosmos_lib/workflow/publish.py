"""From executed notebooks to what is committed: the figures' manifest, the collected records, reading copies and test references."""

import json
import os
import shutil

import nbformat

from popcosmos_lib import figures as declared_figures
from popcosmos_lib.artefacts import provenance, store
from popcosmos_lib.workflow import notebook, run

__all__ = ["COPY_LIMIT", "WEIGHTS_LIMIT", "copies", "figures", "references", "weights"]

COPY_LIMIT = 400_000  # size of a reading copy [bytes]: what code hosts still render
WEIGHTS_LIMIT = 5_000_000  # size of shipped weights [bytes]


def figures(profile):
    """Check that the declared figures are the produced ones, then write ``manifest.json`` and ``records.json`` beside them.

    Raises
    ------
    RuntimeError
        If a notebook has no record or was last run with other parameters, a declared figure was not made, a file is not the one that was
        made, or a file belongs to no declaration.
    """
    folder, entries, records, problems = declared_figures.folder(profile), declared_figures.declared(), {}, []
    for name in notebook.names():
        try:
            records[name] = run.record(name, profile)
        except store.Missing as missing:
            problems.append(str(missing))
            continue
        wanted = _values(name, profile)
        differing = [key for key, value in wanted.items() if records[name]["parameters"].get(key) != value]
        if differing:
            problems.append(f"{name} was last run with another {', '.join(differing)}: `make {name} PROFILE={profile}`")
    manifest = {}
    for id, entry in entries.items():
        record = records.get(entry["notebook"], {"figures": {}})
        if id not in record["figures"]:
            problems.append(f"figure {id} is declared but {entry['notebook']} did not make it")
            continue
        for extension, digest in record["figures"][id].items():
            path = folder / f"{id}.{extension}"
            if not path.exists() or provenance.sha256(path) != digest:
                problems.append(f"{path.name} is not the file that {entry['notebook']} made: `make -B {entry['notebook']}`")
        manifest[id] = {"notebook": entry["notebook"], "sha256": record["figures"][id]}
        manifest[id] |= {key: record[key] for key in ("profile", "commit", "dirty", "inputs")}
    problems += [f"{path.name} belongs to no declared figure" for path in _orphans(folder, entries)]
    if problems:
        raise RuntimeError("figures and declarations disagree:\n  " + "\n  ".join(problems))
    for name, content in (("manifest", manifest), ("records", records)):
        store.write_text(folder / f"{name}.json", json.dumps(content, indent=1, sort_keys=True) + "\n")
    print(f"{len(manifest)} figures, declared = produced: {os.path.relpath(folder, store.home())}")


def copies():
    """Publish ``build/fast`` as the reading copies ``notebooks/*.ipynb``.

    Raises
    ------
    RuntimeError
        If one is stale, was run with other parameters, ends in an error, shows a machine path or is larger than ``COPY_LIMIT``.
    """
    _publish("fast", store.home() / "notebooks", images=True)


def references():
    """Publish ``build/smoke`` as the references of the tests, without pictures."""
    _publish("smoke", store.home() / "tests" / "notebooks" / "reference", images=False)


def weights(names):
    """Ship trained networks: copy artefacts of the ``full`` profile, with their sidecars, to ``popcosmos_lib/artefacts/weights``.

    Parameters
    ----------
    names : sequence of str
        Artefacts, for example ``["emulator", "spectra"]``.

    Raises
    ------
    RuntimeError
        If one was not made, was made from sources that differed from their commit, or is larger than ``WEIGHTS_LIMIT``.
    """
    folder = store.home() / "popcosmos_lib" / "artefacts" / "weights"
    for name in names:
        try:
            made = store.load(name, "full")
        except (store.Missing, store.Damaged) as problem:
            raise RuntimeError(f"not shipped: {problem}") from None
        side, size = made.path.with_suffix(".json"), made.path.stat().st_size
        if size > WEIGHTS_LIMIT:
            raise RuntimeError(f"not shipped: {made.path.name} has {size / 1e6:.1f} MB, more than {WEIGHTS_LIMIT / 1e6:g}")
        if json.loads(side.read_text())["made"]["dirty"]:
            raise RuntimeError(f"not shipped: {name} was made from sources that no commit holds: commit them and train again")
        folder.mkdir(parents=True, exist_ok=True)
        for path in (made.path, side):
            with store.replacing(folder / path.name) as temporary:
                shutil.copyfile(path, temporary)
    print(f"{', '.join(names)}: {os.path.relpath(folder, store.home())}")


def _publish(profile, folder, images):
    problems, texts = [], {}
    for name in notebook.names():
        path = store.home() / "build" / profile / f"{name}.ipynb"
        if not path.exists():
            problems.append(f"{name} has not been run: `make {name} PROFILE={profile}`")
            continue
        document = notebook.normalised(nbformat.read(path, 4), images=images)
        problems += notebook.problems(document, notebook.path(name), notebook.injected(profile, name))
        texts[name] = nbformat.writes(document) + "\n"
        if len(texts[name].encode()) > COPY_LIMIT:
            problems.append(f"{name}: the copy has {len(texts[name].encode()) / 1e3:.0f} kB, more than {COPY_LIMIT / 1e3:.0f}")
    if problems:
        raise RuntimeError("not published:\n  " + "\n  ".join(problems))
    for name, text in texts.items():
        path = folder / f"{name}.ipynb"
        if not path.exists() or path.read_text() != text:
            store.write_text(path, text)
    for path in folder.glob("*.ipynb"):
        if path.stem not in texts:
            path.unlink()  # of a notebook that no longer exists
    print(f"{len(texts)} notebooks: {os.path.relpath(folder, store.home())}")


def _values(name, profile):
    """Every parameter of a notebook as a profile sets it."""
    return {item.name: item.value for item in notebook.parameters(notebook.path(name))} | notebook.injected(profile, name)


def _orphans(folder, entries):
    return [path for path in sorted(folder.glob("*.p[dn][fg]")) if path.stem not in entries]
