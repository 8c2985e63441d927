"""The published populations against a sky that no calibration has seen, large enough for the bars to be told from chance.

    python benchmarks/closure.py [FILE] [N]

N (2,400,000) galaxies of the literature universe are synthesised directly and observed; some 9 in 100 pass r < 25. One half is the truth,
the other says what two samples of one sky show by chance. The scores are those of notebook 05, whose sky has a twelfth of the galaxies.
Writes FILE (benchmarks/results/closure.json), which docs/benchmarks.md and notebook 05 read; exits with 1 if a published one misses a bar.
"""

import json
import sys
from pathlib import Path

import torch
from engines import ROOT

from popcosmos_lib import population, survey
from popcosmos_lib.artefacts import provenance, store
from popcosmos_lib.emulation import emulator
from popcosmos_lib.galaxies import parameters, priors
from popcosmos_lib.population import closure_test
from popcosmos_lib.synthesis import filters, sps
from popcosmos_lib.workflow import tables

BATCH = 10_000  # galaxies of a population drawn at once
SKY = 400_000  # galaxies synthesised at once


def sky(n, generator):
    """Observed flux (m, 26) [µJy] and true parameters (m, 16) of the galaxies that pass r < 25, of n."""
    names, parts, direct = ([f"flux_{band}" for band in filters.SHORT], parameters.NAMES), [], sps.load()
    for start in range(0, n, SKY):
        table, _ = survey.mock(min(SKY, n - start), direct, generator)
        table = table[table["select_r25"]]
        parts.append([torch.stack([torch.as_tensor(table[name].data) for name in columns], -1).float() for columns in names])
    return [torch.cat(values) for values in zip(*parts, strict=True)]


@torch.no_grad()
def seen(law, n, forward, generator):
    """Observed flux (n, 26) [µJy] and parameters (n, 16) of n galaxies of a population that pass r < 25."""
    parts, count = [], 0
    while count < n:
        theta = law.sample(BATCH, generator)
        photometry = forward(theta, forward.draws(len(theta), generator))
        parts.append((photometry.flux[photometry.selected], theta[photometry.selected]))
        count += len(parts[-1][0])
    return [torch.cat(values)[:n] for values in zip(*parts, strict=True)]


def measure(n):
    """Galaxies of the truth, and one row of scores for each population, the floor first."""
    g = torch.Generator().manual_seed(23)
    flux, theta = sky(n, g)
    half = len(flux) // 2
    test = closure_test.Closure(flux[:half], theta[:half])
    rows = [{"population": "floor", "n": len(flux) - half, **test.floor(flux[half:], theta[half:], generator=g)}]
    laws = {"prior": priors.Prospector(), "broad start": population.Population.from_state(store.load("population_broad", "published").data)}
    laws |= {"ensemble": population.load_ensemble(), "calibrated": population.load()}
    forward = population.ForwardModel(emulator.load(), survey.load())
    for name, law in laws.items():
        found = seen(law, half, forward, g)
        rows.append({"population": name, "n": half, **test(*found, generator=g)})
        print(name, closure_test.verdicts(rows[-1]), flush=True)
    return half, rows


def main(target, n=2_400_000):
    """Measure, write ``target``, print the table; 1 if a bar is missed."""
    made = provenance.benchmark(store.home())
    half, rows = measure(n)
    content = {"what": "published populations against galaxies of known truth", **made, "n": half, "rows": rows}
    store.write_text(target, json.dumps(content, indent=1) + "\n")
    print(tables.closure(content))
    return int(any("missed" in closure_test.verdicts(row).values() for row in rows if row["population"] in closure_test.PUBLISHED))


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results" / "closure.json"
    sys.exit(main(where, *map(int, sys.argv[2:3])))
