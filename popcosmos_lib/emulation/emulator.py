"""Trained emulators by name, and all that ``photulator`` and its training offer: the front door of this room. Introduced in notebook 02.

References
----------
Alsing et al. (2020), arXiv:1911.11778; Thorp et al. (2025), arXiv:2506.12122, sect. 3.2.
"""

from __future__ import annotations

from collections.abc import Collection

from popcosmos_lib.artefacts import store
from popcosmos_lib.emulation import spectra
from popcosmos_lib.emulation.networks import Speculator
from popcosmos_lib.emulation.photulator import FAINT, Emulator, jacobian, residuals, restore, robust_sigma
from popcosmos_lib.emulation.photulator_training import train
from popcosmos_lib.emulation.training_sets import draw

__all__ = ["FAINT", "Emulator", "Speculator", "draw", "having", "jacobian", "load", "residuals", "restore", "robust_sigma", "train"]


def load(kind: str = "photometry", profile: str = "published") -> Emulator | spectra.Spectra:
    """A trained emulator.

    Parameters
    ----------
    kind : {"photometry", "spectra", "survey"}
        The 26 bands; rest-frame spectra, see ``spectra.Spectra``; or the bands of the other surveys that notebook 02 was asked for.
    profile : str
        ``"published"``, trained at full size and shipped with the package, or the profile in which notebook 02 trained another.

    Returns
    -------
    Emulator or spectra.Spectra
        On the CPU, in evaluation mode, its parameters frozen.

    Raises
    ------
    ValueError
        If the kind is unknown.
    store.Missing
        If there are no such weights; the message says which command makes them.
    """
    kinds = {"photometry": ("emulator", restore), "spectra": ("spectra", spectra.restore), "survey": ("emulator_survey", restore)}
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}; got {kind!r} (the profile is the second argument)")
    name, restored = kinds[kind]
    return restored(store.load(name, profile))


def having(bands: Collection[str], profile: str = "published") -> Emulator | None:
    """The trained emulator whose bands include these, or None.

    Parameters
    ----------
    bands : collection of str
        Names, as ``filters.load`` takes them.
    profile : str
        As for ``load``.

    Returns
    -------
    Emulator or None
    """
    for kind in ("photometry", "survey"):
        try:
            found = load(kind, profile)
        except store.Missing:
            continue
        if set(bands) <= set(found.bands):
            return found
    return None
