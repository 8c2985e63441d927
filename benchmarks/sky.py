"""Redshifts of real galaxies, as notebook 08 scores them: both priors, both emulators, and the codes whose redshifts came with the samples.

    POPCOSMOS_DATA=/path/to/data python benchmarks/sky.py [FILE] [N]

Runs notebook 08 at the profile fast, with up to N (its default) galaxies of each sample, after the notebooks that it reads. Half an hour.
Its scores go to FILE (benchmarks/results/sky.json); without the files it says so and leaves FILE as it is.
"""

import json
import sys
from pathlib import Path

from engines import ROOT

from popcosmos_lib.artefacts import data, provenance, store
from popcosmos_lib.catalog import real_galaxies
from popcosmos_lib.workflow import driver, tables


def main(target, n=None):
    """Run the notebook, write ``target``, print the tables."""
    try:
        for place in real_galaxies.FILES.values():
            data.shared(place)
    except FileNotFoundError as missing:
        print(f"not measured: {missing}")
        return
    made = provenance.benchmark(store.home())
    driver.execute("08_photoz", "fast", {"n_real": n} if n else None)
    rows = store.load("sky_scores", "fast").meta["rows"]
    store.write_text(target, json.dumps({"what": "redshifts of real galaxies, notebook 08", **made, "rows": rows}, indent=1) + "\n")
    print(tables.sky({**made, "rows": rows}))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results" / "sky.json", *map(int, sys.argv[2:3]))
