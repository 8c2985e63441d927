"""Mock galaxies per second: population, photometry, errors and noise, derived quantities, one after the other and together.

    python benchmarks/mocks.py [FILE] [N]

Rates are medians of five, of the published networks, on as many threads as torch takes; the bars are 3,000 galaxies/s on two cores and
20,000 on a GPU. "Selected" counts what remains in the catalogue. The multiply-adds of the networks are counted from their weights; the rest
of the cost is activations, the tables of the emulator, and the search for the quantile of each flux error (30 halvings in 26 bands). Then
mocks of a tenth of N (1,000,000) galaxies and of N go to disk through the command line, where the larger must not need more memory. Writes
FILE (benchmarks/results/mocks.json); exits with 1 where a bar is missed.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from engines import ROOT

from popcosmos_lib.artefacts import provenance, store
from popcosmos_lib.population import mocks
from popcosmos_lib.survey import definitions
from popcosmos_lib.workflow import tables

REPEATS = 5
EVALUATIONS = {"population": 16, "emulator": 1, "uncertainty": 1}  # of each network per galaxy
BARS = {"cpu": 3_000, "gpu": 20_000}  # galaxies of the catalogue per second
MORE = 1.2  # times the memory of a tenth of the galaxies that all may need


def rate(function):
    """Galaxies per second of a chunk, and the last result."""
    result, times = function(), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return mocks.CHUNK / statistics.median(times), result


def work(network, evaluations):
    """Multiply-adds of a galaxy [thousands]."""
    weights = [p for name, p in network.named_parameters() if "weight" in name and p.ndim > 1]
    return evaluations * sum(p.numel() for p in weights) / 1e3


@torch.no_grad()
def measure(made):
    """The row of one survey: galaxies per second of each stage and of all, multiply-adds of each network."""
    generator = torch.Generator().manual_seed(0)
    row = {"survey": made.meta["survey"], "selection": made.selection, "bands": len(made.sky.bands), "engine": made.meta["photometry"]}
    row["population"], theta = rate(lambda: made.model.sample(mocks.CHUNK, generator))
    row["photometry"], flux = rate(lambda: made.flux_true(theta))
    row["noise"] = rate(lambda: made.observe(flux, generator))[0]
    row["derived"] = rate(lambda: made.synthesiser.derived(theta))[0]
    row["drawn"], rows = rate(lambda: made.chunk(0, 0))
    row["selected"] = row["drawn"] * len(rows) / mocks.CHUNK
    networks = {"population": made.model, "emulator": made.engine, "uncertainty": made.sky.uncertainty}
    row["kilo_madds"] = {name: work(networks[name], EVALUATIONS[name]) for name in made.meta["networks"]}
    return row


def stream(n):
    """Wall time and largest memory of a process that writes a mock of ``n`` galaxies."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        words = [sys.executable, "-m", "popcosmos_lib", "mock", "--n", str(n), "--out", str(Path(folder) / "mock.parquet")]
        running = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(running.pid, 0)
        if status:
            raise SystemExit(f"the mock of {n} galaxies failed")
        return {"n": n, "wall_s": time.perf_counter() - began, "peak_bytes": 1024 * usage.ru_maxrss}


def missed(content):
    """The bars that a result misses, one line each."""
    where = "gpu" if content["device"]["gpu"] else "cpu"
    deep = content["rows"][0]
    if deep["selected"] < BARS[where]:
        yield f"{deep['survey']}: {deep['selected']:,.0f} galaxies/s, bar {BARS[where]:,} ({where})"
    few, many = content["streams"]
    if many["peak_bytes"] > MORE * few["peak_bytes"]:
        yield f"{many['n']:,} galaxies need {many['peak_bytes'] / few['peak_bytes']:.1f} times the memory of {few['n']:,}"


def main(target, n=1_000_000):
    """Measure, write ``target``, print the table; the number of missed bars."""
    content = {"what": "mock catalogues, galaxies per second", **provenance.benchmark(store.home()), "threads": torch.get_num_threads()}
    content["rows"] = [measure(mocks.load(name)) for name in definitions.BUILT_IN]
    content["streams"] = [stream(n // 10), stream(n)]
    store.write_text(target, json.dumps(content, indent=1) + "\n")
    print(tables.mocks(content))
    problems = list(missed(content))
    print("\n".join(problems) or "every bar is met")
    return 1 if problems else 0


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results" / "mocks.json"
    sys.exit(main(where, *map(int, sys.argv[2:3])))
