"""The Makefile as a DAG: a plan after each kind of edit, order under -j2, and what it says when asked for help."""

import os
import re
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPS = {"01_a": [], "02_b": [], "03_c": ["02_b"], "04_d": ["02_b", "03_c"], "99_z": ["01_a", "02_b", "03_c", "04_d"]}

# stands in for the interpreter: "runs" a notebook by checking that its inputs are there, and says what it did
FAKE = """#!/usr/bin/env bash
[ "$3" = run ] || exit 0
name=$(basename "$4" .py); out=build/$6; mkdir -p "$out"
deps=$(grep "^deps_$name :=" notebooks/deps.mk | cut -d= -f2)
for dep in $deps; do [ -e "$out/$dep.ipynb" ] || { echo "$dep is missing for $name" >&2; exit 1; }; done
echo "start $name" >> log; sleep 0.2; touch "$out/$name.ipynb"; echo "end $name" >> log
"""


@pytest.fixture
def tree(tmp_path):
    """A small tree under the real Makefile; every notebook's copy is made and up to date."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for folder in ("notebooks", "popcosmos_lib/figures", "popcosmos_lib/artefacts"):
        (tmp_path / folder).mkdir(parents=True)
    for path in (
        "popcosmos_lib/artefacts/store.py",
        "popcosmos_lib/figures/fits.py",
        "profiles.yaml",
        "requirements.lock",
        "pyproject.toml",
    ):
        (tmp_path / path).touch()
    for name in DEPS:
        (tmp_path / "notebooks" / f"{name}.py").touch()
    (tmp_path / "notebooks/deps.mk").write_text("".join(f"deps_{name} := {' '.join(deps)}\n" for name, deps in DEPS.items()))
    (tmp_path / "fake").write_text(FAKE)
    (tmp_path / "fake").chmod(0o755 | stat.S_IXUSR)
    return tmp_path


def make(tree, *words, check=True):
    words = ["make", "--no-print-directory", *words]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "GNUMAKE"))}
    return subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True, check=check)


def planned(tree, *words):
    """Notebooks that make would run."""
    return set(re.findall(r"run notebooks/(\w+)\.py", make(tree, "-n", "PYTHON=./fake", *words).stdout))


def test_the_order_holds_with_two_jobs(tree):
    make(tree, "-j2", "PYTHON=./fake", "figures")
    log = (tree / "log").read_text().split("\n")
    for name, deps in DEPS.items():
        assert all(log.index(f"end {dep}") < log.index(f"start {name}") for dep in deps)
    assert log.index("start 02_b") < log.index("end 01_a"), "two independent notebooks must run at a time"
    assert planned(tree, "figures") == set()


@pytest.mark.parametrize(
    ("edited", "expected"),
    [
        ("notebooks/01_a.py", {"01_a", "99_z"}),
        ("notebooks/02_b.py", {"02_b", "03_c", "04_d", "99_z"}),
        ("notebooks/03_c.py", {"03_c", "04_d", "99_z"}),
        ("notebooks/99_z.py", {"99_z"}),
        ("popcosmos_lib/artefacts/store.py", set(DEPS)),
        ("popcosmos_lib/figures/fits.py", set(DEPS)),
        ("profiles.yaml", set(DEPS)),
        ("README.md", set()),
    ],
)
def test_an_edit_reruns_what_depends_on_it(tree, edited, expected):
    make(tree, "PYTHON=./fake", "notebooks")
    (tree / edited).touch()
    future = time.time() + 5
    os.utime(tree / edited, (future, future))
    assert planned(tree, "figures") == expected


def test_one_notebook_runs_with_what_it_reads(tree):
    assert planned(tree, "03_c") == {"02_b", "03_c"}
    assert "--profile smoke" in make(tree, "-n", "PYTHON=./fake", "PROFILE=smoke", "03_c").stdout


def test_a_failing_notebook_fails_the_target(tree):
    (tree / "fake").write_text("#!/bin/sh\nexit 1\n")
    result = make(tree, "PYTHON=./fake", "figures", check=False)
    assert result.returncode != 0 and not (tree / "build").exists()


def test_the_environment_is_made_once_and_again_when_the_lock_changes(tree):
    assert "-r requirements.lock" in make(tree, "-n", "test").stdout
    (tree / ".venv").mkdir()
    for stamp in (".lock", ".ready"):
        (tree / ".venv" / stamp).touch()
    plan = make(tree, "-n", "test").stdout
    assert "pip install" not in plan and "pytest" in plan
    future = time.time() + 5
    os.utime(tree / "pyproject.toml", (future, future))
    plan = make(tree, "-n", "test").stdout
    assert "-r requirements.lock" not in plan and "pip install" in plan, "an edited pyproject reinstalls the package only"
    os.utime(tree / "requirements.lock", (future, future))
    plan = make(tree, "-n", "test").stdout
    assert plan.index("venv --clear") < plan.index("-r requirements.lock") < plan.index("--no-deps") < plan.index("pytest")


def test_help_is_the_default_and_names_every_target(tree):
    said = make(tree).stdout
    assert said == make(tree, "help").stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].replace("$(NB)", "").split()
    for target in targets:
        assert len(re.findall(rf"^  {target} +\S", said, re.M)) == 1, f"{target} needs one line of help"
    assert "04_d" in said


def test_the_ci_command_is_the_readme_command():
    script = (ROOT / ".ci/run").read_text()
    assert os.access(ROOT / ".ci/run", os.X_OK) and "exec make test" in script and "POPCOSMOS_DATA" in script
    assert "make test" in (ROOT / "README.md").read_text() and "make figures" in (ROOT / "README.md").read_text()
