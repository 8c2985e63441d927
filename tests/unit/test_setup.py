"""One environment, three files that describe it: pyproject.toml, requirements.lock, environment.yml."""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import popcosmos_lib

ROOT = Path(__file__).resolve().parents[2]
CARD = ["jupyterlab", "jupytext", "papermill", "torch", "fsps", "astropy", "corner", "matplotlib", "nbval"]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def numbers(version):
    return [int(part) for part in re.findall(r"\d+", version.split("+")[0])]


@pytest.fixture(scope="module")
def lock():
    lines = (ROOT / "requirements.lock").read_text().split("\n")
    return {canonical(name): version for name, version in (line.split("==") for line in lines if line)}


@pytest.fixture(scope="module")
def wanted():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    words = project["dependencies"] + project["optional-dependencies"]["test"]
    triples = [re.fullmatch(r"([\w.-]+)(==|>=)([\w.]+)", word).groups() for word in words]
    return {canonical(name): (sign, version) for name, sign, version in triples}


@pytest.fixture(scope="module")
def conda():
    items = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    return [item for item in items if isinstance(item, str)], next(item["pip"] for item in items if isinstance(item, dict))


def test_the_lock_pins_everything_and_names_no_machine(lock):
    text = (ROOT / "requirements.lock").read_text()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in text.splitlines()), "exact versions only: no path, no address, no hash"
    assert lock["torch"] == "2.13.0" and lock["fsps"] == "0.4.7"


def test_the_lock_has_what_the_package_asks_for(lock, wanted):
    for name, (sign, version) in wanted.items():
        assert name in lock, f"{name} is in pyproject.toml but not in requirements.lock"
        assert lock[name] == version if sign == "==" else numbers(lock[name]) >= numbers(version), name


@pytest.mark.parametrize("name", CARD)
def test_the_card_packages_are_in_all_three_and_agree(lock, wanted, conda, name):
    assert name in lock and name in wanted
    assert f"{name}=={lock[name]}" in conda[1]


def test_conda_takes_python_from_conda_and_packages_from_the_lock(conda):
    packages, pip = conda
    assert [re.split("[=<>]", item)[0] for item in packages] == ["python", "make", "pip"]
    assert pip[:2] == ["-r requirements.lock", "-e ."]


def test_every_import_of_the_library_is_declared(wanted):
    """A module that the lock happens to hold for another reason is not ours to import."""
    providers = {module: {canonical(name) for name in names} for module, names in metadata.packages_distributions().items()}
    for path in (ROOT / "popcosmos_lib").rglob("*.py"):
        for module in re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.M):
            if module not in sys.stdlib_module_names and module != "popcosmos_lib" and module in providers:
                assert providers[module] & wanted.keys(), f"{path.name} imports {module}: declare it in pyproject.toml"


def test_the_installed_package_is_this_checkout():
    assert Path(popcosmos_lib.__file__).resolve().parent == ROOT / "popcosmos_lib"
    assert metadata.version("popcosmos") == popcosmos_lib.__version__
    files = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = [path for path in (ROOT / "popcosmos_lib").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    for path in shipped:
        room = ".".join(path.relative_to(ROOT).parts[:2])
        patterns = files["*"] + [Path(pattern).name for pattern in files.get(room, []) if path.parent.name == Path(pattern).parent.name]
        assert any(path.match(pattern) for pattern in patterns), f"{path.name} is missing from a wheel: package-data in pyproject.toml"


def test_the_environment_is_the_locked_one(lock):
    """What runs these tests is what the lock says; only meaningful in the project's own .venv."""
    if ROOT / ".venv" not in Path(sys.prefix).parents and Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("not the project's .venv")
    for name, version in lock.items():
        assert metadata.version(name).split("+")[0] == version, f"{name} is not the locked one: `make setup`"
