"""A notebook's run: its generators, artefacts, figures and record.

``this = run.start("04_calibration", profile=profile, seed=seed)`` opens it; ``this.finish()`` writes its record,
``build/<profile>/records/NN_name.json``: parameters, seed, commit, versions, hardware, inputs and outputs with their digests, cost.
The driver that executes notebooks is ``driver``.
"""

import hashlib
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython import get_ipython
from IPython.display import display

from popcosmos_lib import figures
from popcosmos_lib.artefacts import provenance, store
from popcosmos_lib.artefacts.checkpoint import Checkpoint
from popcosmos_lib.workflow import notebook

__all__ = ["THREADS", "Run", "record", "start", "threads"]

THREADS = {"smoke": 1, "fast": 2, "full": 0}  # per notebook; 0 = every core


def threads(profile):
    """Threads a profile may use; ``POPCOSMOS_THREADS`` overrides it, to show that results do not depend on it."""
    if profile not in THREADS:
        raise ValueError(f"profile must be one of {', '.join(THREADS)}; got {profile!r}")
    return int(os.environ.get("POPCOSMOS_THREADS") or THREADS[profile] or os.cpu_count())


def start(name, *, profile, seed):
    """Begin a notebook's run.

    Parameters
    ----------
    name : str
        File name without extension, for example ``"04_calibration"``.
    profile : {"smoke", "fast", "full"}
    seed : int
        Every generator of the run derives from it.

    Returns
    -------
    Run
    """
    return Run(name, profile, seed)


def record(name, profile):
    """The record of a notebook's last complete run.

    Raises
    ------
    store.Missing
        If it has not run yet.
    """
    path = _record_path(name, profile)
    if not path.exists():
        raise store.Missing(f"{name} has not been run: `make {name} PROFILE={profile}`")
    return json.loads(path.read_text())


def _record_path(name, profile):
    return store.home() / "build" / profile / "records" / f"{name}.json"


class Run:
    """What a notebook does with the world outside its cells."""

    def __init__(self, name, profile, seed):
        torch.set_num_threads(threads(profile))
        self.name, self.profile, self.seed = name, profile, seed
        values = get_ipython().user_ns if get_ipython() else {}
        self.parameters = {item.name: values.get(item.name, item.value) for item in notebook.parameters(notebook.path(name))}
        self._inputs, self._outputs, self._figures = {}, {}, {}
        self._stored = 0.0

    def generator(self, label="main"):
        """A ``torch.Generator`` that depends on the seed, the notebook and the label only, never on what ran before."""
        digest = hashlib.sha256(f"{self.seed}/{self.name}/{label}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def artefact(self, name, compute, *, kind="safetensors", version=1, parameters=None, inputs=()):
        """``store.load_or_compute`` with this profile and seed; recorded as an output."""
        computed = []

        def noted():
            computed.append(name)
            return compute()

        made = store.load_or_compute(
            name, noted, profile=self.profile, kind=kind, version=version, parameters=parameters, seed=self.seed, inputs=inputs
        )
        self._stored += 0 if computed else made.seconds
        self._outputs[name] = made.sha256
        return made

    def checkpoint(self, name, *, parameters=None, inputs=()):
        """Where a long computation of this notebook keeps what it has reached: a ``Checkpoint`` of the same key as its artefact."""
        digests = {item.name: item.sha256 for item in inputs}
        path = store.home() / "artefacts" / self.profile / "checkpoints" / f"{name}.pt"
        return Checkpoint(path, {"seed": self.seed, "parameters": parameters or {}, "inputs": digests})

    def whose(self, weights):
        """The profile argument of ``store.load`` and all that read through it: ``"published"`` as it is, for ``"trained"`` this profile."""
        if weights not in ("trained", "published"):
            raise ValueError(f"weights are 'trained', by this profile, or 'published'; got {weights!r}")
        return self.profile if weights == "trained" else weights

    def read(self, name, weights="trained"):
        """``store.load``; recorded as an input."""
        found = store.load(name, self.whose(weights))
        self._inputs[name if weights == "trained" else f"{name} (published)"] = found.sha256
        return found

    def file(self, path):
        """A file from outside the repository; its name and digest are recorded, not its place.

        Raises
        ------
        FileNotFoundError
            If it is not there.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{path.name} is not at {path.parent}: give the path of a file that exists")
        self._inputs[path.name] = provenance.sha256(path)
        return path

    def report(self, **values):
        """Print one ``name = value`` line each; give strings formatted as they should be checked."""
        for name, value in values.items():
            print(f"{name} = {value}")

    def savefig(self, fig, id):
        """Save a declared figure as PDF and PNG and show it here."""
        self._figures[id] = figures.save(fig, id, self.profile)
        alt = " ".join(figures.declared()[id]["alt"].split())
        display({"image/png": figures.preview(fig), "text/plain": f"{id}: {alt}"}, raw=True)
        plt.close(fig)

    def finish(self):
        """Write the record and print what was made."""
        content = {
            "notebook": self.name,
            "profile": self.profile,
            "seed": self.seed,
            "parameters": self.parameters,
            **provenance.git(store.home()),
            "versions": provenance.versions(),
            "device": provenance.device(),
            **provenance.cost(),
            "stored_s": round(self._stored, 1),  # what the artefacts read back from disk had cost
            "inputs": self._inputs,
            "outputs": self._outputs,
            "figures": self._figures,
        }
        store.write_text(_record_path(self.name, self.profile), json.dumps(content, indent=1) + "\n")
        print("artefacts:", ", ".join(self._outputs) or "none")
        print("figures:", ", ".join(self._figures) or "none")
