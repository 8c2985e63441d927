"""The grammar of the notebooks, checked on their text: nothing here runs a cell."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from popcosmos_lib import figures
from popcosmos_lib.workflow import notebook

ROOT = Path(__file__).resolve().parents[2]
STAGES = [name for name in notebook.names() if name not in ("00_overview", "99_colophon")]
# library calls that read an artefact of another notebook
LOADERS = {
    "emulator.load": {"emulator"},
    "population.load": {"population"},
    "population.load_ensemble": {"population_ensemble"},
    "survey.load": {"uncertainty"},
}

every_notebook = pytest.mark.parametrize("name", notebook.names())
every_stage = pytest.mark.parametrize("name", STAGES)


def cells(name, kind="code"):
    return [cell for cell in notebook.read(notebook.path(name)).cells if cell.cell_type == kind]


def tagged(name, tag):
    return [cell for cell in cells(name) if tag in cell.metadata.get("tags", [])]


def code(name):
    """The whole notebook as one syntax tree, and the parameters cell left out."""
    return ast.parse("\n".join(cell.source for cell in cells(name) if "parameters" not in cell.metadata.get("tags", [])))


def calls(name):
    """Calls as (dotted name, positional arguments), literals as their value."""
    for node in ast.walk(code(name)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), [item.value if isinstance(item, ast.Constant) else item for item in node.args]


def literals(name, function, position):
    """Arguments of a method of ``this`` that are names; literals, so that a reader and this test can find them."""
    found = [arguments[position] for called, arguments in calls(name) if called == f"this.{function}"]
    assert all(isinstance(item, str) for item in found), f"{name}: this.{function} takes a literal name"
    return found


def test_there_are_notebooks():
    assert {"02_emulator", "04_calibration", "99_colophon"} <= set(notebook.names())


@every_notebook
def test_parameters_are_literals_with_a_meaning(name):
    declared = {item.name: item for item in notebook.parameters(notebook.path(name))}
    assert declared["profile"].value == "fast", "the defaults in the notebook are the fast profile"
    assert declared["seed"].type == "int"
    assert all(item.meaning for item in declared.values()), "each parameter says what it is: name: type = value  # meaning [unit]"


@every_notebook
def test_parameters_are_read(name):
    read = {node.id for node in ast.walk(code(name)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    unread = [item.name for item in notebook.parameters(notebook.path(name)) if item.name not in read]
    assert not unread, f"no cell reads {unread}: drop the parameter or use it"


@pytest.mark.parametrize("profile", ["smoke", "full"])
def test_overrides_are_declared_and_change_something(profile):
    table = yaml.safe_load((ROOT / "profiles.yaml").read_text())
    assert set(table) == {"smoke", "full"} and set(table[profile]) <= set(notebook.names())
    for name in table[profile]:
        values = notebook.checked(notebook.path(name), notebook.overrides(profile, name))
        defaults = {item.name: item.value for item in notebook.parameters(notebook.path(name))}
        same = [key for key, value in values.items() if defaults[key] == value]
        assert not same, f"{profile}: {name}: {same} equals the default; drop the override"


@every_notebook
def test_cells_are_short_and_plain(name):
    for cell in cells(name):
        is_list = "parameters" in cell.metadata.get("tags", [])  # one line each, however many
        assert is_list or len([line for line in cell.source.splitlines() if line]) <= 20, f"one idea per cell:\n{cell.source}"
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 8, f"{node.name} belongs in the library"
        forbidden = re.search(r"rcParams|plt\.style|^\s*[!%]|sys\.path|manual_seed\(|\.cuda\(\)|try:|os\.environ\[", cell.source, re.M)
        assert not forbidden, f"{forbidden.group()!r} does not belong in a notebook:\n{cell.source}"
        assert not re.search(r"""["'](/|\.\./|~/)[\w.]""", cell.source), f"no paths in a notebook:\n{cell.source}"


@every_notebook
def test_profiles_change_numbers_not_the_story(name):
    for node in ast.walk(code(name)):
        if isinstance(node, ast.Compare | ast.Match | ast.If | ast.IfExp):
            names = {inner.id for inner in ast.walk(getattr(node, "test", node)) if isinstance(inner, ast.Name)}
            assert "profile" not in names, "no `if profile ==`: make the number a parameter"


@every_notebook
def test_a_notebook_opens_runs_and_finishes(name):
    document = notebook.read(notebook.path(name))
    assert document.cells[0].cell_type == "markdown" and document.cells[0].source.startswith("# "), "the title comes first"
    starts = [arguments for called, arguments in calls(name) if called == "run.start"]
    assert starts == [[name]], f'open with run.start("{name}", ...)'
    assert cells(name)[-1].source.strip().startswith("this.finish()"), "close with this.finish()"


@every_notebook
def test_something_is_checked(name):
    checked = [cell for cell in tagged(name, "nbval-check-output") if "this.report(" in cell.source]
    assert checked, "tag a this.report cell nbval-check-output: without one nbval only executes"
    for cell in checked:
        assert not re.search(r"\.[3-9][efg]\}|\.\d\d+[efg]\}", cell.source), f"coarse numbers only in a checked cell:\n{cell.source}"


@every_stage
def test_a_stage_asserts_its_physics_and_tells_its_differences(name):
    asserts = [node for node in ast.walk(code(name)) if isinstance(node, ast.Assert)]
    assert asserts and all(node.msg for node in asserts), "assert the physics, with a message"
    assert all(not isinstance(node.test, ast.Constant) for node in asserts)
    text = "\n".join(cell.source for cell in cells(name, "markdown"))
    assert "## What differs from the paper" in text
    assert text.count("**Read it.**") >= 1, "say what the figure shows"
    assert "| reads | writes |" in text, "the inputs and outputs come as a table"


@every_notebook
def test_figures_are_declared_and_drawn(name):
    declared = {id for id, entry in figures.declared().items() if entry["notebook"] == name}
    drawn = literals(name, "savefig", 1)
    assert set(drawn) == declared, "figures/figures.yaml and the this.savefig calls must agree"
    assert len(drawn) == len(set(drawn))


def test_figures_are_described():
    declared = figures.declared()
    assert len(declared) >= 16
    for id, entry in declared.items():
        assert set(entry) == {"notebook", "paper", "number", "width", "status", "caption", "alt"}, id
        assert entry["notebook"] in notebook.names(), id
        assert entry["width"] in ("single", "double") and entry["status"] in ("reproduces", "analogue"), id
        assert len(entry["caption"]) > 40 and len(entry["alt"]) > 40 and entry["caption"] != entry["alt"], f"{id}: say it in words"


def deps():
    """deps.mk as a dict; the colophon's computed list is every other notebook."""
    lines = re.findall(r"^deps_(\w+) :=(.*)$", (ROOT / "notebooks/deps.mk").read_text(), re.M)
    everything = {"$(filter-out 99_colophon,$(NB))": sorted(set(notebook.names()) - {"99_colophon"})}
    return {name: set(everything.get(words.strip(), words.split())) for name, words in lines}


@every_notebook
def test_the_makefile_knows_what_a_notebook_reads(name):
    makers = {artefact: maker for maker in notebook.names() for artefact in literals(maker, "artefact", 0)}
    read = set().union(*(LOADERS.get(called, set()) for called, _ in calls(name)))
    for statement in code(name).body:  # the names that this.read gets, also through the loop or comprehension around it
        if "this.read(" in ast.unparse(statement):
            words = {node.value for node in ast.walk(statement) if isinstance(node, ast.Constant)} & set(makers)
            assert words, f"{name}: `{ast.unparse(statement)}` reads what no notebook makes"
            read |= words
    needed = set(notebook.names()) if name == "99_colophon" else {makers[artefact] for artefact in read}  # the colophon reads every record
    assert deps()[name] == needed - {name}, "notebooks/deps.mk"


def test_an_artefact_has_one_maker():
    made = [artefact for name in notebook.names() for artefact in literals(name, "artefact", 0)]
    assert len(made) == len(set(made))
