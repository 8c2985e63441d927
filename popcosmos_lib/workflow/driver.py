"""Execute notebooks from the command line: checked parameters, this interpreter, capped threads, atomic results.

``python -m popcosmos_lib run notebooks/04_calibration.py --profile smoke -p seed=7`` writes ``build/smoke/04_calibration.ipynb``. A failing
notebook leaves the last good copy alone and its own copy, traceback included, under ``build/<profile>/failed/``.
"""

import os
import sys
import time

import nbformat
import papermill
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError

from popcosmos_lib.artefacts import store
from popcosmos_lib.catalog import cluster
from popcosmos_lib.workflow import notebook, run

__all__ = ["Failed", "execute"]


class Failed(RuntimeError):
    """A notebook that did not run to its end; the message says where and why."""


class _ThisPython(AsyncKernelManager):
    """Kernels of the running interpreter, whatever kernels the machine has registered under the name python3."""

    kernel_spec = KernelSpec(resource_dir=RESOURCES, **get_kernel_dict(["--log-level=CRITICAL"]))


def execute(name, profile="fast", given=None):
    """Run a notebook and keep its executed copy.

    Parameters
    ----------
    name : str
        For example ``"04_calibration"``.
    profile : {"smoke", "fast", "full"}
    given : dict, optional
        Parameters on top of the profile's. Such a copy is dated 1970, so that ``make`` takes it for out of date.

    Returns
    -------
    Path
        ``build/<profile>/<name>.ipynb``.

    Raises
    ------
    ValueError
        If a parameter is not declared or of another type; nothing has run then.
    Failed
        If a cell raises or the kernel dies.
    """
    source = notebook.path(name)
    values = notebook.injected(profile, name) | notebook.checked(source, given or {})
    _cap_threads(run.threads(profile))
    folder = store.home() / "build" / profile
    target, failed = folder / f"{name}.ipynb", folder / "failed" / f"{name}.ipynb"
    failed.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f".{name}.*.ipynb"):
        left.unlink()  # of a killed run
    working, began = folder / f".{name}.{os.getpid()}.ipynb", time.perf_counter()
    try:
        document = papermill.execute_notebook(
            notebook.read(source),
            str(working),
            parameters=values,
            kernel_name="python3",
            kernel_manager_class=_ThisPython,
            progress_bar=False,
            cwd=str(store.home()),
        )
    except PapermillExecutionError as error:
        os.replace(working, failed)
        raise Failed(_story(error, failed.relative_to(store.home()))) from None
    except RuntimeError as error:  # nbclient: the kernel died
        os.replace(working, failed)
        raise Failed(f"{name}: {error} (out of memory?); what ran is in {failed.relative_to(store.home())}") from None
    finally:
        working.unlink(missing_ok=True)
    _echo_store(document)
    store.write_text(target, nbformat.writes(notebook.normalised(document)) + "\n")
    failed.unlink(missing_ok=True)
    if given:
        os.utime(target, (1, 1))
    print(f"{name}: {time.perf_counter() - began:.0f} s, {target.relative_to(store.home())}")
    return target


def _cap_threads(count):
    """Environment of the kernel: threads, hash seed, and the inline backend rather than the user's."""
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{library}_NUM_THREADS"] = str(count)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait must not burn the core another process needs: 5 x in training
    cluster.keep_memory()
    os.environ["PYTHONHASHSEED"] = "0"
    os.environ.pop("MPLBACKEND", None)


def _story(error, path):
    """What failed, for the terminal: the cell, its text and the last line of the error."""
    cell = "\n".join(f"    {line}" for line in error.source.splitlines())
    return f"cell {error.exec_count} failed:\n{cell}\n{error.ename}: {error.evalue}\nexecuted copy with the traceback: {path}"


def _echo_store(document):
    """Reasons to recompute go to stderr in the kernel; show them here, since copies drop stderr."""
    for cell in document.cells:
        for output in cell.get("outputs", []):
            lines = output.text.splitlines() if output.get("name") == "stderr" else []
            for line in lines:
                if line.startswith("store: "):
                    print(line, file=sys.stderr)
