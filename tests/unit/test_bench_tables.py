"""Benchmarks of the agreement and of the public networks: what they write, the tables made of it, and the committed results."""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scripts import DEVICE, script

from popcosmos_lib import population, survey
from popcosmos_lib.emulation import emulator
from popcosmos_lib.fitting import sbc
from popcosmos_lib.population import closure_test
from popcosmos_lib.synthesis import filters
from popcosmos_lib.workflow import pages, tables

ROOT = Path(__file__).resolve().parents[2]


def committed(name):
    """A committed result and its text."""
    text = (ROOT / "benchmarks" / "results" / f"{name}.json").read_text()
    result = json.loads(text)
    assert {"device", "versions", "date", "commit", "load", "rows"} <= set(result) and len(result["commit"]) == 40
    assert not any(place in text for place in (str(ROOT), str(Path.home()), "/tmp/", "/site-packages"))
    return result


def test_differences_are_summarised_by_their_size():
    difference = torch.arange(-100, 101, dtype=torch.float64)
    measured = script("agreement").summary(torch.cat([difference, torch.full((7,), torch.nan)]))
    assert measured == {"n": 201, "median": 50.0, "p95": 95.0, "p99": 99.0, "largest": 100.0}


def test_a_comparison_that_fails_keeps_what_it_had_and_says_why():
    agreement = script("agreement")

    def breaks():
        yield agreement.row("Fragile 2", "bands", "a note", torch.tensor([0.01, -0.02]))
        raise RuntimeError(f"no stars\nbelow {tempfile.gettempdir()}/toy")

    def absent():
        raise FileNotFoundError("no networks")

    first, second, third = agreement.measure({"fragile": breaks, "absent": absent})
    assert first["missing"] is None and first["n"] == 2 and first["largest"] == pytest.approx(0.02)
    assert second == {"engine": "fragile", "missing": "no stars below .../toy"} and third == {"engine": "absent", "missing": "no networks"}
    table = tables.agreement(DEVICE | {"rows": [first, second], "networks": [third]})
    assert "| Fragile 2 | bands | 0.0150 | 0.0195 | 0.0199 | 0.0200 | 2 | a note |" in table
    assert "| fragile | not measured: no stars below .../toy | - | - | - | - | - |  |" in table
    assert "Public networks not measured: no networks" in table and "A chip" in table


def test_the_worst_band_is_named_whatever_its_sign():
    bands = [{"band": name, "n": 9, "offset": offset, "sigma": sigma} for name, offset, sigma in (("u", 0.01, 0.2), ("r", -0.3, 0.1))]
    bands.append({"band": "z", "n": 9, "offset": -0.02, "sigma": 0.15})
    same = {"engine": "Same", "missing": None, "what": "", "note": "", "n": 1000, "median": 2e-5, "p95": 0.0, "p99": 0.1, "largest": 1.0}
    table = tables.agreement(DEVICE | {"rows": [same], "networks": bands})
    assert "| 0.020 mag | -0.300 mag (r) |" in table and "| 0.150 mag | 0.200 mag (u) |" in table and "of 3 bands" in table
    assert "| < 0.0001 | < 0.0001 | 0.1000 | 1.0000 | 1,000 |" in table


def test_without_the_public_networks_the_table_says_so(monkeypatch, tmp_path, capsys):
    release = script("release")
    monkeypatch.delenv("POPCOSMOS_DATA", raising=False)
    monkeypatch.setattr(release.data, "folder", lambda: tmp_path / "none")
    target = tmp_path / "results" / "release.json"
    threads = torch.get_num_threads()
    release.main(target)
    torch.set_num_threads(threads)
    assert json.loads(target.read_text())["missing"].startswith("popcosmos_release/trained_models")
    assert "Not measured: popcosmos_release/trained_models" in capsys.readouterr().out


def test_the_loop_is_shown_beside_all_bands_at_once():
    ratios = {"ratio": 2.346, "recording_ratio": 3.0, "gradient_ratio": 1.5}
    row = {"batch": 1000, "loop": 9_876.0, "fused": 23_456.0, "recording": 8_000.0, "loop_gradient": 3_000.0, "fused_gradient": 4_500.0}
    bound = {"batch": 1000, "flop": 2_660_000, "peak": 1.0e11, "most": 37_594.0, "ratio": 3.81}
    errors = {"scatter": 0.4, "rows": [{"steps": 16, "rate": 5_432.0, "wrong": 0.0123}]}
    measured = {"missing": None, "n": 4000, "apart": 1.2e-6, "rounds": 7, "rows": [row | ratios], "bound": bound, "flux_errors": errors}
    table = tables.release(DEVICE | measured)
    assert "| 1,000 | 9,900 | 23,000 | 2.35 | 8,000 | 3.00 | 3,000 | 4,500 | 1.50 |" in table
    for told in ("1.2e-06 mag over 4,000", "2.66 Mflop", "100 Gflop/s", "allow 38,000", "3.81 times the loop at batch 1,000"):
        assert told in table
    assert "| 16 | 5,400 | 0.0123 |" in table and "Other jobs" not in table
    assert "Other jobs were running (load 2.5" in tables.release(DEVICE | measured | {"load": 2.5})


def test_what_was_never_measured_is_said(home):
    assert all(f"benchmarks/{name}.py" in pages.TABLES[name]() for name in ("agreement", "release", "catalogue", "closure"))


def test_the_committed_agreement_is_within_its_bars():
    result = committed("agreement")
    rows = {(row["engine"].split()[0], row.get("what")): row for row in result["rows"]}
    assert [engine for engine, _ in rows] == ["bagpipes"] * 3 + ["FSPS"] * 11 and not any(row["missing"] for row in rows.values())
    assert len(result["networks"]) == 26 and [row["band"] for row in result["networks"]] == list(filters.SHORT)
    (shipped,) = (row for (engine, what), row in rows.items() if engine == "bagpipes" and "shipped" in what and "mixture" in what)
    assert shipped["median"] <= 0.01 and shipped["p95"] <= 0.04 and shipped["n"] > 2500
    off = [row for (engine, what), row in rows.items() if engine == "FSPS" and "off" in what]
    assert len(off) == 2 and all(row["median"] <= 0.005 and row["p99"] <= 0.02 for row in off)


def test_the_committed_rates_are_whole():
    result = committed("release")
    assert result["missing"] is None and [row["batch"] for row in result["rows"]] == [1, 10, 100, 1000, 4000]
    assert result["apart"] < 1e-4 and all(value > 0 for row in result["rows"] for value in row.values())


def test_a_population_is_seen_as_often_as_asked(monkeypatch):
    bench = script("closure")
    monkeypatch.setattr(bench, "BATCH", 50)
    theta = population.load().sample(50, torch.Generator().manual_seed(1))
    dim = theta.clone()
    dim[::2, 0] -= 4.0  # ten magnitudes fainter: half of them fail
    law = SimpleNamespace(sample=lambda n, generator: dim[:n])
    forward = population.ForwardModel(emulator.load(), survey.load())
    flux, found = bench.seen(law, 60, forward, torch.Generator().manual_seed(2))
    assert flux.shape == (60, 26) and found.shape == (60, 16)
    assert survey.select(flux, population.SELECTION).all() and torch.isin(found[:, 0], theta[1::2, 0]).all(), "only what passes is kept"


def test_the_published_population_is_within_its_bars_on_a_large_sky():
    result = committed("closure")
    rows = {row["population"]: row for row in result["rows"]}
    assert list(rows) == ["floor", "prior", "broad start", "ensemble", "calibrated"] and result["n"] > 40_000
    for name in closure_test.PUBLISHED:
        assert "missed" not in closure_test.verdicts(rows[name]).values(), name
    table = tables.closure(result)
    assert "| missed |" not in table and "broad start" in table and f"{result['n']:,} galaxies" in table


def test_table_of_the_sky_has_scores_and_outliers(monkeypatch, capsys, tmp_path):
    row = {"sample": "kids", "prior": "pop-cosmos", "emulator": "ours", "n": 50, "median": 0.01, "sigma_mad": 0.02, "nmad": 0.018}
    row |= {"outliers": 0.1, "outliers_rail": 0.12}
    wrong = {"sample": "kids", "prior": "pop-cosmos", "emulator": "ours", "wrong": 5, "uncontradicted": 1}
    text = tables.sky(DEVICE | {"rows": [row, wrong]})
    assert "| kids | pop-cosmos | ours | 50 | +0.0100 | 0.0200 | 0.0180 | 10.0% | 12.0% | - | - | - |" in text
    assert "| kids | 5 | 4 |" in text
    monkeypatch.setenv("POPCOSMOS_DATA", str(tmp_path))
    script("sky").main(tmp_path / "sky.json")
    assert "not measured: data/cosmos2020" in capsys.readouterr().out and not (tmp_path / "sky.json").exists()


def test_mocks_that_are_slow_or_grow_in_memory_are_told():
    row = {"survey": "sky", "selection": "r<25", "bands": 26, "population": 9e4, "photometry": 5e4, "noise": 2e4, "derived": 3e4}
    row |= {"drawn": 1e4, "selected": 9000.0}
    streams = [{"n": 10, "wall_s": 1.0, "peak_bytes": 1e9}, {"n": 100, "wall_s": 5.0, "peak_bytes": 1.1e9}]
    content = DEVICE | {"rows": [row], "streams": streams, "threads": 2}
    missed = script("mocks").missed
    assert "| sky | r<25 | 26 | 90,000 |" in tables.mocks(content) and "1.10 GB" in tables.mocks(content)
    assert not list(missed(content))
    row["selected"], streams[1]["peak_bytes"] = 2000.0, 2e9
    assert len(list(missed(content))) == 2
    row["selected"] = 9000.0
    assert len(list(missed(content | {"device": {"cpu": "A chip", "gpu": "A card"}}))) == 2, "a GPU has a bar of its own"


def test_the_committed_mocks_meet_their_bars():
    result = committed("mocks")
    assert not list(script("mocks").missed(result)) and [one["n"] for one in result["streams"]] == [100_000, 1_000_000]


def test_table_of_inference_shows_what_is_missing_and_what_is_missed():
    gate = {"sample": "26 bands", "n": 9, "trusted": 1.0, "effective": 0.9, "chains": 0.1, "seconds": 1.5, "ranks": [0.1, 0.2, 0.3]}
    gate |= {"limit": 0.25, "flagged": 0.04, "spread": 0.3, "gpu_ms": None}
    row = {"engine": "fine", "missing": None, "seconds": 1.0, "distance": 0.05, "largest": 0.2, "sigma_mad": 0.01, "outliers": 0.0}
    row |= {"z": 0.05, "log10M_formed": 0.04, "log10SFR": 0.06, "worst_of_16": 0.3}
    odd = {"kind": "star", "n": 5, "flagged": 0.8, "possible": None}
    content = DEVICE | {"gates": [gate], "oddities": [odd], "rows": [row, {"engine": "gone", "missing": "not installed"}]}
    text = tables.inference(content)
    assert "| 26 bands | 9 | 100.0% | 90.0% | 10.0% | 0.200 | 0.300 | 0.250 | 0.300 | 1.50 | - | 4.0% |" in text
    assert "| star | 5 | 80% | - |" in text
    assert "| fine | 1.00 | 0.05 | 0.04 | 0.06 | 0.20 | 0.30 | 0.0100 | 0% |" in text and "not installed" in text
    problems = list(sbc.missed(content))
    assert len(problems) == 3, "too few effective draws, ranks beyond the limit, stars that pass"
    assert any("effective" in line for line in problems) and any("0.300" in line for line in problems)
    gate |= {"effective": 0.96, "ranks": [0.1, 0.2, 0.2]}
    odd["flagged"] = 0.95
    assert not list(sbc.missed(content))
    exact = row | {"engine": "exact", "log10SFR": 0.2}
    lost = content | {"rows": [exact, {"engine": "exact, 5 x the draws", "missing": "it broke"}]}
    assert len(list(sbc.missed(lost))) == 2, "a quantity too far from converged, and a row that is not there"
    gate |= {"gpu_ms": 80.0, "flagged": 0.06}
    assert len(list(sbc.missed(content))) == 2
