"""The emulator's physics, gradients, training and storage, on a synthesiser of three bands so that it takes seconds."""

import math

import pytest
import torch

from popcosmos_lib.artefacts import store
from popcosmos_lib.emulation import emulator, inputs, photulator
from popcosmos_lib.galaxies import parameters, universe
from popcosmos_lib.survey import likelihood
from popcosmos_lib.synthesis import filters, lines, sps

BANDS = ["hsc_g", "NB816.SuprimeCam", "irac1_cosmos"]


@pytest.fixture(scope="module")
def synthesiser():
    return sps.load(BANDS)


@pytest.fixture(scope="module")
def tables(synthesiser):
    return inputs.tabulate(synthesiser)


@pytest.fixture(scope="module")
def galaxies():
    return universe.sample(600, torch.Generator().manual_seed(1))


@pytest.fixture
def untrained(tables):
    return emulator.Emulator(BANDS, tables, (16, 16), torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def trained(synthesiser):
    return emulator.train(synthesiser, n_train=9000, steps=200, generator=torch.Generator().manual_seed(3), hidden=(32, 32), pool=6000)


def test_first_estimate_is_close_to_the_synthesis(untrained, synthesiser, galaxies):
    error = emulator.residuals(untrained, synthesiser, galaxies)
    assert emulator.robust_sigma(error).max() < 0.03
    assert error.nanmedian().abs() < 0.01


def test_estimate_without_dust_torus_and_young_stars_is_the_synthesis_itself(untrained, synthesiser, galaxies):
    """What is tabulated must be exact where nothing is approximated: old stars without dust or torus."""
    old = galaxies.clone()
    old[:, parameters.INDEX["dust2"]] = 0.0
    old[:, parameters.INDEX["lnfAGN"]] = math.log(1e-5)
    old[:, parameters.INDEX["log10SFR_ratio1"] : parameters.INDEX["log10SFR_ratio1"] + 3] = -3.0
    assert emulator.residuals(untrained, synthesiser, old).nan_to_num(0.0).abs().max() < 0.01


def test_mass_only_scales_the_light(untrained, galaxies):
    heavier = galaxies + torch.eye(16)[0]
    difference = untrained.magnitudes(heavier) - untrained.magnitudes(galaxies)
    torch.testing.assert_close(difference, torch.full_like(difference, -2.5), atol=1e-4, rtol=0)


def test_training_improves_on_the_first_estimate(trained, untrained, synthesiser, galaxies):
    model, history = trained
    after, before = (emulator.robust_sigma(emulator.residuals(engine, synthesiser, galaxies)) for engine in (model, untrained))
    assert after.median() < before.median()
    assert history[-1]["step"] == 200 and history[-1]["loss"] < history[0]["loss"]
    assert model.error.shape == (3,) and (model.error > 0).all()


def test_error_grows_with_dust_and_reaches_the_likelihood(trained, galaxies):
    model, _ = trained
    assert model.regional.shape == (5, 4, 3) and (model.regional > 0).all()
    assert (model.regional[1:3, 3] > model.regional[1:3, 0]).all(), "deep dust is harder to emulate than little dust"
    assert torch.equal(model.errors(galaxies[:1])[0], model.regional[photulator.regions(galaxies[:1])][0])
    floor = likelihood.fractional_error(0.02, model, galaxies)
    torch.testing.assert_close(floor**2 - 0.02**2, (0.4 * math.log(10) * model.errors(galaxies)) ** 2, rtol=1e-2, atol=1e-7)


def test_training_depends_on_its_generator_only(synthesiser):
    runs = [emulator.train(synthesiser, n_train=600, steps=5, generator=torch.Generator().manual_seed(4), hidden=(8,)) for _ in range(2)]
    torch.manual_seed(99)
    for one, two in zip(runs[0][0].parameters(), runs[1][0].parameters(), strict=True):
        assert torch.equal(one, two)


def test_gradients_are_those_of_the_synthesis(untrained, synthesiser):
    theta = universe.sample(40, torch.Generator().manual_seed(5)).requires_grad_(True)
    slopes = [torch.autograd.grad(engine.magnitudes(theta)[:, 0].sum(), theta)[0] for engine in (untrained, synthesiser)]
    columns = [parameters.INDEX[name] for name in ("log10M_formed", "log10SFR_ratio2", "dust2")]
    ratio = slopes[0][:, columns] / slopes[1][:, columns]
    assert (ratio.median(0).values - 1).abs().max() < 0.05


def test_gradients_are_finite_at_the_bounds(untrained):
    lower, upper = parameters.BOUNDS.float().T
    theta = torch.stack([lower, upper, torch.where(torch.arange(16) == parameters.INDEX["dust2"], lower, upper)])
    assert emulator.jacobian(untrained.magnitudes, theta).isfinite().all()


def test_jacobian_agrees_with_differences_in_double_precision(untrained, galaxies):
    model, theta, step = untrained.double(), galaxies[:20].double(), 1e-6
    slope = (model.magnitudes(theta + step * torch.eye(16)[8]) - model.magnitudes(theta - step * torch.eye(16)[8])) / (2 * step)
    torch.testing.assert_close(emulator.jacobian(model.magnitudes, theta)[..., 8], slope, rtol=1e-3, atol=1e-4)


def test_shapes_and_types(untrained, galaxies):
    grid = galaxies[:6].reshape(2, 3, 16).double()
    magnitudes = untrained.magnitudes(grid)
    assert magnitudes.shape == (2, 3, 3) and magnitudes.dtype == torch.float64
    with pytest.raises(ValueError, match="16 columns"):
        untrained.magnitudes(galaxies[:, :15])


def test_draws_stay_inside_the_bounds():
    theta = emulator.draw(4001, torch.Generator().manual_seed(6))
    assert theta.shape == (4001, 16)
    parameters.check(theta)


def test_lines_are_those_of_the_synthesis(untrained, synthesiser, galaxies):
    ours, theirs = untrained.lines(galaxies), synthesiser.lines(galaxies)[:, lines.matched(synthesiser.line_wave)]
    assert ours.shape == (len(galaxies), 44)
    strong = theirs > 1e-3 * theirs.amax(-1, keepdim=True)
    assert ((ours / theirs - 1)[strong].abs() < 0.02).float().mean() > 0.99, "the tables hold the youngest stars as one population"


def test_removing_a_line_removes_its_flux(untrained, synthesiser):
    """[O III] 5007 in NB816 at z = 0.63: what line_flux gives must be what the band loses without the line."""
    theta = universe.sample(1, torch.Generator().manual_seed(7))
    theta[:, parameters.INDEX["z"]], theta[:, parameters.INDEX["log10SFR_ratio1"]] = 8150 / 5008.24 - 1, 1.0
    components, shining, _ = synthesiser._shine(theta, synthesiser.passbands.reach)
    light = sum(part for name, part in components.items() if name != "intrinsic")
    line = int(lines.matched(synthesiser.line_wave)[lines.CALIBRATED.index(5008.24)])
    without = shining.clone()
    without[:, line] = 0.0
    flux = [filters.flux_from_magnitude(synthesiser.photometry(light, power, theta)) for power in (shining, without)]
    lost = (flux[0] - flux[1])[0, BANDS.index("NB816.SuprimeCam")]
    seen = untrained.line_flux(theta)[0, lines.CALIBRATED.index(5008.24), BANDS.index("NB816.SuprimeCam")]
    assert lost > 0.1 * flux[0][0, 1], "the line must matter in the band, or this test sees nothing"
    assert seen / lost - 1 == pytest.approx(0.0, abs=0.02)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="photometry, spectra, survey"):
        emulator.load("fast")


def test_saved_and_restored(trained, tmp_path, monkeypatch, galaxies):
    monkeypatch.setenv("POPCOSMOS_HOME", str(tmp_path))
    model, _ = trained
    store.load_or_compute("emulator", lambda: (model.state_dict(), model.settings()), profile="fast")
    again = emulator.load(profile="fast")
    assert again.bands == BANDS and not any(p.requires_grad for p in again.parameters())
    assert torch.equal(again.magnitudes(galaxies), model.magnitudes(galaxies)) and torch.equal(again.error, model.error)


def test_missing_weights_say_what_makes_them(monkeypatch, tmp_path):
    monkeypatch.setenv("POPCOSMOS_HOME", str(tmp_path))
    with pytest.raises(store.Missing, match="no 'emulator' for profile 'fast'"):
        emulator.load(profile="fast")


def test_narrow_band_sees_lines_where_they_fall(untrained, synthesiser):
    """H alpha crosses NB816 at z = 0.242: the excess must come and go at the redshift at which it does in the synthesis."""
    z = torch.linspace(0.20, 0.28, 161)
    theta = universe.sample(1, torch.Generator().manual_seed(7)).repeat(len(z), 1)
    theta[:, parameters.INDEX["z"]] = z
    theta[:, parameters.INDEX["log10SFR_ratio1"]] = 1.0
    estimate, truth = (engine.magnitudes(theta)[:, BANDS.index("NB816.SuprimeCam")] for engine in (untrained, synthesiser))
    excess = 6563 * (1 + z)
    on, off = (excess - 8150).abs() < 30, (excess - 8150).abs() > 150
    assert truth[on].mean() < truth[off].mean() - 0.1, "the line must brighten the band, or this test sees nothing"
    torch.testing.assert_close(estimate, truth, atol=0.03, rtol=0)
