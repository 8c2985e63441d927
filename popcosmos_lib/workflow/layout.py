"""The map of the library: its rooms, the imports between them, and ``docs/architecture.svg``, drawn from the code itself.

``make docs-map`` draws it and ``make tables`` writes the table; a test compares both with what is committed.
"""

import ast
from functools import cache

from popcosmos_lib.artefacts import store
from popcosmos_lib.figures import architecture
from popcosmos_lib.workflow.markdown import table as markdown

__all__ = ["ROOMS", "about", "draw", "imports", "modules", "table"]

ROOMS = [
    "artefacts", "galaxies", "synthesis", "density", "sampling", "emulation", "survey", "population", "fitting", "catalog", "figures",
    "workflow",
]  # fmt: skip


def about(room):
    """First line of the docstring of a room."""
    text = (store.home() / "popcosmos_lib" / room / "__init__.py").read_text()
    return ast.get_docstring(ast.parse(text)).split("\n")[0]


def modules(room):
    """Names of the modules of a room, in alphabetical order."""
    return sorted(path.stem for path in (store.home() / "popcosmos_lib" / room).glob("*.py") if path.name != "__init__.py")


@cache
def imports():
    """Number of imports between modules of different rooms: dict of (importing room, imported room) to int.

    Raises
    ------
    RuntimeError
        If grimp, which comes with the ``test`` extra, is not installed.
    """
    try:
        import grimp
    except ImportError:
        raise RuntimeError('the imports are read by grimp: pip install -e ".[test]"') from None
    graph, count = grimp.build_graph("popcosmos_lib", cache_dir=None), {}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            pair = tuple(name.split(".")[1] if "." in name else "" for name in (module, imported))
            if pair[0] != pair[1] and set(pair) <= set(ROOMS):
                count[pair] = count.get(pair, 0) + 1
    return count


def table():
    """Rooms that each room imports, with the number of imports, as Markdown; the lowest room comes first."""
    rows = []
    for room in ROOMS:
        found = [f"{other} ({imports()[room, other]})" for other in ROOMS if (room, other) in imports()]
        rows.append((f"`{room}`", about(room), ", ".join(modules(room)), ", ".join(found) or "none"))
    return markdown(["room", "what lives there", "modules", "imports (how many)"], rows)


def draw(target=None):
    """Draw the map.

    Parameters
    ----------
    target : Path, optional
        SVG file; ``docs/architecture.svg`` by default. Equal imports give equal bytes.
    """
    target = target or store.home() / "docs" / "architecture.svg"
    fig = architecture.rooms(ROOMS, {room: about(room) for room in ROOMS}, imports())
    with store.replacing(target) as temporary:
        architecture.save(fig, temporary)
