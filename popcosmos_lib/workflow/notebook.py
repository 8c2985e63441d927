"""Notebooks as text: their parameters, checked before anything runs, and executed copies that two runs write alike.

The sources are ``notebooks/NN_name.py`` (py:percent); jupytext reads them, nothing here executes them. It and nbformat are imported where
they are needed: they take two seconds, and every kernel asks for its parameters.
"""

import ast
import difflib
import re
from dataclasses import dataclass

import yaml

from popcosmos_lib.artefacts import store

__all__ = ["Parameter", "checked", "injected", "names", "normalised", "overrides", "parameters", "parsed", "path", "problems", "read"]

_TYPES = {"bool": bool, "int": int, "float": float, "str": str}
_FROM_TEXT = {"bool": {"true": True, "True": True, "false": False, "False": False}.__getitem__, "int": int, "float": float}
_PARAMETERS = re.compile(r'^# %% tags=\["parameters"\]\n(.*?)(?=^# %%|\Z)', re.M | re.S)  # code cells are text as it is
_MACHINE = re.compile(r"(?<![\w.])/(?:work|home|root|tmp|opt|Users|private)/[\w./-]*|[\w./-]*site-packages[\w./-]*")
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: ``name: type = value  # meaning``."""

    name: str
    type: str
    value: object
    meaning: str


def names():
    """The notebooks, in order, without extension."""
    return [source.stem for source in sorted((store.home() / "notebooks").glob("[0-9][0-9]_*.py"))]


def path(name):
    """Source of a notebook."""
    return store.home() / "notebooks" / f"{name}.py"


def read(source):
    """A notebook from its text, with ids ``cell-00`` and so on instead of random ones."""
    import jupytext
    import nbformat

    document = jupytext.read(source, fmt="py:percent")
    for i, cell in enumerate(document.cells):
        cell["id"] = f"cell-{i:02d}"
    document.nbformat, document.nbformat_minor = 4, 5
    document.metadata = nbformat.from_dict(_METADATA)
    return document


def parameters(source):
    """The declared parameters of a notebook.

    Parameters
    ----------
    source : Path
        Its text.

    Returns
    -------
    list of Parameter

    Raises
    ------
    ValueError
        If there is not exactly one parameters cell, or a line of it is not ``name: type = literal``.
    """
    cells = _PARAMETERS.findall(source.read_text())
    if len(cells) != 1:
        raise ValueError(f'{source.name} needs exactly one cell `# %% tags=["parameters"]`; it has {len(cells)}')
    lines, found = cells[0].splitlines(), []
    for statement in ast.parse(cells[0]).body:
        text = ast.unparse(statement)
        kind = ast.unparse(statement.annotation) if isinstance(statement, ast.AnnAssign) else None
        if kind not in _TYPES or not isinstance(statement.target, ast.Name):
            raise ValueError(f"{source.name}: write `name: type = value  # meaning` with type bool, int, float or str; got `{text}`")
        try:
            value = ast.literal_eval(statement.value)
        except ValueError:
            raise ValueError(f"{source.name}: a parameter is a literal (derive other values below the cell); got `{text}`") from None
        comment = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode().strip().lstrip("# ")
        found.append(Parameter(statement.target.id, kind, _fitted(statement.target.id, kind, value, source.name), comment))
    return found


def overrides(profile, name):
    """What ``profiles.yaml`` changes for a notebook; nothing for ``fast``, whose values are the notebooks' own."""
    return (yaml.safe_load((store.home() / "profiles.yaml").read_text()).get(profile) or {}).get(name) or {}


def injected(profile, name):
    """What the driver injects for a profile: nothing for ``fast``, so that reading copies equal their sources."""
    return {} if profile == "fast" else {"profile": profile} | checked(path(name), overrides(profile, name))


def checked(source, given):
    """Values for a notebook's parameters, if each is declared and of the declared type.

    Parameters
    ----------
    source : Path
        Its text.
    given : dict of str to bool, int, float or str

    Returns
    -------
    dict
        The same, integers turned into floats where a float is declared.

    Raises
    ------
    ValueError
        If a name is not declared (the nearest declared one is named) or a value has another type.
    """
    declared = {item.name: item.type for item in parameters(source)}
    for name in given:
        if name not in declared:
            near = difflib.get_close_matches(name, declared, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it declares {', '.join(declared)}"
            raise ValueError(f"{source.name} has no parameter {name!r}: {hint}")
    return {name: _fitted(name, declared[name], value, source.name) for name, value in given.items()}


def _fitted(name, kind, value, where):
    """``value`` as the declared type, or an error that says how to write it."""
    if kind == "float" and type(value) is int:
        return float(value)
    if type(value) is _TYPES[kind]:
        return value
    hint = ""
    if kind == "float" and isinstance(value, str) and re.fullmatch(r"[+-]?\d+e[+-]?\d+", value, re.I):
        hint = f" (YAML reads {value} as text: write {re.sub('e', '.0e', value, flags=re.I)})"
    raise ValueError(f"{where}: parameter {name!r} is declared {kind}, got {value!r} ({type(value).__name__}){hint}")


def parsed(source, word):
    """Name and value of a command-line ``name=value``, read as the declared type.

    Raises
    ------
    ValueError
        If there is no ``=``, the name is not declared, or the text is not of its type.
    """
    name, equals, text = word.partition("=")
    if not equals:
        raise ValueError(f"write -p name=value; got {word!r}")
    kind = {item.name: item.type for item in parameters(source)}.get(name, "str")
    try:
        value = text if kind == "str" else _FROM_TEXT[kind](text)
    except (KeyError, ValueError):
        raise ValueError(f"{source.name}: parameter {name!r} is declared {kind}, got {text!r}") from None
    return name, checked(source, {name: value})[name]


def normalised(document, *, images=True):
    """An executed notebook without what differs from run to run.

    Cell ids are ``cell-NN``, execution counts run from 1, stderr and papermill's notes are gone.

    Parameters
    ----------
    document : NotebookNode
    images : bool
        Keep the pictures; references do not.

    Returns
    -------
    NotebookNode
    """
    import nbformat

    document = nbformat.from_dict(document)
    document.metadata = nbformat.from_dict(_METADATA)
    count = 0
    for i, cell in enumerate(document.cells):
        cell["id"] = f"cell-{i:02d}"
        cell.metadata = nbformat.from_dict({"tags": cell.metadata.tags} if cell.metadata.get("tags") else {})
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = [_quiet(output, count, images) for output in cell.outputs if output.get("name") != "stderr"]
    return document


def problems(document, source, injected):
    """What makes an executed notebook unfit to be published.

    Parameters
    ----------
    document : NotebookNode
    source : Path
        The text it must equal, cell by cell.
    injected : dict
        The parameters it must have been run with.

    Returns
    -------
    list of str
        One sentence each; empty when it is fit.
    """
    name, found = source.stem, []
    own = [cell for cell in document.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    given = {}
    for cell in document.cells:
        if cell not in own:
            given = {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(cell.source).body}
    if given != injected:
        found.append(f"{name} was run with {given or 'its defaults'}, not with {injected or 'its defaults'}")
    if [(cell.cell_type, cell.source) for cell in own] != [(cell.cell_type, cell.source) for cell in read(source).cells]:
        found.append(f"{name} was run from another text than {source.name}")
    for cell in document.cells:
        outputs = cell.get("outputs", [])
        texts = [cell.source] + [output.get("text", "") for output in outputs]
        texts += [value for output in outputs for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
        found += [f"{name}: {cell.id} shows the machine path {match.group()!r}" for text in texts if (match := _MACHINE.search(text))]
        found += [f"{name}: {cell.id} ends in an error" for output in outputs if output.output_type == "error"]
        if cell.cell_type == "code" and cell.execution_count is None:
            found.append(f"{name}: {cell.id} was not executed")
    return found


def _quiet(output, count, images):
    if output.output_type == "execute_result":
        output.execution_count = count
    if output.output_type in ("display_data", "execute_result"):
        output.metadata = {}
        output.data = {kind: value for kind, value in output.data.items() if images or not kind.startswith("image/")}
    return output
