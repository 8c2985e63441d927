"""The driver and a notebook's run: nothing runs on a wrong request, nothing good is lost on a failure."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest
import torch

from popcosmos_lib.__main__ import main
from popcosmos_lib.artefacts import store
from popcosmos_lib.workflow import notebook, pages, publish, run

FAILING = """\
# %% tags=["parameters"]
profile: str = "fast"
seed: int = 1
bad: bool = False

# %%
print("before")

# %%
assert not bad, "the sky fell"

# %%
print("after")
"""


def write(home, name, text):
    (home / "notebooks" / f"{name}.py").write_text(text)
    return home / "notebooks" / f"{name}.py"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-p", "scael=2"], "no parameter 'scael': did you mean 'scale'?"),
        (["-p", "n=2.5"], "parameter 'n' is declared int, got '2.5'"),
        (["-p", "n=many"], "parameter 'n' is declared int"),
        (["-p", "shout=maybe"], "parameter 'shout' is declared bool"),
        (["-p", "n"], "write -p name=value"),
        (["-p", "profile=smoke"], "give --profile"),
    ],
)
def test_a_wrong_parameter_stops_before_anything_runs(tiny, capsys, words, sentence):
    assert main(["run", "notebooks/01_tiny.py", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tiny / "build").exists() and not (tiny / "artefacts").exists()


def test_an_unknown_notebook_is_refused(tiny, capsys):
    assert main(["run", "notebooks/01_tinny.py"]) == 2
    assert "notebooks/ has 01_tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{scal: 2.0}", "did you mean 'scale'?"),
        ("{scale: 1e-4}", "write 1.0e-4"),
        ("{n: true}", "declared int, got True"),
        ("{n: 2.0}", "declared int, got 2.0"),
        ("{shout: 1}", "declared bool, got 1"),
    ],
)
def test_a_wrong_override_stops_too(tiny, capsys, line, sentence):
    (tiny / "profiles.yaml").write_text(f"smoke:\n  01_tiny: {line}\n")
    assert main(["run", "01_tiny", "--profile", "smoke"]) == 2
    assert sentence in capsys.readouterr().err and not (tiny / "build").exists()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("n = 5", "write `name: type = value"),
        ("n: list = [1]", "write `name"),
        ("n: int = 2 * 3", "literal"),
        ("n: int = 1.5", "is declared"),
    ],
)
def test_a_parameters_cell_holds_typed_literals(home, line, sentence):
    source = write(home, "01_x", f'# %% tags=["parameters"]\n{line}\n')
    with pytest.raises(ValueError, match=re.escape(sentence)):
        notebook.parameters(source)


def test_parameters_keep_their_meaning(tiny):
    scale = notebook.parameters(notebook.path("01_tiny"))[3]
    assert (scale.name, scale.type, scale.value, scale.meaning) == ("scale", "float", 1.0, "spread [mag]")
    assert notebook.injected("smoke", "01_tiny") == {"profile": "smoke", "n": 2, "scale": 2.0}
    assert isinstance(notebook.injected("smoke", "01_tiny")["scale"], float)


def test_generators_depend_on_seed_notebook_and_label_only(tiny):
    def draw(seed, label):
        this = run.Run("01_tiny", "fast", seed)
        torch.rand(7, generator=this.generator("other"))
        return torch.rand(3, generator=this.generator(label)).tolist()

    assert draw(1, "a") == draw(1, "a")
    assert len({tuple(draw(*key)) for key in [(1, "a"), (1, "b"), (2, "a")]}) == 3


def test_threads_follow_the_profile(monkeypatch):
    monkeypatch.delenv("POPCOSMOS_THREADS", raising=False)
    assert [run.threads(profile) for profile in ("smoke", "fast", "full")] == [1, 2, os.cpu_count()]
    with pytest.raises(ValueError, match="profile must be one of"):
        run.threads("quick")


def test_an_outside_file_must_exist_and_is_recorded_without_its_place(tiny, tmp_path):
    this = run.Run("01_tiny", "fast", 1)
    (tmp_path / "mine.fits").write_bytes(b"galaxies")
    assert this.file(tmp_path / "mine.fits").name == "mine.fits"
    this.finish()
    assert list(json.loads((tiny / "build/fast/records/01_tiny.json").read_text())["inputs"]) == ["mine.fits"]
    with pytest.raises(FileNotFoundError, match="no.fits is not at"):
        this.file(tmp_path / "no.fits")


def test_from_notebook_to_published(tiny, capsys):
    """One chain: run twice to the same bytes, record, figures, reading copy, reference, tables; then each way to spoil it."""
    (tiny / "data_manifest.yaml").write_text("{}\n")
    (tiny / "README.md").write_text("<!-- generated:figures -->\n<!-- /generated -->\n<!-- generated:runtimes -->\n<!-- /generated -->\n")
    (tiny / "docs").mkdir()
    for page in pages.PAGES[1:]:
        (tiny / page).touch()
    (tiny / "docs/figures.md").write_text("<!-- generated:sources -->\n<!-- /generated -->\n")
    (tiny / "REPRODUCING.md").write_text("<!-- generated:parameters -->\n<!-- /generated -->\n")
    copy, figure = tiny / "build/fast/01_tiny.ipynb", tiny / "figures/tiny.pdf"
    assert main(["run", "notebooks/01_tiny.py"]) == 0
    first = copy.read_bytes(), figure.read_bytes()
    assert main(["run", "notebooks/01_tiny.py"]) == 0
    assert (copy.read_bytes(), figure.read_bytes()) == first, "two runs must write the same bytes"

    record = json.loads((tiny / "build/fast/records/01_tiny.json").read_text())
    assert record["parameters"] == {"profile": "fast", "seed": 3, "n": 5, "scale": 1.0, "shout": False}
    assert record["outputs"] == {"tiny": store.load("tiny").sha256} and set(record["figures"]["tiny"]) == {"pdf", "png"}
    assert record["threads"] == 2 and record["cpu_s"] > 0 and record["peak_mb"] > 50 and record["device"]["cpu"]
    assert str(tiny) not in json.dumps(record)

    assert main(["figures"]) == main(["copies"]) == 0
    pages.update()
    row = "| [tiny](figures/tiny.png) | [01_tiny](notebooks/01_tiny.ipynb) | Alsing+24 fig. 1 | analogue |"
    assert row in (tiny / "README.md").read_text()
    assert "| [tiny](../figures/tiny.png) | [01_tiny](../notebooks/01_tiny.ipynb) |" in (tiny / "docs/figures.md").read_text()
    assert "| 01_tiny | `n` | numbers drawn | `2` | `5` | `5` |" in (tiny / "REPRODUCING.md").read_text()
    manifest = json.loads((tiny / "figures/manifest.json").read_text())
    assert manifest["tiny"]["sha256"] == record["figures"]["tiny"] and manifest["tiny"]["profile"] == "fast"
    document = nbformat.read(tiny / "notebooks/01_tiny.ipynb", 4)
    assert [cell.id for cell in document.cells] == [f"cell-{i:02d}" for i in range(len(document.cells))]
    assert any("image/png" in output.get("data", {}) for cell in document.cells for output in cell.get("outputs", []))
    assert notebook.problems(document, notebook.path("01_tiny"), {}) == []

    capsys.readouterr()
    spoiled = figure.read_bytes()
    figure.write_bytes(spoiled + b" ")
    (tiny / "figures/stray.png").write_bytes(b"")
    assert main(["figures"]) == 1
    said = capsys.readouterr().err
    assert "tiny.pdf is not the file that 01_tiny made" in said and "stray.png belongs to no declared figure" in said
    source = notebook.path("01_tiny")
    source.write_text(source.read_text().replace("# # Tiny", "# # Changed"))
    assert main(["copies"]) == 1 and "run from another text" in capsys.readouterr().err

    assert main(["run", "01_tiny", "-p", "n=6"]) == 0
    assert copy.stat().st_mtime < source.stat().st_mtime, "a copy with other parameters must look out of date to make"
    assert "parameters.n was 5, is 6; recomputing" in capsys.readouterr().err
    assert main(["copies"]) == 1 and "was run with {'n': 6}" in capsys.readouterr().err
    assert main(["figures"]) == 1 and "01_tiny was last run with another n" in capsys.readouterr().err


def test_smoke_becomes_a_reference_without_pictures(tiny):
    assert main(["run", "01_tiny", "--profile", "smoke"]) == 0
    publish.references()
    document = nbformat.read(tiny / "tests/notebooks/reference/01_tiny.ipynb", 4)
    assert notebook.problems(document, notebook.path("01_tiny"), notebook.injected("smoke", "01_tiny")) == []
    assert "image/png" not in json.dumps(document) and "n = 2" in json.dumps(document)
    assert not list((tiny / "figures").glob("*.pdf")) and (tiny / "build/smoke/figures/tiny.pdf").exists()


def test_a_failure_keeps_the_last_good_copy(home, capsys):
    write(home, "01_fails", FAILING)
    good, failed = home / "build/fast/01_fails.ipynb", home / "build/fast/failed/01_fails.ipynb"
    assert main(["run", "01_fails"]) == 0
    before = good.read_bytes()
    assert main(["run", "01_fails", "-p", "bad=true"]) == 1
    said = capsys.readouterr().err
    assert 'assert not bad, "the sky fell"' in said and "AssertionError: the sky fell" in said
    assert "build/fast/failed/01_fails.ipynb" in said and re.search(r"cell \d+ failed", said)
    assert good.read_bytes() == before and "Traceback" in failed.read_text()
    assert "after" not in [output.get("text") for cell in nbformat.read(failed, 4).cells for output in cell.get("outputs", [])]
    assert main(["run", "01_fails"]) == 0
    assert not failed.exists() and not list((home / "build/fast").glob(".*.ipynb"))


TWO_STAGES = """\
# %% tags=["parameters"]
profile: str = "fast"
seed: int = 1
wait: float = 60.0

# %%
import time
from pathlib import Path

import torch

from popcosmos_lib.artefacts import store
from popcosmos_lib.workflow import run

this = run.start("01_two", profile=profile, seed=seed)

# %%
this.artefact("first", lambda: {"x": torch.rand(3, generator=this.generator())}).sha256

# %%
def second():
    (store.home() / "second_started").touch()
    time.sleep(wait)
    return {"x": torch.ones(3)}

this.artefact("second", second).sha256
"""


def test_a_kill_loses_only_the_stage_in_progress(home):
    """kill -9 of the driver while the second stage computes; the kernel goes with it, the first stage is read back."""
    write(home, "01_two", TWO_STAGES)
    process = subprocess.Popen([sys.executable, "-m", "popcosmos_lib", "run", "01_two"])
    deadline = time.monotonic() + 120
    while not (home / "second_started").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert process.poll() is None and (home / "second_started").exists(), "the second stage never began"
    first = store.load("first")
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = first.path.stat().st_mtime_ns
    assert not (home / "build/fast/01_two.ipynb").exists(), "a killed run must not look complete"
    with pytest.raises(store.Missing):
        store.load("second")
    began = time.monotonic()
    assert main(["run", "01_two", "-p", "wait=0"]) == 0
    assert time.monotonic() - began < 50, "the orphaned kernel must die with its driver and let go of the artefact"
    assert store.load("first").path.stat().st_mtime_ns == made and store.load("second").data["x"].sum() == 3
    assert not list((home / "build/fast").glob(".*.ipynb"))
