"""Benchmarks as modules, and what their results say of the machine."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEVICE = {"device": {"cpu": "A chip", "gpu": None}, "versions": {"torch": "2"}, "date": "2030-01-02", "load": 0.1}


def script(name):
    """A benchmark as a module; what it imports from its folder is forgotten again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules.pop("engines", None)
    return module
