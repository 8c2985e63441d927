"""Do the checked lines hold elsewhere? The smoke references, replayed from nothing with other threads and without vector instructions.

Each setting gets an empty store, so every network is trained again under it. Prints one line per setting; exits non-zero if one differs.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "1 thread": {"POPCOSMOS_THREADS": "1"},
    "2 threads": {"POPCOSMOS_THREADS": "2"},
    "no vector instructions": {"POPCOSMOS_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"},
}
PYTEST = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "tests/notebooks/reference"]


def replay(setting):
    """Exit status and last lines of the replay under one setting."""
    with tempfile.TemporaryDirectory() as home:
        for name in ("notebooks", "figures", "benchmarks", "profiles.yaml", "data_manifest.yaml"):
            (Path(home) / name).symlink_to(ROOT / name)
        environment = (
            os.environ | setting | {"POPCOSMOS_HOME": home, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": setting["POPCOSMOS_THREADS"]}
        )
        result = subprocess.run(PYTEST, cwd=ROOT, env=environment, capture_output=True, text=True)
    return result.returncode, result.stdout


def main():
    """Replay under each setting."""
    worst = 0
    for name, setting in SETTINGS.items():
        began = time.perf_counter()
        status, said = replay(setting)
        print(f"{name}: {'the checked lines hold' if status == 0 else 'DIFFERENT'} ({time.perf_counter() - began:.0f} s)", flush=True)
        if status:
            print(said[-6000:])
        worst = max(worst, status)
    return worst


if __name__ == "__main__":
    sys.exit(main())
