"""Tables of README.md and REPRODUCING.md, generated between ``<!-- generated:NAME -->`` and ``<!-- /generated -->``.

Each comes from committed files only (declared figures, collected records, the data manifest, the notebooks and their profiles, the results
of ``make bench``), so that a test can say whether the committed text is the generated one.
"""

import json
import re
from functools import partial

from popcosmos_lib import figures
from popcosmos_lib.artefacts import data, store
from popcosmos_lib.workflow import notebook, tables

__all__ = ["PAGES", "TABLES", "update", "updated"]

PAGES = ["README.md", "REPRODUCING.md"]
_BLOCK = re.compile(r"(<!-- generated:(\w+) -->\n).*?(<!-- /generated -->)", re.S)


def update():
    """Rewrite the marked blocks of every page that changed."""
    for page in PAGES:
        path = store.home() / page
        text = path.read_text()
        fresh = updated(text)
        if fresh != text:
            store.write_text(path, fresh)
            print(f"tables of {page} regenerated")


def updated(text):
    """A page with its marked blocks generated anew.

    Raises
    ------
    ValueError
        If a marker names no table.
    """

    def block(match):
        if match[2] not in TABLES:
            raise ValueError(f"no generated table {match[2]!r}: there are {', '.join(TABLES)}")
        return f"{match[1]}\n{TABLES[match[2]]()}\n\n{match[3]}"

    return _BLOCK.sub(block, text)


def _figures():
    rows = [
        (f"[{id}](figures/{id}.png)", f"[{entry['notebook']}](notebooks/{entry['notebook']}.ipynb)", _paper(entry), entry["status"])
        for id, entry in sorted(figures.declared().items(), key=lambda item: item[1]["notebook"])
    ]
    return tables.markdown(["figure", "notebook", "paper figure", "status"], rows)


def _paper(entry):
    number = str(entry.get("number") or "")
    return f"{entry['paper']} fig{'' if number.isalnum() else 's'}. {number}" if number else entry["paper"]


def _runtimes():
    path = store.home() / "figures" / "records.json"
    if not path.exists():
        return "Nothing measured yet: `make figures` fills this table."
    records = json.loads(path.read_text())
    seconds = {name: record["wall_s"] + record["stored_s"] for name, record in records.items()}  # as if nothing were stored
    memory = {name: record["peak_mb"] / 1e3 for name, record in records.items()}
    rows = [(name, f"{seconds[name]:.0f} s", f"{memory[name]:.1f} GB", ", ".join(records[name]["outputs"]) or "none") for name in records]
    rows.append(("all", f"{sum(seconds.values()) / 60:.0f} min", f"{max(memory.values()):.1f} GB", ""))
    devices = sorted({record["device"]["gpu"] or record["device"]["cpu"] for record in records.values()})
    counts = "/".join(str(count) for count in sorted({record["threads"] for record in records.values()}))
    text = tables.markdown(["notebook", "time", "peak memory", "artefacts"], rows)
    return f"{text}\n\nMeasured on {', '.join(devices)}; threads: {counts}."


def _parameters():
    rows = []
    for name in notebook.names():
        changed = {profile: notebook.injected(profile, name) for profile in ("smoke", "full")}
        for item in notebook.parameters(notebook.path(name)):
            if item.name != "profile":
                values = [changed["smoke"].get(item.name, item.value), item.value, changed["full"].get(item.name, item.value)]
                rows.append((name, f"`{item.name}`", item.meaning, *(f"`{value}`" for value in values)))
    return tables.markdown(["notebook", "parameter", "meaning", "smoke", "fast", "full"], rows)


def _data():
    rows = [
        (f"[`{item.id}`]({item.page})", item.what, data.size(item), item.licence, item.citation, item.needed_by)
        for item in data.manifest().values()
    ]
    return tables.markdown(["id", "what", "size", "licence", "cite", "needed by"], rows)


def _measured(name):
    try:
        return getattr(tables, name)(tables.benchmark(name))
    except FileNotFoundError:
        return f"Nothing measured yet: `python benchmarks/{name}.py` fills this table."


TABLES = {"figures": _figures, "runtimes": _runtimes, "parameters": _parameters, "data": _data}
_BENCHMARKS = ("engines", "choices", "agreement", "release", "inference", "codes", "catalogue", "closure", "mocks", "sky")
TABLES |= {name: partial(_measured, name) for name in _BENCHMARKS}
