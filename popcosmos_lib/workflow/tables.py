"""Results of ``make bench`` as Markdown tables, each with a line on where it was measured; ``pages`` puts them where they are read."""

import json
from statistics import median

from popcosmos_lib.artefacts import store
from popcosmos_lib.population.closure_test import table as closure_table
from popcosmos_lib.workflow.markdown import table as markdown

__all__ = [
    "agreement", "benchmark", "catalogue", "choices", "closure", "codes", "engines", "inference", "mocks", "release", "sky",
]  # fmt: skip


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
    return f"{markdown(head, lines)}\n\nMeasured on {where}"


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
    return f"{markdown(head, lines)}\n\n{notes}"


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
    text = markdown(["against", "what is compared", "median", "95 %", "99 %", "largest", "of", ""], lines)
    text += "\n\nSizes of the differences in magnitudes.\n\n"
    bands = [row for row in measured["networks"] if not row.get("missing")]
    if bands:
        lines = []
        for kind, what in (("offset", "offset of a band (median of ours minus theirs)"), ("sigma", "robust sigma of a band")):
            worst = max(bands, key=lambda row: abs(row[kind]))
            lines.append([what, f"{median(abs(row[kind]) for row in bands):.3f} mag", f"{worst[kind]:.3f} mag ({worst['band']})"])
        text += markdown(["against the public networks", f"median of {len(bands)} bands", "worst band"], lines)
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
        cost = [f"{row['seconds']:.2f}", f"{row['gpu_ms']:.1f}" if row["gpu_ms"] else "-"]
        lines.append([row["sample"], row["n"], *shares, *distances, *cost, f"{row['flagged']:.1%}"])
    text = markdown([*head, "CPU s per galaxy", "GPU ms", "flagged"], lines) + "\n\n"
    share = lambda value: "-" if value is None else f"{value:.0%}"  # noqa: E731
    lines = [[row["kind"], row["n"], share(row["flagged"]), share(row["possible"])] for row in measured["oddities"]]
    text += markdown(["planted", "n", "flagged", "if the truth were known"], lines) + "\n\n"
    lines = []
    for row in measured["rows"]:
        if row["missing"]:
            lines.append([row["engine"], *["-"] * 8, row["missing"]])
            continue
        offsets = [f"{row[key]:.2f}" for key in ("z", "log10M_formed", "log10SFR", "largest", "worst_of_16")]
        scores = [f"{row['sigma_mad']:.4f}", f"{row['outliers']:.0%}"]
        lines.append([row["engine"], f"{row['seconds']:.2f}", *offsets, *scores, row.get("note", "")])
    head = ["engine", "CPU s per galaxy", "z", "mass", "SFR", "largest of these", "worst of 16 parameters", "sigma_MAD", "outliers", ""]
    text += markdown(head, lines) + "\n\nOffsets of the medians from those of converged runs, in posterior sigma: rms over the galaxies, "
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
    text = markdown([*head, "no flag", "outliers", "sigma_MAD"], [[*line, f"{row['sigma_mad']:.4f}"]]) + "\n\n"
    lines = []
    for name, n in (("a deep field, 3 x 10^5", 3e5), ("a survey, 10^9", 1e9)):
        larger = hours * n / row["n"]
        lines.append([name, _rounded(larger), _rounded(larger / 1000 / 24), f"{row['bytes'] * n / 1e9:,.1f} GB"])
    text += markdown(["would be", "core hours", "days of 1,000 cores", "output"], lines)
    text += "\n\nIf those galaxies cost what these do (26 bands, r < 25), cores are like these and all busy; galaxies do not wait for one "
    runs = "One run" if row["runs"] == 1 else f"{row['runs']} runs, one after the other"
    text += "another. The fit allows for the errors of real photometry, at least 3 %, which the mock does not have. "
    return text + f"{runs}; measured on {_where(measured)}, one thread a worker."


def codes(measured):
    """Redshift codes on the same galaxies, of the model and real ones, as a table.

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
            lines.append([row["sample"], row["code"], *["-"] * 6, row["missing"]])
            continue
        scores = [f"{row['median']:+.4f}", f"{row['sigma_mad']:.4f}", f"{row['outliers']:.0%}"]
        lines.append([row["sample"], row["code"], row["n"], _rounded(row["seconds"]), f"{row['start']:.0f}", *scores, row["note"]])
    head = ["sample", "code", "galaxies", "CPU s per galaxy", "set-up [s]", "median", "sigma_MAD", "outliers", ""]
    wrong = {}
    for row in measured["rows"]:
        if row["sample"] != "model" and not row["missing"]:
            wrong.setdefault(row["sample"], []).append(set(row["wrong"]))
    shared = "".join(f"{len(set.intersection(*sets))} galaxies of {sample} are outliers of every code. " for sample, sets in wrong.items())
    return f"{markdown(head, lines)}\n\n{shared}Measured on {_where(measured)}; one thread, load {measured['load']:.1f} at the start."


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
    text = markdown(["test", "unit", "bar", "goal", *scores, "calibrated reaches"], lines)
    return f"{text}\n\n{measured['n']:,} galaxies with r < 25 on either side. Measured on {_where(measured)}."


def mocks(measured):
    """Mock galaxies per second, survey by survey, and what a stream of them to disk costs.

    Parameters
    ----------
    measured : dict
        ``benchmark("mocks")``.

    Returns
    -------
    str
        Markdown, with a line on where it was measured.
    """
    stages = ["population", "photometry", "noise", "derived", "drawn", "selected"]
    rows = [[row["survey"], row["selection"], row["bands"], *(_rounded(row[key]) for key in stages)] for row in measured["rows"]]
    head = ["survey", "selection", "bands", *(f"{stage} /s" for stage in stages)]
    streams = (f"{one['n']:,} galaxies in {one['wall_s']:.0f} s and {one['peak_bytes'] / 1e9:.2f} GB" for one in measured["streams"])
    text = markdown(head, rows) + f"\n\nTo disk, start of the process included: {'; '.join(streams)} of memory at most. "
    return text + f"Measured on {measured['device']['gpu'] or _where(measured)}, {measured['threads']} threads."


def sky(measured):
    """Redshifts of real galaxies, sample by sample, as two tables: their scores, and what the photometry says of the outliers.

    Parameters
    ----------
    measured : dict
        ``benchmark("sky")``.

    Returns
    -------
    str
        Markdown, with a line on where it was measured.
    """
    styles = {"median": "+.4f", "sigma_mad": ".4f", "nmad": ".4f", "outliers": ".1%", "outliers_rail": ".1%", "crps": ".4f", "pit": ".2f"}
    styles |= {"flagged": ".1%"}
    about, rows = ["sample", "prior", "emulator", "n"], []
    for row in measured["rows"]:
        if "n" in row:
            rows.append([*map(row.get, about), *(format(row[key], style) if key in row else "-" for key, style in styles.items())])
    text = markdown([*about, "median", "sigma_MAD", "NMAD", "outliers", "of RAIL", "CRPS", "PIT KS", "flagged"], rows)
    rows = [[row["sample"], row["wrong"], row["wrong"] - row["uncontradicted"]] for row in measured["rows"] if "wrong" in row]
    text += "\n\n" + markdown(["sample", "outliers", "whose reference redshift the photometry contradicts"], rows)
    return f"{text}\n\nMeasured on {_where(measured)}."


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
    text = markdown(head, rows) + f"\n\nLargest difference between the two: {measured['apart']:.1e} mag over {measured['n']:,} galaxies. "
    text += f"A galaxy costs {bound['flop'] / 1e6:.2f} Mflop of products; this core multiplies large matrices at "
    text += f"{bound['peak'] / 1e9:.0f} Gflop/s, so they alone allow {_rounded(bound['most'])} galaxies/s: "
    text += f"{bound['ratio']:.2f} times the loop at batch {bound['batch']:,}.\n\n"
    rows = [[row["steps"], _rounded(row["rate"]), f"{row['wrong']:.4f}"] for row in errors["rows"]]
    text += markdown(["steps of the flux errors", "galaxies/s", "rms error of ln sigma"], rows)
    text += f"\n\nln sigma itself scatters by {errors['scatter']:.2f}. Measured on {_where(measured)}; one thread, medians of "
    text += f"{measured['rounds']} rounds in which the engines took turns."
    return text + (f" Other jobs were running (load {measured['load']:.1f} at the start)." if measured["load"] > 1 else "")


def _small(size):
    return f"{size:.4f}" if size >= 5e-5 else "< 0.0001"


def _where(measured):
    return f"{measured['device']['cpu']}, {measured['date']}, torch {measured['versions']['torch']}"
