"""What one galaxy costs from a cold start: ``python -m popcosmos_lib fit`` in a fresh process, imports and summary page included.

    python benchmarks/startup.py [CHECKOUT]

Prints CPU and wall seconds, median and range of five runs; it writes no file. CHECKOUT is another checkout of this repository with its own
``.venv``, such as an earlier commit: the two then take turns.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 5
HERE = Path(__file__).resolve().parents[1]


def python(root):
    """Interpreter of a checkout: its own environment, or for this one the interpreter that runs this script."""
    return sys.executable if root == HERE else str(root / ".venv" / "bin" / "python")


def command(root, *words):
    """CPU and wall time of a command of the package [s]."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(root), "POPCOSMOS_HOME": str(root)}
    subprocess.run([python(root), "-m", "popcosmos_lib", *map(str, words)], cwd=root, env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, time.perf_counter() - began


def main(others):
    """Measure and print."""
    roots = [HERE, *(Path(other).resolve() for other in others)]
    times = {root: [] for root in roots}
    with tempfile.TemporaryDirectory() as folder:
        mock = Path(folder) / "one.parquet"
        command(HERE, "mock", "--n", 1, "--out", mock)
        for i in range(ROUNDS + 1):
            for j, root in enumerate(roots):
                spent = command(root, "fit", mock, "--out", Path(folder) / f"{i}_{j}.parquet")
                if i:  # the first run of each may have to make what later ones find
                    times[root].append(spent)
    for root in roots:
        for kind, values in zip(("CPU", "wall"), zip(*times[root], strict=True), strict=True):
            name = "this checkout" if root == HERE else root.name
            print(f"{name:>14}  {kind:>4}  {statistics.median(values):5.2f} s  ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main(sys.argv[1:])
