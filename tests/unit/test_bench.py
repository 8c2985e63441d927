"""The benchmarks. Engines: a bad one does not stop the others, the table says what is missing, the figure stays legible. Choices of the
emulator: each changes something, in its own row only."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from scripts import DEVICE, script

from popcosmos_lib.artefacts import store
from popcosmos_lib.emulation import emulator, inputs, photulator_training, training
from popcosmos_lib.figures import emulation
from popcosmos_lib.galaxies import priors, universe
from popcosmos_lib.synthesis import sps
from popcosmos_lib.workflow import pages, tables

ROOT = Path(__file__).resolve().parents[2]
MEASURED = DEVICE | {"rounds": 3}
ROW = {"missing": None, "note": "", "two_threads": None, "gradient": None, "gpu": None, "sigma": None, "sd": None}


@pytest.fixture(scope="module")
def bench():
    return script("engines")


@pytest.fixture(scope="module")
def variants():
    return script("choices")


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
    table = tables.engines(MEASURED | {"rows": [absent, steady, fragile, differentiable]})
    assert "| absent | - | - | - | - | - | - | not measured: nothing at .../artefacts |" in table and "| Steady 1 | 5 | - |" in table


def test_the_table_counts_from_fsps():
    emulator = ROW | {"engine": "emulator", "rate": 123_456.0, "sigma": 0.00123, "sd": 0.02}
    rows = [ROW | {"engine": "FSPS (python-fsps 0)", "rate": 12.34}, emulator]
    table = tables.engines(MEASURED | {"rows": rows})
    assert "| FSPS (python-fsps 0) | 12 | 1 |" in table and "| emulator | 120,000 | 10,000 | - | - | 0.0012 mag | 0.0200 mag |" in table
    assert "A chip" in table and "lower limits" not in table
    assert "lower limits" in tables.engines(MEASURED | {"load": 3.0, "rows": rows})


def test_what_was_never_measured_is_said(home):
    assert all(f"benchmarks/{name}.py" in pages.TABLES[name]() for name in ("engines", "choices"))
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


def test_each_choice_changes_its_row_and_no_other(variants, monkeypatch):
    synthesiser, generator = sps.load(["hsc_g", "NB816.SuprimeCam", "irac1_cosmos"]), torch.Generator().manual_seed(1)
    known = inputs.tabulate(synthesiser)
    monkeypatch.setattr(photulator_training, "tabulate", lambda _: known)
    monkeypatch.setattr(photulator_training, "_HELD_OUT", 100)
    monkeypatch.setattr(training, "_ENTRIES", 1)
    monkeypatch.setattr(variants, "ROUNDS", 1)
    monkeypatch.setattr(variants, "SIZE", {"n_train": 800, "steps": 40, "hidden": (16, 16)})
    galaxies, corners = universe.sample(400, generator), priors.Broad().sample(400, generator)
    baseline, *others = [choice for choice in variants.choices(variants.targets(synthesiser)) if not choice.size]
    rows = [variants.measure(choice, synthesiser, galaxies, corners) for choice in [baseline, *others, baseline]]
    first, *changed, last = [(row["sigma"], row["sd"], row["tail"], row["corners"]) for row in rows]
    assert first == last, "a patch outlived its row"
    assert all(scores != first for scores in changed) and len(changed) == 9
    sigma = {row["choice"]: row["sigma"][0] for row in rows}
    assert sigma["inputs"] > 10 * sigma["baseline"] and sigma["lines"] > 2 * sigma["baseline"], "the first estimate and its lines carry"


def test_silu_is_where_the_trainable_activation_starts(variants):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
    trainable, fixed = (kind([4, 8, 8, 2], torch.Generator().manual_seed(3)) for kind in (emulator.Speculator, variants.Silu))
    for network in (trainable, fixed):
        torch.nn.init.ones_(network.weights[-1])
    torch.testing.assert_close(fixed(x), trainable(x))
    torch.nn.init.ones_(trainable.gammas[0])
    assert not torch.allclose(fixed(x), trainable(x))


def test_the_average_replaces_the_weights_after_the_last_step(variants):
    plain, averaged = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimisers = [torch.optim.Adam([plain], 0.1), variants.Averaged([averaged], 0.1, decay=0.6, steps=4)]
    path = []
    for slope in (1.0, 3.0, -2.0, 0.5):
        for weight, optimiser in zip((plain, averaged), optimisers, strict=True):
            weight.grad = torch.tensor([slope])
            optimiser.step()
        path.append(plain.item())
    mean = sum(path[:2]) / 2  # while it is young
    for value in path[2:]:
        mean = 0.6 * mean + 0.4 * value
    assert averaged.item() == pytest.approx(mean) and averaged.item() != pytest.approx(path[-1], rel=0.01)


def test_the_table_of_choices_counts_from_the_baseline():
    scores = {"sd": [0.01, 0.1], "tail": [0.1, 1.0], "corners": [0.02, 0.2], "cpu_s": 49.6, "rate": 61_234.0}
    sigmas = {"baseline": 0.002, "a|b": 0.003}
    rows = [scores | {"choice": name, "changed": "One thing.", "sigma": [sigma, 0.03]} for name, sigma in sigmas.items()]
    size = {"n_train": 60_000, "steps": 2_500, "hidden": [128, 64], "n_test": 10_000}
    table = tables.choices(DEVICE | {"size": size, "rows": rows})
    assert "| a\\|b | One thing. | 0.0030 / 0.0300 | 1.50 | 0.0100 / 0.1000 | 0.1000 / 1.0000 | 0.0200 / 0.2000 | 50 | 61,000 |" in table
    assert "60,000 galaxies, 2,500 steps, hidden 128 64" in table and "A chip" in table


def test_the_committed_choices_are_those_of_the_script_and_name_no_place(variants):
    path = ROOT / "benchmarks" / "results" / "choices.json"
    result = json.loads(path.read_text())
    assert {"device", "versions", "date", "commit", "load", "size", "rows"} <= set(result) and len(result["commit"]) == 40
    assert [(row["choice"], row["changed"]) for row in result["rows"]] == [(c.name, c.changed) for c in variants.choices((None, None))]
    assert result["size"] == json.loads(json.dumps(variants.SIZE)) | {"n_test": variants.N_TEST}
    assert all(0 < row["sigma"][0] <= row["sigma"][1] and row["rate"] > 0 for row in result["rows"])
    assert not any(place in path.read_text() for place in (str(ROOT), str(Path.home()), "/tmp/", "/site-packages"))
