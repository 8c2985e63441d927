"""The benchmark of the engines: one bad engine does not stop the others, its table says what is missing, its figure stays legible."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch

from popcosmos_lib import store, tables
from popcosmos_lib.figures import emulation

ROOT = Path(__file__).resolve().parents[2]
DEVICE = {"device": {"cpu": "A chip", "gpu": None}, "versions": {"torch": "2"}, "date": "2030-01-02", "rounds": 3}
ROW = {"missing": None, "note": "", "two_threads": None, "gradient": None, "gpu": None, "sigma": None, "sd": None}


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("engines", ROOT / "benchmarks" / "engines.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["engines"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["engines"]


def fail(message):
    raise RuntimeError(message)


def test_a_missing_engine_becomes_a_row_with_the_reason(bench, tmp_path):
    sky = bench.Sky(tmp_path, theta=torch.zeros(8, 16))
    costs = iter([0.1, 0.5, 0.2])
    error = torch.cat([torch.full((50, 2), 0.01), torch.full((50, 2), -0.01)])
    makers = {
        "absent": lambda _: fail(f"nothing at {store.home()}/artefacts"),
        "steady": lambda _: bench.Engine("Steady 1", "a note", lambda: next(costs), error=lambda: error),
        "fragile": lambda _: bench.Engine("Fragile 2", "", lambda: fail("it broke\nin the second line")),
        "differentiable": lambda sky: bench.Engine("Sum", "", lambda: 1e-4, lambda theta: theta.sum(-1), batch=8),
    }
    absent, steady, fragile, differentiable = bench.measure(makers, sky, rounds=3)
    assert absent["missing"] == "nothing at .../artefacts" and fragile["missing"] == "it broke in the second line"
    assert steady["engine"] == "Steady 1" and steady["rate"] == pytest.approx(1 / 0.2), "the median round"
    assert steady["sigma"] == pytest.approx(0.01) and steady["sd"] == pytest.approx(0.01, rel=0.01) and steady["gradient"] is None
    assert differentiable["gradient"] > 0 and differentiable["two_threads"] == pytest.approx(1e4) and torch.get_num_threads() == 1
    table = tables.engines(DEVICE | {"load": 0.1, "rows": [absent, steady, fragile, differentiable]})
    assert "| absent | - | - | - | - | - | - | not measured: nothing at .../artefacts |" in table and "| Steady 1 | 5 | - |" in table


def test_the_table_counts_from_fsps():
    emulator = ROW | {"engine": "emulator", "rate": 123_456.0, "sigma": 0.00123, "sd": 0.02}
    rows = [ROW | {"engine": "FSPS (python-fsps 0)", "rate": 12.34}, emulator]
    table = tables.engines(DEVICE | {"load": 0.1, "rows": rows})
    assert "| FSPS (python-fsps 0) | 12 | 1 |" in table and "| emulator | 120,000 | 10,000 | - | - | 0.0012 mag | 0.0200 mag |" in table
    assert "A chip" in table and "lower limits" not in table
    assert "lower limits" in tables.engines(DEVICE | {"load": 3.0, "rows": rows})


def test_what_was_never_measured_is_said(home):
    assert "make bench" in tables.TABLES["engines"]()
    with pytest.raises(FileNotFoundError, match="make bench"):
        tables.benchmark("engines")


def test_the_committed_result_is_whole_and_names_no_place():
    path = ROOT / "benchmarks" / "results" / "engines.json"
    result = json.loads(path.read_text())
    assert {"device", "versions", "date", "commit", "load", "rounds", "rows"} <= set(result) and len(result["commit"]) == 40
    assert [row["engine"].split()[0] for row in result["rows"]] == ["FSPS", "bagpipes", "synthesis", "emulator", "public"]
    for row in result["rows"]:
        assert row["missing"] or row["rate"] > 0
    assert not any(place in path.read_text() for place in (str(ROOT), str(Path.home()), "/tmp/", "/site-packages"))


@pytest.mark.parametrize("shown", [5, 3, 1, 0])
def test_labels_of_the_figure_do_not_overlap(shown):
    names = ["FSPS (python-fsps 0.4.7)", "bagpipes 1.3.6", "synthesis", "emulator", "public networks"]
    rates, sigmas = [10, 300, 4e3, 6e4, 8e3], [None, 0.009, None, 0.0015, 0.13]
    rows = [ROW | {"engine": name, "rate": rate, "sigma": sigma} for name, rate, sigma in zip(names, rates, sigmas, strict=True)]
    rows = rows[:shown] + [{"engine": name, "missing": "absent"} for name in names[shown:]]
    fig = emulation.engines(rows)
    fig.canvas.draw()
    boxes = [text.get_window_extent() for axis in fig.axes for text in axis.texts]
    assert len(boxes) == shown
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    frames = [axis.get_window_extent() for axis in fig.axes]
    assert all(any(frame.containsx(box.x0) and frame.containsx(box.x1) and frame.containsy(box.y0) for frame in frames) for box in boxes)
