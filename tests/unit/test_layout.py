"""The layout of the library: rooms, their sizes, the imports between them, and the names that users import."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "popcosmos_lib"
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
MODULES = sorted(PACKAGE.rglob("*.py"))
SURFACE = "parameters filters sps emulator universe survey population inference diffusion release catalog".split()
LINT = "from importlinter.cli import lint_imports_command as lint; lint()"


def python(code, cwd=ROOT):
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("name", SURFACE)
def test_what_users_import_works_in_a_fresh_process(name):
    result = python(f"from popcosmos_lib import {name}; print([getattr({name}, item) for item in dir({name}) if item[0] != '_'][:0])")
    assert result.returncode == 0 and result.stdout == "[]\n", result.stderr


def test_the_package_alone_loads_nothing_heavy():
    code = "import sys, popcosmos_lib; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(python(code).stdout.split())
    assert "popcosmos_lib" in loaded and not loaded & {"torch", "numpy", "scipy", "astropy", "matplotlib", "pyarrow", "distributed"}


def test_there_are_at_most_twelve_rooms_and_each_says_what_it_is():
    doors = [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert sorted(doors) == ROOMS and len(ROOMS) <= 12
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    for room in ROOMS:
        text = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
        assert re.search(r"\b[Ii]mport", text) and "notebook" in text.lower(), (
            f"{room.name}: what it may import, and where it is introduced"
        )


def test_no_two_modules_have_names_that_differ_by_a_plural():
    names = [path.stem for path in MODULES if path.name[0] != "_"] + [room.name for room in ROOMS]
    clashes = {name for name in names if name + "s" in names}
    assert not clashes, f"hard to tell apart: {clashes}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_are_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 350, "part it by idea"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            positional = [item.arg for item in node.args.posonlyargs + node.args.args if item.arg not in ("self", "cls")]
            assert node.end_lineno - node.lineno < 60, f"{node.name} has more than 60 lines"
            assert len(positional) <= 8, (
                f"{node.name} takes {len(positional)} positional parameters: group them, or make options keyword-only"
            )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_import_from_rooms(path):
    """The names that the package offers to users are loaded lazily, where the contract of the imports cannot see them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "popcosmos_lib":
            allowed = {room.name for room in ROOMS} | {"__version__"}
            assert {item.name for item in node.names} <= allowed, f"line {node.lineno}: import from the room"


@pytest.fixture
def copy(tmp_path):
    """The Python files of the package beside a pyproject.toml."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "popcosmos_lib", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    return tmp_path


BREACHES = {
    "none": ("galaxies/cosmology.py", "", ""),
    "backwards": (
        "synthesis/igm.py",
        "from popcosmos_lib.catalog import cluster",
        "synthesis is not allowed to import popcosmos_lib.catalog",
    ),
    "sideways": ("density/flows.py", "from popcosmos_lib.sampling import rng", "density is not allowed to import popcosmos_lib.sampling"),
    "late circle": (
        "galaxies/cosmology.py",
        "def late():\n    from popcosmos_lib.galaxies import parameters",
        "No cycles are allowed in popcosmos_lib.galaxies",
    ),
}


@pytest.mark.parametrize("module, line, said", BREACHES.values(), ids=BREACHES)
def test_the_contract_of_the_imports_can_be_broken(copy, module, line, said):
    path = copy / "popcosmos_lib" / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    result = subprocess.run([sys.executable, "-c", LINT, "--no-logo", "--no-cache"], cwd=copy, capture_output=True, text=True)
    assert result.returncode == (1 if line else 0), result.stdout + result.stderr
    assert said in result.stdout
