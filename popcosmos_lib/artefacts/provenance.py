"""Provenance of a run: commit, versions, hardware, digests and cost.

Nothing here depends on where the repository lies, so two machines with the same state write the same words.
Used by ``store`` (sidecars) and ``run`` (records); shown in notebook 99.
"""

import hashlib
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import date
from importlib import metadata
from pathlib import Path

import psutil
import torch

__all__ = ["SOURCES", "benchmark", "cost", "device", "git", "sha256", "versions"]

SOURCES = ["popcosmos_lib", "notebooks/*.py", "profiles.yaml"]  # what decides a result; figures and copies do not
_PACKAGES = ["astropy", "fsps", "matplotlib", "numpy", "safetensors", "scipy", "torch"]


def sha256(path):
    """Digest of a file, as 64 hexadecimal characters."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git(root):
    """Commit of the repository and whether its sources differ from it.

    Parameters
    ----------
    root : Path
        Repository root.

    Returns
    -------
    dict
        ``commit`` (40 characters, None outside git) and ``dirty`` (True, False, or None outside git).
    """

    def ask(*words):
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(ask("rev-parse", "--show-toplevel")).resolve() != Path(root).resolve():
            return {"commit": None, "dirty": None}  # a copy that lies inside somebody else's repository
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--", *SOURCES))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def versions():
    """Versions of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES}


def benchmark(root, *packages):
    """What a benchmark keeps beside its numbers, asked before it starts: date, commit, device, versions and the load of the machine.

    Parameters
    ----------
    root : Path
        As for ``git``.
    *packages : str
        Others whose versions matter.

    Returns
    -------
    dict
    """
    return {
        "date": date.today().isoformat(),
        **git(root),
        "device": device(),
        "versions": versions() | {name: metadata.version(name) for name in packages},
        "load": round(os.getloadavg()[0], 2),
    }


def device():
    """Names of the processor and, where there is one, of the accelerator."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {"cpu": cpu, "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}


def cost():
    """Cost of this process so far, workers included.

    Returns
    -------
    dict
        ``wall_s`` since the process began [s], ``cpu_s`` of it and its finished children [s], ``peak_mb`` resident memory [MB],
        ``threads`` of torch.
    """
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1e6 if sys.platform == "darwin" else 1e3  # macOS counts bytes, Linux kilobytes
    return {
        "wall_s": round(time.time() - psutil.Process().create_time(), 1),
        "cpu_s": round(own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, 1),
        "peak_mb": round(own.ru_maxrss / unit),
        "threads": torch.get_num_threads(),
    }
