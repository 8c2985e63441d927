"""The store keeps its word: right bytes or a stated reason to compute again."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from astropy.table import Table

from popcosmos_lib.artefacts import store


def make(name="x", value=1.0, calls=None, **options):
    """Store one tensor; ``calls`` counts the computations."""

    def compute():
        if calls is not None:
            calls.append(name)
        return {"v": torch.full((4,), value)}, {"history": [value]}

    return store.load_or_compute(name, compute, profile="fast", **options)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("safetensors", {"a": torch.arange(6.0, dtype=torch.float64).reshape(2, 3), "b": torch.tensor([True, False])}),
        ("npz", {"a": np.arange(6).reshape(2, 3)}),
        ("parquet", Table({"z": np.array([0.5, np.nan]), "name": ["u", "Ks"], "train": [True, False]})),
    ],
)
def test_what_is_read_is_what_was_stored(home, kind, data):
    fresh = store.load_or_compute("x", lambda: (data, {"score": np.float32(0.5)}), profile="fast", kind=kind)
    again = store.load("x")
    assert fresh.sha256 == again.sha256 and fresh.meta == again.meta == {"score": 0.5}
    for key in data.columns if kind == "parquet" else data:
        np.testing.assert_array_equal(np.asarray(again.data[key]), np.asarray(data[key]))
        assert np.asarray(again.data[key]).dtype.kind == np.asarray(data[key]).dtype.kind


def test_equal_keys_compute_once(home):
    calls = []
    first, second = make(calls=calls, seed=1), make(calls=calls, seed=1)
    assert calls == ["x"] and first.sha256 == second.sha256 and second.meta == {"history": [1.0]}


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ({"version": 1}, {"version": 2}, "version was 1, is 2"),
        ({"seed": 1}, {"seed": 2}, "seed was 1, is 2"),
        ({"parameters": {"n": 5}}, {"parameters": {"n": 6}}, "parameters.n was 5, is 6"),
        ({"parameters": {"n": 5}}, {"parameters": {"n": 5, "m": None}}, "parameters.m was absent, is null"),
        ({"inputs": {"mock": "a" * 64}}, {"inputs": {"mock": "b" * 64}}, "inputs.mock was"),
        ({"inputs": {"mock": "a" * 64}}, {}, "inputs.mock was"),
    ],
)
def test_each_difference_is_printed_and_computed_again(home, capsys, before, after, sentence):
    calls = []
    make(calls=calls, **before)
    make(calls=calls, **after)
    assert len(calls) == 2
    assert f"store: x: {sentence}" in capsys.readouterr().err
    make(calls=calls, **after)
    assert len(calls) == 2


def test_an_input_artefact_counts_by_its_bytes(home):
    calls = []
    for value, expected in ((1.0, 1), (1.0, 1), (2.0, 2)):
        make("y", calls=calls, inputs=[make("x", value, parameters={"value": value})])
        assert len(calls) == expected


@pytest.mark.parametrize("harm", ["truncated", "altered", "no sidecar", "half a sidecar"])
def test_a_damaged_file_is_named_and_computed_again(home, capsys, harm):
    artefact, calls = make(), []
    content, side = artefact.path.read_bytes(), artefact.path.with_suffix(".json")
    if harm == "truncated":
        artefact.path.write_bytes(content[:-7])
    elif harm == "altered":
        artefact.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "no sidecar":
        side.unlink()
    else:
        side.write_text(side.read_text()[:40])
    with pytest.raises(store.Damaged, match="artefacts/fast/x.safetensors"):
        store.load("x")
    make(calls=calls)
    said = capsys.readouterr().err
    assert calls == ["x"] and "artefacts/fast/x.safetensors" in said and "recomputing" in said
    assert store.load("x").sha256 == artefact.sha256


def test_a_missing_artefact_names_the_command(home):
    (home / "notebooks" / "02_emulator.py").write_text('this.artefact("emulator", compute)\n')
    with pytest.raises(store.Missing, match=r"no 'emulator' for profile 'fast' yet: run .*02_emulator.py` \(or `make 02_emulator`"):
        store.load("emulator")
    with pytest.raises(store.Missing, match="--profile smoke"):
        store.load("emulator", "smoke")
    with pytest.raises(FileNotFoundError, match="no published 'nothing'"):
        store.load("nothing", "published")


def test_wrong_requests_are_explained(home):
    with pytest.raises(ValueError, match="kind must be one of"):
        make(kind="pickle")
    with pytest.raises(ValueError, match="letters, digits and underscores"):
        make("../x")
    with pytest.raises(TypeError, match="parameters of 'x' must hold numbers"):
        make(parameters={"f": print})
    with pytest.raises(TypeError, match="parquet artefact is a Table"):
        make(kind="parquet")
    assert not list((home / "artefacts").rglob("x.*"))


SLEEPER = """
import sys, time, torch
from popcosmos_lib.artefacts import store

def compute():
    print("computing", flush=True)
    time.sleep(float(sys.argv[1]))
    return {"v": torch.full((4,), 2.0)}

store.load_or_compute("x", compute, profile="fast", version=int(sys.argv[2]))
"""


def sleeper(seconds, version):
    return subprocess.Popen([sys.executable, "-c", SLEEPER, str(seconds), str(version)], stdout=subprocess.PIPE, text=True)


def test_a_kill_keeps_the_last_artefact(home):
    before = make(version=1)
    process = sleeper(60, 2)
    assert process.stdout.readline() == "computing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert store.load("x").sha256 == before.sha256


def test_left_overs_of_a_kill_are_swept_and_never_read(home):
    folder = home / "artefacts" / "fast"
    folder.mkdir(parents=True)
    (folder / ".x.safetensors.123.tmp").write_bytes(b"half")
    make()
    assert sorted(path.name for path in folder.iterdir()) == [".x.safetensors.lock", "x.json", "x.safetensors"]


def test_two_processes_compute_once(home):
    first = sleeper(1.5, 1)
    assert first.stdout.readline() == "computing\n"
    began, calls = time.perf_counter(), []
    second = make(calls=calls, version=1)
    first.communicate()
    assert first.returncode == 0 and calls == [] and second.data["v"][0] == 2.0
    assert time.perf_counter() - began > 0.5  # it waited


def test_sidecars_hold_no_path(home):
    side = json.loads(make().path.with_suffix(".json").read_text())
    assert str(home) not in json.dumps(side) and os.path.expanduser("~") + "/" not in json.dumps(side)
    assert set(side["key"]) == {"version", "parameters", "seed", "inputs"}
