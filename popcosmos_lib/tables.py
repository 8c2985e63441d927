"""Tables of README.md and REPRODUCING.md, generated between ``<!-- generated:NAME -->`` and ``<!-- /generated -->``.

Each comes from committed files only (declared figures, collected records, the data manifest, the notebooks and their profiles, the results
of ``make bench``), so that a test can say whether the committed text is the generated one.
"""

import json
import re
from functools import partial
from statistics import median

from popcosmos_lib import data, figures, notebook, store
from popcosmos_lib.closure import table as closure_table

__all__ = [
    "PAGES", "TABLES", "agreement", "benchmark", "catalogue", "choices", "closure", "codes", "engines", "inference", "release", "update",
    "updated",
]  # fmt: skip

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


def _table(head, rows):
    cells = [" ".join(str(cell).split()).replace("|", "\\|") for row in rows for cell in row]
    lines = [cells[i : i + len(head)] for i in range(0, len(cells), len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def _figures():
    rows = [
        (f"[{id}](figures/{id}.png)", f"[{entry['notebook']}](notebooks/{entry['notebook']}.ipynb)", _paper(entry), entry["status"])
        for id, entry in sorted(figures.declared().items(), key=lambda item: item[1]["notebook"])
    ]
    return _table(["figure", "notebook", "paper figure", "status"], rows)


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
    return _table(["notebook", "time", "peak memory", "artefacts"], rows) + f"\n\nMeasured on {', '.join(devices)}; threads: {counts}."


def _parameters():
    rows = []
    for name in notebook.names():
        changed = {profile: notebook.injected(profile, name) for profile in ("smoke", "full")}
        for item in notebook.parameters(notebook.path(name)):
            if item.name != "profile":
                values = [changed["smoke"].get(item.name, item.value), item.value, changed["full"].get(item.name, item.value)]
                rows.append((name, f"`{item.name}`", item.meaning, *(f"`{value}`" for value in values)))
    return _table(["notebook", "parameter", "meaning", "smoke", "fast", "full"], rows)


def _data():
    rows = [
        (f"[`{item.id}`]({item.page})", item.what, data.size(item), item.licence, item.citation, item.needed_by)
        for item in data.manifest().values()
    ]
    return _table(["id", "what", "size", "licence", "cite", "needed by"], rows)


def benchmark(name):
    """A committed result of ``make bench``.

    Parameters
    ----------
    name : str
        Of the file below ``benchmarks/results``, without its extension.

    Returns
    -------
    dict
        ``rows``, and what they were measured on: ``device``, ``versions``, ``date``, ``commit``.

    Raises
    ------
    FileNotFoundError
        If it was never measured.
    """
    path = store.home() / "benchmarks" / "results" / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"no benchmarks/results/{name}.json: run `make bench`")
    return json.loads(path.read_text())


def engines(measured):
    """The photometry engines as a table: galaxies per second on one core, the gain over FSPS, and the error against the synthesis.

    Parameters
    ----------
    measured : dict
        ``benchmark("engines")``.

    Returns
    -------
    str
        Markdown, with a line on where it was measured.
    """
    rows = [row for row in measured["rows"] if not row["missing"]]
    slowest = next((row["rate"] for row in rows if row["engine"].startswith("FSPS")), None)
    gpu = [measured["device"]["gpu"]] if any(row["gpu"] for row in rows) else []
    head = ["engine", "galaxies/s per core", "over FSPS", "2 threads", "with gradient", *gpu, "robust sigma", "sd", ""]
    lines = []
    for row in measured["rows"]:
        if row["missing"]:
            lines.append([row["engine"], *["-"] * (len(head) - 2), f"not measured: {row['missing']}"])
            continue
        rates = [row[kind] for kind in ("two_threads", "gradient", *(["gpu"] if gpu else []))]
        errors = ["-" if row[kind] is None else f"{row[kind]:.4f} mag" for kind in ("sigma", "sd")]
        gain = _rounded(row["rate"] / slowest) if slowest else "-"
        lines.append([row["engine"], _rounded(row["rate"]), gain, *map(_rounded, rates), *errors, row["note"]])
    where = f"{measured['device']['cpu']}, {measured['date']}, torch {measured['versions']['torch']}"
    where += f"; medians of {measured['rounds']} rounds in which the engines took turns."
    if measured["load"] > 1:
        where += f" Other jobs were running (load {measured['load']:.1f} at the start): the rates are lower limits."
    return f"{_table(head, lines)}\n\nMeasured on {where}"


def choices(measured):
    """What each choice of the emulator is worth, as a table: a small training with one thing changed, against the same unchanged.

    Parameters
    ----------
    measured : dict
        ``benchmark("choices")``.

    Returns
    -------
    str
        Markdown, with a line on the size and on where it was measured.
    """
    head = ["choice", "what is changed", "robust sigma", "of baseline", "sd", "99.9 % within", "uniform draws", "CPU s", "galaxies/s"]
    lines = []
    for row in measured["rows"]:
        errors = [f"{row[kind][0]:.4f} / {row[kind][1]:.4f}" for kind in ("sigma", "sd", "tail", "corners")]
        gain = f"{row['sigma'][0] / measured['rows'][0]['sigma'][0]:.2f}"
        lines.append([row["choice"], row["changed"], errors[0], gain, *errors[1:], f"{row['cpu_s']:.0f}", _rounded(row["rate"])])
    size = measured["size"]
    hidden = " ".join(str(units) for units in size["hidden"])
    notes = f"Errors in mag, median band / worst band, on {size['n_test']:,} fresh galaxies of the universe, then robust sigma of as many "
    notes += f"draws uniform in the bounds. Baseline: {size['n_train']:,} galaxies, {size['steps']:,} steps, hidden {hidden}. "
    notes += f"Measured on {measured['device']['cpu']}, one thread, {measured['date']}, torch {measured['versions']['torch']}, load "
    notes += f"{measured['load']:.1f} at the start; times in CPU seconds."
    return f"{_table(head, lines)}\n\n{notes}"


def _rounded(number):
    """Two significant digits, thousands apart; a dash for what was not measured."""
    return "-" if number is None else f"{float(f'{number:.2g}'):,.10g}"


def agreement(measured):
    """How far the synthesis is from engines that others wrote, as two tables: sizes of the differences, and offsets of the public networks.

    Parameters
    ----------
    measured : dict
        ``benchmark("agreement")``.

    Returns
    -------
    str
        Markdown, with a line on where it was measured.
    """
    lines = []
    for row in measured["rows"]:
        sizes = ["-"] * 5 if row["missing"] else [_small(row[kind]) for kind in ("median", "p95", "p99", "largest")] + [f"{row['n']:,}"]
        what = (row["engine"], f"not measured: {row['missing']}", "") if row["missing"] else (row["engine"], row["what"], row["note"])
        lines.append([*what[:2], *sizes, what[2]])
    text = _table(["against", "what is compared", "median", "95 %", "99 %", "largest", "of", ""], lines)
    text += "\n\nSizes of the differences in magnitudes.\n\n"
    bands = [row for row in measured["networks"] if not row.get("missing")]
    if bands:
        lines = []
        for kind, what in (("offset", "offset of a band (median of ours minus theirs)"), ("sigma", "robust sigma of a band")):
            worst = max(bands, key=lambda row: abs(row[kind]))
            lines.append([what, f"{median(abs(row[kind]) for row in bands):.3f} mag", f"{worst[kind]:.3f} mag ({worst['band']})"])
        text += _table(["against the public networks", f"median of {len(bands)} bands", "worst band"], lines)
    else:
        text += f"Public networks not measured: {measured['networks'][0]['missing']}"
    return f"{text}\n\nMeasured on {_where(measured)}; one thread."


def inference(measured):
    """Posteriors: the gates of the exact engine, planted objects, and every engine against converged posteriors, as three tables.

    Parameters
    ----------
    measured : dict
        ``benchmark("inference")``.

    Returns
    -------
    str
        Markdown, with a line on where it was measured.
    """
    head = ["galaxies of the model", "n", "k-hat < 0.7", "400 draws", "needed chains"]
    head += ["largest KS of 16 ranks", "TARP", "99 % limit", "spread (0.289)"]
    lines = []
    for row in measured["gates"]:
        shares = [f"{row[key]:.1%}" for key in ("trusted", "effective", "chains")]
        distances = [f"{value:.3f}" for value in (max(row["ranks"][:-1]), row["ranks"][-1], row["limit"], row["spread"])]
        cost = [f"{row['seconds']:.2f}", f"{row['gpu_ms']:.1f}" if row.get("gpu_ms") else "-"]
        lines.append([row["sample"], row["n"], *shares, *distances, *cost, f"{row['flagged']:.1%}"])
    text = _table([*head, "CPU s per galaxy", "GPU ms", "flagged"], lines) + "\n\n"
    share = lambda value: "-" if value is None else f"{value:.0%}"  # noqa: E731
    lines = [[row["kind"], row["n"], share(row["flagged"]), share(row["possible"])] for row in measured["oddities"]]
    text += _table(["planted", "n", "flagged", "if the truth were known"], lines) + "\n\n"
    lines = []
    for row in measured["rows"]:
        if row["missing"]:
            lines.append([row["engine"], *["-"] * 8, row["missing"]])
            continue
        offsets = [f"{row[key]:.2f}" for key in ("z", "log10M_formed", "log10SFR", "largest", "worst_of_16")]
        scores = [f"{row['sigma_mad']:.4f}", f"{row['outliers']:.0%}"]
        lines.append([row["engine"], f"{row['seconds']:.2f}", *offsets, *scores, row.get("note", "")])
    head = ["engine", "CPU s per galaxy", "z", "mass", "SFR", "largest of these", "worst of 16 parameters", "sigma_MAD", "outliers", ""]
    text += _table(head, lines) + "\n\nOffsets of the medians from those of converged runs, in posterior sigma: rms over the galaxies, "
    text += "but for the largest single one. "
    return f"{text}Measured on {_where(measured)}; one thread, load {measured['load']:.1f} at the start."


def catalogue(measured):
    """A catalogue of thousands of galaxies through ``fit``, and what larger ones would cost, as two tables.

    Parameters
    ----------
    measured : dict
        ``benchmark("catalogue")``.

    Returns
    -------
    str
        Markdown, with a line on where it was measured and what the extrapolation assumes.
    """
    (row,) = measured["rows"]
    hours = row["core_s"] / 3600
    shares = [f"{row[key]:.1%}" for key in ("trusted", "effective", "chains", "quiet", "outliers")]
    line = [f"{row['n']:,}", f"{hours:.2f}", f"{row['n'] / hours:,.0f}", f"{row['cpu_s'] / row['n']:.2f}", *shares]
    head = ["galaxies", "core hours", "galaxies per core hour", "CPU s per galaxy", "k-hat < 0.7", "400 draws", "needed chains"]
    text = _table([*head, "no flag", "outliers", "sigma_MAD"], [[*line, f"{row['sigma_mad']:.4f}"]]) + "\n\n"
    lines = []
    for name, n in (("a deep field, 3 x 10^5", 3e5), ("a survey, 10^9", 1e9)):
        larger = hours * n / row["n"]
        lines.append([name, _rounded(larger), _rounded(larger / 1000 / 24), f"{row['bytes'] * n / 1e9:,.1f} GB"])
    text += _table(["would be", "core hours", "days of 1,000 cores", "output"], lines)
    text += "\n\nIf those galaxies cost what these do (26 bands, r < 25), cores are like these and all busy; galaxies do not wait for one "
    runs = "One run" if row["runs"] == 1 else f"{row['runs']} runs, one after the other"
    text += "another. The fit allows for the errors of real photometry, at least 3 %, which the mock does not have. "
    return text + f"{runs}; measured on {_where(measured)}, one thread a worker."


def codes(measured):
    """Redshift codes on the same galaxies of the model, as a table.

    Parameters
    ----------
    measured : dict
        ``benchmark("codes")``.

    Returns
    -------
    str
        Markdown, with a line on where it was measured.
    """
    lines = []
    for row in measured["rows"]:
        if row["missing"]:
            lines.append([row["code"], *["-"] * 6, row["missing"]])
            continue
        scores = [f"{row['median']:+.4f}", f"{row['sigma_mad']:.4f}", f"{row['outliers']:.0%}"]
        lines.append([row["code"], row["n"], _rounded(row["seconds"]), f"{row['start']:.0f}", *scores, row["note"]])
    head = ["code", "galaxies", "CPU s per galaxy", "set-up [s]", "median", "sigma_MAD", "outliers", ""]
    return f"{_table(head, lines)}\n\nMeasured on {_where(measured)}; one thread, load {measured['load']:.1f} at the start."


def closure(measured):
    """The published populations against a large sky of known truth, as a table: every test that has a bar.

    Parameters
    ----------
    measured : dict
        ``benchmark("closure")``.

    Returns
    -------
    str
        Markdown, with a line on where it was measured.
    """
    scores = {row["population"]: row for row in measured["rows"]}
    lines = []
    for row in closure_table(scores):
        if row["verdict"]:
            limits = [f"{row[name]:g}" for name in ("bar", "goal")]
            lines.append([row["test"], row["unit"], *limits, *(f"{row[name]:.3f}" for name in scores), row["verdict"]])
    text = _table(["test", "unit", "bar", "goal", *scores, "calibrated reaches"], lines)
    return f"{text}\n\n{measured['n']:,} galaxies with r < 25 on either side. Measured on {_where(measured)}."


def release(measured):
    """The released networks at once against a loop over bands, the bound from their arithmetic, and the cost of the flux errors.

    Parameters
    ----------
    measured : dict
        ``benchmark("release")``.

    Returns
    -------
    str
        Markdown, with a line on where it was measured.
    """
    if measured["missing"]:
        return f"Not measured: {measured['missing']}"
    head = ["batch", "loop /s", "at once /s", "ratio", "loop recording /s", "ratio", "loop with gradient /s", "at once /s", "ratio"]
    kinds = ["loop", "fused", "ratio", "recording", "recording_ratio", "loop_gradient", "fused_gradient", "gradient_ratio"]
    rows = []
    for row in measured["rows"]:
        rows.append([f"{row['batch']:,}", *(f"{row[kind]:.2f}" if "ratio" in kind else _rounded(row[kind]) for kind in kinds)])
    bound, errors = measured["bound"], measured["flux_errors"]
    text = _table(head, rows) + f"\n\nLargest difference between the two: {measured['apart']:.1e} mag over {measured['n']:,} galaxies. "
    text += f"A galaxy costs {bound['flop'] / 1e6:.2f} Mflop of products; this core multiplies large matrices at "
    text += f"{bound['peak'] / 1e9:.0f} Gflop/s, so they alone allow {_rounded(bound['most'])} galaxies/s: "
    text += f"{bound['ratio']:.2f} times the loop at batch {bound['batch']:,}.\n\n"
    rows = [[row["steps"], _rounded(row["rate"]), f"{row['wrong']:.4f}"] for row in errors["rows"]]
    text += _table(["steps of the flux errors", "galaxies/s", "rms error of ln sigma"], rows)
    text += f"\n\nln sigma itself scatters by {errors['scatter']:.2f}. Measured on {_where(measured)}; one thread, medians of "
    text += f"{measured['rounds']} rounds in which the engines took turns."
    return text + (f" Other jobs were running (load {measured['load']:.1f} at the start)." if measured["load"] > 1 else "")


def _small(size):
    return f"{size:.4f}" if size >= 5e-5 else "< 0.0001"


def _where(measured):
    return f"{measured['device']['cpu']}, {measured['date']}, torch {measured['versions']['torch']}"


def _measured(table):
    try:
        return table(benchmark(table.__name__))
    except FileNotFoundError:
        return f"Nothing measured yet: `python benchmarks/{table.__name__}.py` fills this table."


TABLES = {"figures": _figures, "runtimes": _runtimes, "parameters": _parameters, "data": _data}
TABLES |= {
    table.__name__: partial(_measured, table) for table in (engines, choices, agreement, release, inference, codes, catalogue, closure)
}
