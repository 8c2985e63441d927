"""Checkpoints of long computations, from which an interrupted run resumes and ends at the same result.

A checkpoint is one file, written under a temporary name and renamed. It belongs to one computation: a run with other settings ignores it
and starts afresh. Used by the calibrations of notebook 04 and the proposals of notebook 07.
"""

import torch

from popcosmos_lib.artefacts import store

__all__ = ["Checkpoint"]


class Checkpoint:
    """The state of one computation.

    Parameters
    ----------
    path : Path or None
        File; None keeps nothing, for short runs.
    key : dict
        What decides the result; numbers, strings, lists and dicts. A file of another key is not read.
    """

    def __init__(self, path, key):
        self.path, self.key = path, key

    def stage(self, name):
        """The checkpoint of one stage of the computation, in a file of its own."""
        path = self.path and self.path.with_name(f"{self.path.stem}_{name}{self.path.suffix}")
        return Checkpoint(path, self.key)

    def load(self):
        """What was saved last, on the CPU, or None where there is nothing to go on from."""
        if self.path is None or not self.path.exists():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:  # torch raises many kinds for a damaged file; none of them holds anything to go on from
            print(f"checkpoint {self.path.name} cannot be read: starting afresh")
            return None
        return found["state"] if found["key"] == self.key else None

    def save(self, state):
        """Replace the file by ``state``: nested dicts and lists of tensors, numbers and strings; a generator goes in as ``get_state()``."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with store.replacing(self.path) as temporary:
                torch.save({"key": self.key, "state": state}, temporary)

    def clear(self):
        """Remove the file: the computation is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
