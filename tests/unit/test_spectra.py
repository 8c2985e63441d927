"""The spectrum emulator: what is computed is exact, what is learned improves, and photometry through it is that of the synthesis."""

import math

import pytest
import torch

from popcosmos_lib.artefacts import store
from popcosmos_lib.emulation import emulator, spectra, spectra_training
from popcosmos_lib.galaxies import parameters, universe
from popcosmos_lib.synthesis import sps

BANDS = ["hsc_r", "uvista_ks_cosmos", "irac2_cosmos", "galex_FUV"]


@pytest.fixture(scope="module")
def synthesiser():
    return sps.load(BANDS)


@pytest.fixture(scope="module")
def tables(synthesiser):
    return spectra.tabulate(synthesiser)


@pytest.fixture(scope="module")
def galaxies():
    return universe.sample(400, torch.Generator().manual_seed(1))


@pytest.fixture
def untrained(tables):
    """With a linear map and a basis that mean nothing, for what must hold whatever has been learned."""
    model = spectra.Spectra(tables, (16, 16), 8, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(3)
    for table in (model.linear, model.basis, model.network.weights[-1].data):
        table.copy_(0.02 * torch.randn(table.shape, generator=generator))
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def trained(synthesiser):
    return spectra_training.train(
        synthesiser, n_train=6000, steps=320, generator=torch.Generator().manual_seed(4), hidden=(64, 64), components=30
    )


def optical(wave):
    return (wave > 2000) & (wave < 2e4)


def test_spectra_are_within_a_per_cent_after_a_short_training(trained, synthesiser, galaxies):
    model, history = trained
    error = spectra.residuals(model, synthesiser, galaxies).abs()
    assert error.shape == (400, len(model.wave)) and error.isfinite().all()
    assert (error[:, optical(model.wave)] < 0.01).float().mean() > 0.99
    assert error[:, optical(model.wave)].quantile(0.95, dim=0).median() < 0.003
    assert history[-1]["step"] == 320 and history[-1]["loss"] < 0.5 * history[0]["loss"] and history[-1]["missed"] < history[0]["missed"]
    assert model.error.shape == (3, len(model.wave)) and (model.error.diff(dim=0) > 0).all()


def test_the_network_improves_on_the_linear_map(trained, synthesiser, galaxies):
    model, _ = trained
    first = spectra.Spectra(spectra.tabulate(synthesiser), model.hidden, model.components)
    first.load_state_dict(model.state_dict() | {"spread": torch.zeros_like(model.spread)})
    with torch.no_grad():
        after, before = (spectra.residuals(engine, synthesiser, galaxies).abs().quantile(0.95, dim=0).median() for engine in (model, first))
    assert after < 0.75 * before


def test_the_estimate_is_the_synthesis_where_nothing_is_approximated(tables, synthesiser, galaxies):
    """Without dust or clouds the mean light of every wide cell must be that of the synthesised spectrum."""
    theta = galaxies[:50].clone()
    theta[:, parameters.INDEX["dust2"]] = 0.0
    theta[:, parameters.INDEX["log10M_formed"]] = 15.0
    model = spectra.Spectra(tables, (8,), 4)
    _, level, cells = model.features(theta)
    first = int((synthesiser.wave < spectra.RANGE[0]).sum())
    light = synthesiser.spectrum(theta).total[:, first : first + len(model.wave)]
    energy = synthesiser.energy[first : first + len(model.wave)]
    nearest = (model.wave.log()[:, None] - model.centre[:-1].log()).abs().argmin(-1)
    k = 20  # any cell: pixels nearest to its centre are its own, edges apart
    inside = (nearest == k).nonzero()[:, 0]
    mean = (light * energy)[:, inside].sum(-1) / energy[inside].sum()
    torch.testing.assert_close((level + cells[:, k : k + 1])[:, 0], mean.log(), atol=0.01, rtol=0)


def test_attenuation_is_exact_at_full_resolution(untrained, galaxies):
    """The polynomial in dust_index must be the curve of the synthesis, between its nodes and at the bounds too."""
    from popcosmos_lib.synthesis import dust

    index = torch.linspace(-1.0, 0.4, 57)
    theta = galaxies[:1].repeat(57, 1)
    theta[:, parameters.INDEX["dust_index"]], theta[:, parameters.INDEX["dust2"]] = index, 1.0
    curve = spectra.powers(theta) @ untrained.curves
    torch.testing.assert_close(curve, dust.diffuse(untrained.wave, index), atol=2e-5, rtol=1e-5)


def test_light_is_linear_in_mass(untrained, galaxies):
    heavier = galaxies + torch.eye(16)[0]
    ratio = untrained.spectrum(heavier)[1] / untrained.spectrum(galaxies)[1]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 10.0), rtol=1e-4, atol=0)


def test_any_batch_shape_and_precision(untrained, galaxies):
    model, theta = untrained.double(), galaxies[:6].reshape(2, 3, 16).double()
    wave, light = model.spectrum(theta)
    assert light.shape == (2, 3, len(wave)) and light.dtype == torch.float64
    assert (wave[0] - 1000) / 1000 < 0.02 and (5e4 - wave[-1]) / 5e4 < 0.02 and (light > 0).all()
    torch.testing.assert_close(light[1, 2], model.spectrum(theta[1, 2])[1])
    with pytest.raises(ValueError, match="16 columns"):
        model.spectrum(galaxies[:, :15])


def test_gradients_are_those_of_differences_and_finite_at_the_bounds(untrained, galaxies):
    model = untrained.double()

    def colour(theta):
        return model.spectrum(theta)[1].log()[:, ::40].sum(-1)

    theta = galaxies[:20].double().requires_grad_(True)
    slope = torch.autograd.grad(colour(theta).sum(), theta)[0]
    for column in (0, 3, 8, 9, 10, 15):
        move = 1e-6 * torch.eye(16, dtype=torch.float64)[column]
        numeric = (colour(theta.detach() + move) - colour(theta.detach() - move)) / 2e-6
        torch.testing.assert_close(slope[:, column], numeric, rtol=1e-3, atol=1e-4 * float(numeric.abs().max()) + 1e-6)
    lower, upper = parameters.BOUNDS.T
    corners = torch.stack([lower, upper, torch.where(torch.arange(16) == parameters.INDEX["dust2"], lower, upper)]).requires_grad_(True)
    assert torch.autograd.grad(model.spectrum(corners)[1].sum(), corners)[0].isfinite().all()


def test_photometry_through_the_spectra_is_that_of_the_synthesis(trained, synthesiser, galaxies):
    model, _ = trained
    error = spectra.magnitudes(model, synthesiser, galaxies) - synthesiser.magnitudes(galaxies)
    seen = error.isfinite()
    assert seen[:, :3].float().mean() > 0.5 and not seen[parameters.column(galaxies, "z") > 0.4, 3].any(), "GALEX leaves the range at once"
    assert emulator.robust_sigma(torch.where(seen, error, torch.nan)[:, :3]).max() < 0.004
    assert error[seen].abs().median() < 0.002 and error[seen].abs().quantile(0.99) < 0.02


def test_training_depends_on_its_generator_only(synthesiser, monkeypatch):
    monkeypatch.setattr(spectra_training, "_HELD_OUT", 100)
    size = {"n_train": 300, "steps": 4, "hidden": (8,), "components": 5}
    runs = [spectra_training.train(synthesiser, generator=torch.Generator().manual_seed(5), **size)[0].state_dict() for _ in range(2)]
    torch.manual_seed(99)
    other = spectra_training.train(synthesiser, generator=torch.Generator().manual_seed(6), **size)[0].state_dict()
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.equal(runs[0]["network.weights.0"], other["network.weights.0"])


def test_saved_and_restored(trained, tmp_path, monkeypatch, galaxies):
    monkeypatch.setenv("POPCOSMOS_HOME", str(tmp_path))
    model, history = trained
    made = store.load_or_compute("spectra", lambda: (model.state_dict(), model.settings() | {"history": history}), profile="fast")
    again = spectra.restore(store.load("spectra"))
    assert made.path.stat().st_size < 5e6 and not any(p.requires_grad for p in again.parameters())
    assert torch.equal(again.spectrum(galaxies)[1], model.spectrum(galaxies)[1]) and torch.equal(again.error, model.error)


def test_more_luminous_torus_and_dust_show_where_they_should(trained, galaxies):
    """The emulated spectrum must know its physics: a torus brightens 4 micron and not 5000 Angstrom, dust reddens."""
    model, _ = trained
    theta = galaxies[:100].clone()
    theta[:, parameters.INDEX["lnfAGN"]] = math.log(1e-5)
    bright, dusty = theta.clone(), theta.clone()
    bright[:, parameters.INDEX["lnfAGN"]] = 0.0
    dusty[:, parameters.INDEX["dust2"]] += 0.5
    wave, light = model.spectrum(theta)
    blue, red = ((wave - at).abs().argmin() for at in (5000.0, 4e4))
    ratio = model.spectrum(bright)[1] / light
    assert (ratio[:, red] > 2).all() and ratio[:, blue].median() < 1.2
    fainter = (model.spectrum(dusty)[1] / light)[:, blue].log().median()
    assert -0.65 < fainter < -0.45, "half an optical depth, the curve is about 1.1 at 5000 Angstrom"
