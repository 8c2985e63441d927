"""Tables of README.md, REPRODUCING.md and docs/, generated between ``<!-- generated:NAME -->`` and ``<!-- /generated -->``.

Each comes from committed files only (declared figures, collected records, the data manifest, the notebooks and their profiles, the results
of ``make bench``), so that a test can say whether the committed text is the generated one.
"""

import ast
import json
import re
from functools import cache, partial

from popcosmos_lib import figures
from popcosmos_lib.artefacts import data, store
from popcosmos_lib.workflow import layout, notebook, tables
from popcosmos_lib.workflow.markdown import table as markdown

__all__ = ["PAGES", "TABLES", "update", "updated"]

PAGES = [
    "README.md", "REPRODUCING.md", "docs/architecture.md", "docs/benchmarks.md", "docs/catalogue.md", "docs/data.md", "docs/differences.md",
    "docs/figures.md", "docs/surveys.md",
]  # fmt: skip
_LINK = re.compile(r"\]\((?!https?:|\.\./|#)")
_BLOCK = re.compile(r"(<!-- generated:(\w+) -->\n).*?(<!-- /generated -->)", re.S)


def update():
    """Rewrite the marked blocks of every page that changed."""
    for page in PAGES:
        path = store.home() / page
        text = path.read_text()
        fresh = updated(text, top="/" not in page)
        if fresh != text:
            store.write_text(path, fresh)
            print(f"tables of {page} regenerated")


def updated(text, top=True):
    """A page with its marked blocks generated anew; links of one that is not at the ``top`` lead one folder up.

    Raises
    ------
    ValueError
        If a marker names no table.
    """

    def block(match):
        if match[2] not in TABLES:
            raise ValueError(f"no generated table {match[2]!r}: there are {', '.join(TABLES)}")
        text = TABLES[match[2]]()
        return f"{match[1]}\n{text if top else re.sub(_LINK, r'](../', text)}\n\n{match[3]}"

    return _BLOCK.sub(block, text)


def _figures(computed=False):
    """Each figure, its notebook and its counterpart in the papers; with ``computed`` also the modules that its notebook calls."""
    head, rows = ["figure", "notebook", "paper figure", "status"], []
    for id, entry in sorted(figures.declared().items(), key=lambda item: item[1]["notebook"]):
        name = entry["notebook"]
        row = [f"[{id}](figures/{id}.png)", f"[{name}](notebooks/{name}.ipynb)", _paper(entry), entry["status"]]
        if computed:
            row.append(", ".join(f"`{module}`" for module in _modules(name, id)))
        rows.append(row)
    return markdown([*head, "computed by"] if computed else head, rows)


@cache
def _imported(name):
    """Module of the library behind each name that a notebook imports, but for those that run and draw."""
    found = {}
    for node in ast.walk(ast.parse(notebook.path(name).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("popcosmos_lib"):
            room = node.module.removeprefix("popcosmos_lib").removeprefix(".")
            for item in node.names:
                found[item.asname or item.name] = room if "." in room or item.name[0].isupper() else f"{room}.{item.name}".strip(".")
    return {local: module for local, module in found.items() if module.split(".")[0] not in ("figures", "workflow")}


def _modules(name, id):
    """Modules that the section of a notebook calls which ends in a figure; those of the whole notebook where that section calls none."""
    before = notebook.path(name).read_text().split(f'"{id}")')[0]
    section = before[before.rfind("\n# ## ") :].split("\n# %%", 1)[-1]  # since its heading
    words = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"^#.*$", "", section, flags=re.M)))
    imported = _imported(name)
    return sorted({module for local, module in imported.items() if local in words} or set(imported.values()))


def _notebooks():
    """One line a notebook: its link, and its own title."""
    titles = {name: re.search(r"^# # (.*)$", notebook.path(name).read_text(), re.M)[1] for name in notebook.names()}
    return "\n".join(f"- [{name}](notebooks/{name}.ipynb): {title}" for name, title in titles.items())


def _paper(entry):
    number = str(entry.get("number") or "")
    return f"{entry['paper']} fig{'' if number.isalnum() else 's'}. {number}" if number else entry["paper"]


def _records():
    path = store.home() / "figures" / "records.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _seconds(record):
    """Wall time of a notebook [s], as if nothing had been stored."""
    return record["wall_s"] + record["stored_s"]


def _machines(records):
    """Devices and numbers of threads of the recorded runs."""
    devices = sorted({record["device"]["gpu"] or record["device"]["cpu"] for record in records.values()})
    counts = "/".join(str(count) for count in sorted({record["threads"] for record in records.values()}))
    return f"{', '.join(devices)}; threads: {counts}"


def _cost():
    """What the two commands cost, in one sentence."""
    records = _records()
    if not records:
        return "Nothing measured yet: `make figures` fills this line."
    minutes = sum(_seconds(record) for record in records.values()) / 60
    memory = max(record["peak_mb"] for record in records.values()) / 1e3
    return (
        f"`make figures` made {len(figures.declared())} figures from {len(records)} notebooks in {minutes:.0f} minutes, with {memory:.1f} "
        f"GB of memory ({_machines(records)}); `make test` reruns every notebook at a small size."
    )


def _runtimes():
    records = _records()
    if not records:
        return "Nothing measured yet: `make figures` fills this table."
    seconds = {name: _seconds(record) for name, record in records.items()}
    memory = {name: record["peak_mb"] / 1e3 for name, record in records.items()}
    rows = [(name, f"{seconds[name]:.0f} s", f"{memory[name]:.1f} GB", ", ".join(records[name]["outputs"]) or "none") for name in records]
    rows.append(("all", f"{sum(seconds.values()) / 60:.0f} min", f"{max(memory.values()):.1f} GB", ""))
    text = markdown(["notebook", "time", "peak memory", "artefacts"], rows)
    return f"{text}\n\nMeasured on {_machines(records)}."


def _parameters():
    rows = []
    for name in notebook.names():
        changed = {profile: notebook.injected(profile, name) for profile in ("smoke", "full")}
        for item in notebook.parameters(notebook.path(name)):
            if item.name != "profile":
                values = [changed["smoke"].get(item.name, item.value), item.value, changed["full"].get(item.name, item.value)]
                rows.append((name, f"`{item.name}`", item.meaning, *(f"`{value}`" for value in values)))
    return markdown(["notebook", "parameter", "meaning", "smoke", "fast", "full"], rows)


def _data():
    rows = [
        (f"[`{item.id}`]({item.page})", item.what, data.size(item), item.licence, item.citation, item.needed_by)
        for item in data.manifest().values()
    ]
    return markdown(["id", "what", "size", "licence", "cite", "needed by"], rows)


def _headline():
    """The few numbers that a visitor asks for, each from the committed result of its benchmark."""
    rates = {row["engine"].split(" ")[0]: row for row in tables.benchmark("engines")["rows"] if not row["missing"]}
    fast, slow = rates["emulator"], rates["FSPS"]
    closed = next(row for row in tables.benchmark("closure")["rows"] if row["population"] == "calibrated")
    gates = tables.benchmark("inference")["gates"][0]
    fitted, drawn = tables.benchmark("catalogue")["rows"][0], tables.benchmark("mocks")["rows"][0]
    real = next(row for row in tables.benchmark("sky")["rows"] if (row["sample"], row["prior"]) == ("cosmos, r < 25", "pop-cosmos"))
    worst = max(abs(closed[f"pc{i}"]) for i in range(1, 7))
    rows = [
        (
            "emulated photometry, 26 bands",
            f"{fast['rate']:,.0f} galaxies/s per core, error {fast['sigma']:.4f} mag; FSPS: {slow['rate']:.0f}/s",
        ),
        ("calibrated population against a held-out mock sky", f"worst of six colour components: KS {worst:.3f} (bar 0.03)"),
        (
            "exact posteriors, galaxies of the model",
            f"k-hat < 0.7 for {gates['trusted']:.1%}, 400 effective draws for {gates['effective']:.1%}",
        ),
        (
            f"a catalogue of {fitted['n']:,} mock galaxies",
            f"{fitted['cpu_s'] / fitted['n']:.2f} CPU s each, sigma_MAD {fitted['sigma_mad']:.4f}",
        ),
        (f"{real['n']} real COSMOS2020 galaxies with r < 25", f"sigma_MAD {real['sigma_mad']:.4f}, outliers {real['outliers']:.1%}"),
        ("mock catalogue, noise and selection included", f"{drawn['selected']:,.0f} galaxies/s"),
    ]
    return markdown(["what", "measured"], rows)


def _measured(name):
    try:
        return getattr(tables, name)(tables.benchmark(name))
    except FileNotFoundError:
        return f"Nothing measured yet: `python benchmarks/{name}.py` fills this table."


TABLES = {"figures": _figures, "runtimes": _runtimes, "parameters": _parameters, "data": _data, "cost": _cost, "notebooks": _notebooks}
TABLES |= {"rooms": layout.table, "headline": _headline, "sources": partial(_figures, computed=True)}
_BENCHMARKS = ("engines", "choices", "agreement", "release", "inference", "codes", "catalogue", "closure", "mocks", "sky")
TABLES |= {name: partial(_measured, name) for name in _BENCHMARKS}
