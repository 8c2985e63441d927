"""Shipping weights: only what the full profile trained, from committed sources, small, and as good as the issue of it says."""

import json
from pathlib import Path

import pytest
import torch

from popcosmos_lib.artefacts import store
from popcosmos_lib.emulation import emulator, spectra
from popcosmos_lib.galaxies import parameters, universe
from popcosmos_lib.synthesis import sps
from popcosmos_lib.workflow import publish

SHIPPED = Path(store.__file__).parent / "weights"


@pytest.fixture
def made(home, monkeypatch):
    """A root whose full profile holds a small artefact, made from committed sources."""
    monkeypatch.setattr(store.provenance, "git", lambda root: {"commit": "0" * 40, "dirty": False})
    store.load_or_compute("tiny", lambda: {"x": torch.ones(3)}, profile="full")
    return home


def test_weights_are_copied_with_their_sidecar(made):
    publish.weights(["tiny"])
    folder = made / "popcosmos_lib" / "artefacts" / "weights"
    assert sorted(path.name for path in folder.iterdir()) == ["tiny.json", "tiny.safetensors"]
    assert json.loads((folder / "tiny.json").read_text())["made"]["commit"] == "0" * 40


def test_untrained_large_and_uncommitted_weights_are_refused(made, monkeypatch):
    with pytest.raises(RuntimeError, match="no 'other' for profile 'full' yet"):
        publish.weights(["other"])
    monkeypatch.setattr(publish, "WEIGHTS_LIMIT", 10)
    with pytest.raises(RuntimeError, match="MB, more than"):
        publish.weights(["tiny"])
    monkeypatch.undo()
    monkeypatch.setenv("POPCOSMOS_HOME", str(made))
    side = made / "artefacts" / "full" / "tiny.json"
    side.write_text(side.read_text().replace('"dirty": false', '"dirty": true'))
    with pytest.raises(RuntimeError, match="no commit holds"):
        publish.weights(["tiny"])
    assert not (made / "popcosmos_lib").exists()


@pytest.mark.parametrize("name", ["emulator", "spectra", "emulator_survey", "proposal", "proposal_prospector"])
def test_shipped_weights_are_small_and_say_where_they_come_from(name):
    artefact = store.load(name, "published")
    assert artefact.path.stat().st_size <= publish.WEIGHTS_LIMIT
    made = json.loads((SHIPPED / f"{name}.json").read_text())["made"]
    assert not made["dirty"] and len(made["commit"]) == 40 and made["seconds"] > 0


@pytest.fixture(scope="module")
def galaxies():
    return universe.sample(20_000, torch.Generator().manual_seed(77))


@pytest.fixture(scope="module")
def synthesiser():
    return sps.load()


def test_shipped_photometry_is_that_of_the_synthesis(galaxies, synthesiser):
    error = emulator.residuals(emulator.load(), synthesiser, galaxies)
    assert emulator.robust_sigma(error).max() < 0.005
    assert torch.stack([band[band.isfinite()].std() for band in error.T]).max() < 0.01, "the papers' bar"
    assert error.abs().nanquantile(0.999, dim=0).max() < 0.1


def test_shipped_spectra_are_those_of_the_synthesis(galaxies, synthesiser):
    model = emulator.load("spectra")
    error = spectra.residuals(model, synthesiser, galaxies[:5000]).abs()
    optical = (model.wave > 2000) & (model.wave < 2e4)
    assert error[:, optical].nanquantile(0.99, dim=0).max() < 0.01, "99 % of galaxies within 1 % at each wavelength of 0.2-2 micron"


def test_shipped_gradients_are_finite_everywhere(galaxies):
    model = emulator.load()
    corners = parameters.BOUNDS.float().T[torch.randint(2, (64, 16), generator=torch.Generator().manual_seed(1)), torch.arange(16)]
    corners[:, parameters.INDEX["z"]] = corners[:, parameters.INDEX["z"]].clamp_min(0.01)
    assert emulator.jacobian(model.magnitudes, corners).isfinite().all()
