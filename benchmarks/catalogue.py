"""A whole catalogue, end to end: a mock of 10,000 galaxies with r < 25 through ``python -m popcosmos_lib fit``.

    python benchmarks/catalogue.py [FILE] [N] [WORKERS]

Hours, so not a part of ``make bench``. Catalogue, parts and a log of the time spent lie in build/catalogue: a run that was killed goes on,
with as many workers (a core each; every core if not given) as it is then told, and what its unfinished chunks had cost counts. Scores are
of the medians against the true redshifts. Writes FILE (benchmarks/results/catalogue.json).
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch
from astropy.table import Table
from engines import ROOT

from popcosmos_lib.artefacts import provenance, store
from popcosmos_lib.fitting import exact_engine
from popcosmos_lib.population import metrics
from popcosmos_lib.workflow import tables

TICK = 5.0  # between looks at the clock [s]


def spent(process):
    """CPU seconds of a process and all that descend from it and are alive."""
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        try:
            times = one.cpu_times()
            total += times.user + times.system
        except psutil.Error:  # it has just ended
            continue
    return total


def watched(words, log, workers=1):
    """Run the package's command line and add what it costs to a log, time and again.

    Returns
    -------
    dict
        ``wall_s``, ``core_s`` (of ``workers`` cores, busy or not) and ``cpu_s`` of all runs with that log, and how many they were.
    """
    before = json.loads(log.read_text()) if log.exists() else {"wall_s": 0.0, "core_s": 0.0, "cpu_s": 0.0, "runs": 0}
    began, most = time.perf_counter(), 0.0
    with subprocess.Popen([sys.executable, "-m", "popcosmos_lib", *words]) as running:
        while True:
            try:
                running.wait(TICK)
            except subprocess.TimeoutExpired:
                most = max(most, spent(psutil.Process(running.pid)))
            wall = time.perf_counter() - began
            cost = {"wall_s": wall, "core_s": wall * workers, "cpu_s": most}
            total = {key: before[key] + value for key, value in cost.items()} | {"runs": before["runs"] + 1}
            store.write_text(log, json.dumps(total))
            if running.returncode is not None:
                break
    if running.returncode:
        raise SystemExit(running.returncode)
    return total


def measure(folder, n, workers):
    """One row: cost and quality of the posteriors of ``n`` galaxies."""
    folder.mkdir(parents=True, exist_ok=True)
    mock, out = folder / f"mock_{n}.parquet", folder / f"posteriors_{n}.parquet"
    if not mock.exists():
        watched(["mock", "--n", str(n), "--selection", "r<25", "--out", str(mock)], folder / f"mock_{n}.json")
    cost = watched(["fit", str(mock), "--out", str(out), "--workers", str(workers)], folder / f"fit_{n}.json", workers)
    found = Table.read(out)
    scores = metrics.photoz(*(torch.tensor(values).float() for values in (found["z_q50"], Table.read(mock)["z"])))
    shares = {"trusted": (found["khat"] < exact_engine.KHAT).mean(), "effective": (found["ess"] >= exact_engine.ESS).mean()}
    shares |= {"quiet": (found["flags"] == 0).mean(), "chains": (found["engine"] == "chains").mean()}
    shares = {name: float(share) for name, share in shares.items()}
    kept = {key: scores[key] for key in ("median", "sigma_mad", "outliers")}
    return {"n": len(found), **cost, **shares, **kept, "bytes": out.stat().st_size / len(found)}


def main(target, n=10_000, workers=None):
    """Measure, write ``target``, print the table."""
    made = provenance.benchmark(store.home(), "distributed")
    row = measure(ROOT / "build" / "catalogue", n, workers or os.cpu_count())
    content = {"what": "a mock catalogue through `fit`", **made, "rows": [row]}
    store.write_text(target, json.dumps(content, indent=1) + "\n")
    print(tables.catalogue(content))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results" / "catalogue.json", *map(int, sys.argv[2:4]))
