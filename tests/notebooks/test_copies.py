"""Reading copies, references and README tables are what the generators give; and nbval does fail on a changed number."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from popcosmos_lib.workflow import layout, notebook, pages, publish

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"fast": ROOT / "notebooks", "smoke": ROOT / "tests" / "notebooks" / "reference"}


@pytest.mark.parametrize("name", notebook.names())
@pytest.mark.parametrize("profile", KINDS)
def test_published_notebooks_equal_their_source(name, profile):
    path = KINDS[profile] / f"{name}.ipynb"
    assert path.exists(), f"{path.name} is missing: `make {'figures' if profile == 'fast' else 'refs'}`"
    text = path.read_text()
    document = nbformat.reads(text, 4)
    assert notebook.problems(document, notebook.path(name), notebook.injected(profile, name)) == []
    assert len(text.encode()) <= publish.COPY_LIMIT
    again = nbformat.writes(notebook.normalised(document, images=profile == "fast")) + "\n"
    assert again == text, "published by the generator, not by hand"


@pytest.mark.parametrize("profile", KINDS)
def test_nothing_else_is_published(profile):
    assert sorted(path.stem for path in KINDS[profile].glob("*.ipynb")) == notebook.names()


def test_the_test_command_replays_every_reference():
    """What `make test` collects has each reference's code cells: pytest drops overlapping folders without a word."""
    line = re.search(r"-m (pytest .*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    result = subprocess.run([sys.executable, "-m", *line.split(), "--collect-only", "-q"], cwd=ROOT, capture_output=True, text=True)
    for name in notebook.names():
        cells = [cell for cell in notebook.read(notebook.path(name)).cells if cell.cell_type == "code"]
        assert result.stdout.count(f"{name}.ipynb::") >= len(cells), f"{name}: not replayed by `make test`"


def test_checked_cells_print_something():
    for path in sorted(KINDS["smoke"].glob("*.ipynb")):
        for cell in nbformat.read(path, 4).cells:
            if "nbval-check-output" in cell.metadata.get("tags", []):
                assert "".join(output.get("text", "") for output in cell.outputs).strip(), f"{path.name}: {cell.id} checks nothing"


@pytest.mark.parametrize("page", pages.PAGES)
def test_tables_are_generated(page):
    text = (ROOT / page).read_text()
    assert pages.updated(text, top="/" not in page) == text, f"`make tables` and commit {page}"


def test_the_map_is_that_of_the_imports(tmp_path):
    layout.draw(tmp_path / "map.svg")
    assert (tmp_path / "map.svg").read_bytes() == (ROOT / "docs" / "architecture.svg").read_bytes(), "`make docs-map` and commit it"
    assert set(layout.ROOMS) == {path.parent.name for path in (ROOT / "popcosmos_lib").glob("*/__init__.py")}
    height = {room: level for level, room in enumerate(layout.ROOMS)}
    assert all(height[upper] > height[lower] for upper, lower in layout.imports()), "imports run one way"


def test_links_between_pages_lead_somewhere():
    for page in [*pages.PAGES, "CONTRIBUTING.md", "CHANGELOG.md"]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"


def test_the_manifest_matches_the_figures():
    from popcosmos_lib import figures
    from popcosmos_lib.artefacts import provenance

    manifest = json.loads((ROOT / "figures" / "manifest.json").read_text())
    assert set(manifest) == set(figures.declared()), "`make figures`"
    for id, entry in manifest.items():
        assert entry["profile"] in ("fast", "full") and entry["notebook"] == figures.declared()[id]["notebook"]
        for extension, digest in entry["sha256"].items():
            assert provenance.sha256(ROOT / "figures" / f"{id}.{extension}") == digest, f"{id}.{extension} is not the one that was made"


MINI = """\
# %%
import sys
import warnings

# %% tags=["nbval-check-output"]
warnings.warn("not compared")
print("galaxies =", 2 + 2)

# %%
print(sys.executable)
"""


@pytest.fixture
def mini(tmp_path):
    """A recorded notebook of three cells under the project's nbval settings."""
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    source = tmp_path / "01_mini.py"
    source.write_text(MINI)
    document = notebook.read(source)
    for i, cell in enumerate(document.cells):
        cell.execution_count = i + 1
    document.cells[1].outputs = [nbformat.v4.new_output("stream", name="stdout", text="galaxies = 4\n")]
    nbformat.write(document, tmp_path / "01_mini.ipynb")
    return tmp_path


def nbval(folder):
    words = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "01_mini.ipynb"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True)


def test_nbval_passes_and_fails_on_a_changed_number(mini):
    result = nbval(mini)
    assert result.returncode == 0, result.stdout
    reference = mini / "01_mini.ipynb"
    reference.write_text(reference.read_text().replace("galaxies = 4", "galaxies = 5"))
    result = nbval(mini)
    assert result.returncode == 1 and "galaxies = 5" in result.stdout


def test_nbval_runs_this_interpreter(mini):
    reference = mini / "01_mini.ipynb"
    document = nbformat.read(reference, 4)
    document.cells[2].metadata["tags"] = ["nbval-check-output"]
    document.cells[2].outputs = [nbformat.v4.new_output("stream", name="stdout", text=sys.executable + "\n")]
    nbformat.write(document, reference)
    result = nbval(mini)
    assert result.returncode == 0, result.stdout


def test_problems_are_found(tmp_path):
    """Each way in which a copy can be unfit."""
    source = tmp_path / "01_mini.py"
    source.write_text(MINI)
    document = notebook.read(source)
    for cell in document.cells:
        cell.execution_count = 1
    assert notebook.problems(document, source, {}) == []
    assert "not with {'n': 1}" in notebook.problems(document, source, {"n": 1})[0]
    stream, error = nbformat.v4.new_output("stream", text="read /home/ada/mock.fits"), nbformat.v4.new_output("error", ename="E", evalue="")
    document.cells[0].outputs, document.cells[1].outputs, document.cells[2].source = [stream], [error], "print(2)"
    said = "\n".join(notebook.problems(document, source, {}))
    assert "'/home/ada/mock.fits'" in said and "ends in an error" in said and "another text" in said
