"""Calibration: losses in closed form, what they move, what a kill costs, corrections, ensembles, and p(theta) from p(theta | r < 25)."""

import types

import official
import pytest
import torch
from astropy.table import Table
from toy import Colours

from popcosmos_lib import catalog, population, survey
from popcosmos_lib.artefacts.checkpoint import Checkpoint
from popcosmos_lib.emulation import emulator
from popcosmos_lib.galaxies import parameters, universe
from popcosmos_lib.population import calibration, expectation_maximisation, optimal_transport, summary_statistics
from popcosmos_lib.survey import likelihood
from popcosmos_lib.survey.photometry import asinh_magnitude
from popcosmos_lib.synthesis import filters, lines


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(3)


@pytest.fixture(scope="module")
def forward():
    return population.ForwardModel(Colours(), survey.truth(), selection="r<30")


@pytest.fixture(scope="module")
def galaxies():
    theta = universe.sample(4000, torch.Generator().manual_seed(1))
    return theta[parameters.column(theta, "z") < 3]


@pytest.fixture(scope="module")
def sky(forward, galaxies):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        seen = forward(galaxies[:1800], forward.draws(1800, generator))
    return population.Photometry(*(values[seen.selected] for values in seen))


@pytest.fixture(scope="module")
def bright(galaxies):
    """A start that is 0.6 dex too massive."""
    shifted = galaxies.clone()
    shifted[:, 0] = (shifted[:, 0] + 0.6).clamp_max(12.9)
    return population.Population.fit(shifted, generator=torch.Generator().manual_seed(2), steps=300, batch=256, width=32)[0]


QUICK = {"iterations": 20, "batch": 256, "lr": 1e-3, "every": 4}


# Losses


def test_transport_of_a_shift_is_the_shift():
    """Moved by d in every band, magnitudes are at d over their spread, colours do not move."""
    rows = torch.randn(4000, 26, generator=torch.Generator().manual_seed(1)).double() * 2 + 24
    loss = optimal_transport.Transport(rows)
    magnitudes, colours = loss.parts(rows + 0.1)
    # of a unit direction w the projection moves by sum(w) d / sd, whose mean square over directions is d^2 / sd^2
    assert float(magnitudes) == pytest.approx(0.05, rel=0.1) and float(colours) < 1e-9
    assert float(loss(rows + 0.1)) == pytest.approx(float(magnitudes + colours))


def test_loss_of_the_catalogue_itself_is_zero_and_has_a_gradient_elsewhere(sky):
    magnitude = asinh_magnitude(sky.flux[:200])
    for loss in (
        optimal_transport.Transport(magnitude),
        summary_statistics.Summaries(magnitude),
        optimal_transport.Transport(magnitude, "sinkhorn"),
    ):
        moved = (magnitude + 0.1).requires_grad_()
        assert float(loss(magnitude)) < 2e-3
        assert loss(moved) > 10 * loss(magnitude)
        gradient = torch.autograd.grad(loss(moved), moved)[0]
        assert gradient.isfinite().all() and gradient.sum() > 0, "brighter again"


def test_summaries_of_independent_normals(rng):
    x = torch.randn(40_000, 50, generator=rng, dtype=torch.float64)
    values = summary_statistics.summary(x)
    assert values.shape == (2275,)
    mean, sd, correlation, percentile = values.split([50, 50, 1225, 950])
    assert mean.abs().max() < 0.02 and (sd - 1).abs().max() < 0.02 and correlation.abs().max() < 0.03
    expected = torch.special.ndtri(summary_statistics.PERCENTILES.double())
    assert (percentile.view(19, 50) - expected[:, None]).abs().max() < 0.04


def test_summaries_are_the_fifty_features_of_the_paper():
    flat = torch.arange(26.0)[None]
    colours = summary_statistics.features(flat)[0, 26:]
    assert colours.shape == (24,)
    names = [(filters.SHORT[int(a)], filters.SHORT[int(b)]) for a, b in summary_statistics._PAIRS]
    assert names[0] == ("u", "g") and ("Ks", "Ch1") in names and ("IB709", "NB711") in names and ("NB816", "IB827") in names
    assert (colours == torch.tensor([float(a - b) for a, b in summary_statistics._PAIRS])).all()


def test_unknown_distance_is_named():
    with pytest.raises(ValueError, match="sliced, sinkhorn"):
        optimal_transport.Transport(torch.ones(3, 26), "energy")


# The call


@pytest.mark.parametrize(
    "options", [{"objective": "transport"}, {"objective": "transport", "distance": "sinkhorn"}, {"objective": "summaries"}]
)
def test_a_calibration_moves_the_mock_onto_the_catalogue(options, forward, sky, bright, rng):
    before = {name: value.clone() for name, value in bright.state_dict().items()}
    made = calibration.calibrate(sky, forward=forward, start=bright, generator=rng, **options, **QUICK)
    history = made.history
    best = min(range(6), key=history["loss"].__getitem__)
    assert best > 0 and history["magnitudes"][best] < 0.8 * history["magnitudes"][0]
    assert {len(values) for values in history.values()} == {6} and len(history["mean"][0]) == 16 and len(history["line_scale"][0]) == 44
    assert not any(p.requires_grad for p in made.population.parameters())
    assert all(torch.equal(value, before[name]) for name, value in bright.state_dict().items()), "the start is left alone"
    assert not made.log_zero_point.any() and not made.line_scale.any() and made.draws is None


def test_the_start_may_be_galaxies_and_gaps_are_left_out(forward, sky, galaxies, rng, capsys):
    flux = sky.flux.clone()
    flux[:70, 3] = torch.nan
    options = {"objective": "transport", "start_steps": 60, "iterations": 2, "batch": 128}
    made = calibration.calibrate(sky._replace(flux=flux), forward=forward, start=galaxies, generator=rng, **options)
    assert f"70 of {len(flux)} galaxies lack a band" in capsys.readouterr().out
    assert made.population.sample(5, rng).shape == (5, 16)
    flux[:, 3] = torch.nan
    with pytest.raises(ValueError, match="only 0 of .* drop the band"):
        calibration.calibrate(sky._replace(flux=flux), forward=forward, start=galaxies, generator=rng, **options)


def test_unknown_objective_is_told_the_nearest(forward, sky, bright, rng):
    with pytest.raises(ValueError, match="did you mean 'transport'"):
        calibration.calibrate(sky, objective="transprot", forward=forward, start=bright, generator=rng)
    with pytest.raises(ValueError, match="posterior, transport, summaries; got 'x'$"):
        population.calibrate(None, "x", generator=rng)


def test_the_public_call_takes_a_table(sky, monkeypatch, rng, capsys):
    """Columns as of the mock, some galaxies beyond r = 25; emulator and errors as the notebooks left them."""
    monkeypatch.setattr(survey, "load", lambda profile: survey.truth())
    monkeypatch.setattr(emulator, "load", lambda profile: Colours())
    columns = {f"{kind}_{band}": getattr(sky, kind)[:, i].numpy() for kind in ("flux", "flux_err") for i, band in enumerate(filters.SHORT)}
    made = population.calibrate(Table(columns), "transport", generator=rng, start_steps=20, iterations=1, batch=64)
    passed = int(survey.select(sky.flux, "r<25").sum())
    assert 100 < passed < len(sky.flux) and f"{passed} of {len(sky.flux)} galaxies are clean and have r<25" in capsys.readouterr().out
    assert made.population.sample(3, rng).shape == (3, 16)


def test_an_official_file_calibrates(sky, tmp_path, monkeypatch, rng, capsys):
    """The mock under the names, reddening, zero points and flags of COSMOS2020 FARMER gives back its fluxes, and a population."""
    monkeypatch.setattr(survey, "load", lambda profile: survey.truth())
    monkeypatch.setattr(emulator, "load", lambda profile: Colours())
    n = len(sky.flux)
    read = catalog.read(official.farmer(tmp_path, sky.flux, sky.flux_err))
    torch.testing.assert_close(read.flux, sky.flux.float(), rtol=1e-4, atol=1e-6)
    assert int((~read.clean).sum()) == 50
    made = population.calibrate(read, "transport", generator=rng, start_steps=20, iterations=1, batch=64)
    passed = int((survey.select(sky.flux, "r<25") & read.clean).sum())
    assert f"{passed} of {n} galaxies are clean and have r<25" in capsys.readouterr().out
    assert made.population.sample(3, rng).shape == (3, 16)


def test_a_start_outside_the_selection_is_refused(sky, bright, rng):
    blind = population.ForwardModel(Colours(), survey.truth(), selection="r<10")
    with pytest.raises(ValueError, match="pass r<10 at step 0"):
        calibration.calibrate(sky, objective="transport", forward=blind, start=bright, generator=rng, **QUICK)


def test_it_stops_when_held_out_galaxies_gain_nothing(forward, sky, bright, rng):
    options = QUICK | {"iterations": 200, "lr": 1e-12, "every": 1, "patience": 3}
    history = calibration.calibrate(sky, objective="transport", forward=forward, start=bright, generator=rng, **options).history
    assert len(history["step"]) < 30


class Fragile:
    """A forward model whose power fails after some calls."""

    def __init__(self, forward, calls):
        self.forward, self.calls = forward, calls

    def __getattr__(self, name):
        return getattr(self.forward, name)

    def corrected(self, *values):
        return Fragile(self.forward.corrected(*values), self.calls)

    def __call__(self, *arguments):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.forward(*arguments)


@pytest.mark.parametrize("calls", [3, 9, 17])
def test_a_killed_run_ends_at_the_same_weights(calls, forward, sky, galaxies, tmp_path):
    options = QUICK | {"objective": "transport", "start": galaxies, "start_steps": 40, "iterations": 15, "corrections": False}

    def run(forward, path):
        kept = Checkpoint(path, {"seed": 1}) if path else None
        return calibration.calibrate(sky, forward=forward, generator=torch.Generator().manual_seed(1), checkpoint=kept, **options)

    whole = run(forward, None)
    path = tmp_path / "calibration.pt"
    with pytest.raises(KeyboardInterrupt):
        run(Fragile(forward, calls), path)
    again = run(Fragile(forward, 24 - calls // 2), path)  # a run from scratch makes 18 calls and records 4 times
    assert all(torch.equal(value, again.population.state_dict()[name]) for name, value in whole.population.state_dict().items())
    assert repr(whole.history) == repr(again.history)
    assert list(tmp_path.iterdir()) == [], "a finished run leaves no checkpoint"


# Corrections


def test_forward_model_without_corrections_never_asks_for_lines(forward, galaxies, rng):
    assert not hasattr(forward.emulator, "line_flux")
    draws = forward.draws(20, rng)
    plain = forward(galaxies[:20], draws)
    shift = torch.full((26,), 0.1)
    moved = forward.corrected(shift, torch.zeros(44)).flux(galaxies[:20]) / plain.flux_true
    expected = shift.exp()
    expected[filters.SHORT.index("r")] = 1.0
    torch.testing.assert_close(moved, expected.expand_as(moved))
    with pytest.raises(ValueError, match="Colours has no line_flux"):
        forward.corrected(shift, torch.ones(44)).flux(galaxies[:20])


@pytest.fixture(scope="module")
def shipped():
    return population.ForwardModel(emulator.load(), survey.truth())


def test_line_strengths_add_what_the_lines_emit(shipped, galaxies):
    theta, scale = galaxies[:30], torch.zeros(44)
    halpha = lines.CALIBRATED.index(6564.60)
    scale[halpha] = -0.5
    with torch.no_grad():
        change = shipped.corrected(torch.zeros(26), scale).flux(theta) - shipped.flux(theta)
        expected = -0.5 * shipped.emulator.line_flux(theta)[:, halpha]
    assert (change - expected).abs().max() < 1e-5 * shipped.flux(theta).max() and (change <= 1e-6).all()


class Lined(Colours):
    """The same with 44 Gaussian lines, of which H alpha and [O III] are strong, that move through the bands with redshift."""

    WAVE = filters.load(filters.COSMOS26).effective

    def line_flux(self, theta):
        wave = torch.tensor(lines.CALIBRATED).to(theta)[:, None] * (1 + parameters.column(theta, "z"))[:, None, None]
        inside = torch.exp(-0.5 * ((wave / self.WAVE.to(theta) - 1) / 0.04) ** 2)
        strength = torch.full((44, 1), 0.01)
        strength[HALPHA], strength[OIII] = 1.0, 1.0
        return likelihood.model_flux(self.magnitudes(theta))[:, None] * strength.to(theta) * inside


HALPHA, OIII = (lines.CALIBRATED.index(wave) for wave in (6564.60, 5008.24))


def test_injected_zero_points_and_lines_are_found(bright):
    """From the true population: offsets of 0.03 in three bands to 0.01, strengths of two lines in sign and to a third."""
    generator = torch.Generator().manual_seed(4)
    forward = population.ForwardModel(Lined(), survey.truth(), selection="r<30")
    offset, scale = torch.zeros(26), torch.zeros(44)
    bands = [filters.SHORT.index(band) for band in ("g", "J", "IA679")]
    offset[bands] = torch.tensor([0.03, -0.03, 0.03])
    scale[HALPHA], scale[OIII] = -0.3, 0.2
    with torch.no_grad():
        theta = bright.sample(16_000, generator)
        seen = forward.corrected(offset, scale)(theta, forward.draws(len(theta), generator))
    sky = population.Photometry(*(values[seen.selected] for values in seen))
    options = {"iterations": 50, "batch": 1024, "lr": 1e-5, "charge": 0.0, "corrections": True}
    made = calibration.calibrate(sky, objective="transport", forward=forward, start=bright, generator=generator, **options)
    assert (made.log_zero_point - offset)[bands].abs().max() < 0.01 and made.log_zero_point[filters.SHORT.index("r")] == 0
    assert (made.log_zero_point - offset).abs().max() < 0.025, "of the others, some are shallow"
    assert -0.4 < made.line_scale[HALPHA] < -0.2 and 0.13 < made.line_scale[OIII] < 0.27
    assert not forward.log_zero_point.any(), "the forward model is left alone"


# Posterior draws, ensembles


def posteriors(flux, flux_err, *, forward, start, generator, checkpoint=None, spread=0.05):
    """Stands for ``expectation_maximisation.posteriors``, which has tests of its own: draws scattered about galaxies of the start."""
    theta = start[torch.randint(len(start), (len(flux), 1), generator=generator).expand(-1, 4)].clone()
    theta[..., 1] = (theta[..., 1] + spread * torch.randn(theta.shape[:2], generator=generator)).clamp(-1.97, 0.18)
    return types.SimpleNamespace(theta=theta, history={"evidence": [1.0, 2.0]})


@pytest.fixture
def draws_of_the_start(monkeypatch):
    monkeypatch.setattr(expectation_maximisation, "posteriors", posteriors)


def test_posterior_learns_the_draws_then_transports(draws_of_the_start, forward, sky, galaxies, tmp_path):
    def run(forward, path=None):
        kept = Checkpoint(path, {}) if path else None
        options = {"density_steps": 60, "polish": 10, "polish_lr": 1e-4, "spread": 0.1}
        return calibration.calibrate(
            sky, forward=forward, start=galaxies, generator=torch.Generator().manual_seed(1), checkpoint=kept, **options
        )

    made = run(forward)
    assert made.draws.shape == (len(sky.flux), 4, 16) and made.history["em_evidence"] == [1.0, 2.0] and made.history["step"] == [0, 10]
    path = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        run(Fragile(forward, 5), path)
    again = run(forward, path)
    assert torch.equal(again.draws, made.draws)
    assert all(torch.equal(value, again.population.state_dict()[name]) for name, value in made.population.state_dict().items())


def test_posterior_without_a_band_has_no_transport(draws_of_the_start, forward, sky, galaxies, rng, capsys):
    part = sky._replace(flux=sky.flux.clone())
    part.flux[:, 3] = torch.nan
    options = {"forward": forward, "start": galaxies, "generator": rng, "density_steps": 60, "polish": 10}
    made = calibration.calibrate(part, **options)
    assert "no transport at the end" in capsys.readouterr().out and set(made.history) == {"em_evidence"}
    assert made.population.sample(5, rng).shape == (5, 16) and not made.line_scale.any()
    several = calibration.ensemble(made, forward, part, members=2, generator=rng, steps=40, width=24)
    assert several.sample(5, rng).shape == (5, 16)
    with pytest.raises(ValueError, match="drop the band"):
        calibration.calibrate(part, corrections=True, **options)


def test_an_ensemble_spreads_as_its_members_and_survives_a_kill(forward, sky, galaxies, tmp_path):
    draws = galaxies[: len(sky.flux), None].expand(-1, 2, -1)
    options = {"members": 3, "steps": 40, "polish": 2, "width": 24}

    def run(forward, path):
        return calibration.ensemble(
            draws, forward, sky, generator=torch.Generator().manual_seed(1), checkpoint=Checkpoint(path, {}), **options
        )

    path = tmp_path / "ensemble.pt"
    with pytest.raises(KeyboardInterrupt):
        run(Fragile(forward, 3), path)
    with pytest.raises(KeyboardInterrupt):
        run(Fragile(forward, 3), path)
    made, whole = run(forward, path), run(forward, None)
    again = population.Ensemble.from_state(made.state_dict())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    theta = galaxies[:20]
    with torch.no_grad():
        each = torch.stack([member.log_prob(theta) for member in made.members])
        assert torch.allclose(made.log_prob(theta), each.exp().mean(0).log(), atol=1e-4)
        assert each.std(0).min() > 0, "members differ"
    sample = made.sample(10, torch.Generator().manual_seed(1))
    assert sample.shape == (10, 16) and torch.equal(sample, again.sample(10, torch.Generator().manual_seed(1)))


def test_an_ensemble_needs_the_draws_of_its_galaxies(forward, sky, bright, rng):
    plain = calibration.Calibration(bright, torch.zeros(26), torch.zeros(44), {})
    with pytest.raises(ValueError, match='objective="posterior"'):
        calibration.ensemble(plain, forward, sky, members=2, generator=rng)
    more = len(sky.flux) + 7
    with pytest.raises(ValueError, match=f"draws of {more} galaxies"):
        calibration.ensemble(torch.zeros(more, 2, 16), forward, sky, members=2, generator=rng)


def test_galaxies_without_draws_lend_their_photometry(forward, sky, galaxies, rng, monkeypatch):
    """Posteriors of the first hundred; the transport at the end compares with all of the catalogue."""
    compared, match = [], calibration.match

    def spy(population, forward, loss, held, **options):
        compared.append(len(loss.target) + len(held))
        return match(population, forward, loss, held, **options)

    monkeypatch.setattr(calibration, "match", spy)
    options = {"iterations": 1, "trajectories": 1, "leapfrogs": 2, "keep": 1, "start_steps": 5, "refit_steps": 5, "density_steps": 20}
    made = calibration.calibrate(sky, forward=forward, start=galaxies[:100], generator=rng, polish=1, **options)
    assert compared == [len(sky.flux)] and made.draws.shape == (100, 1, 16)
    calibration.ensemble(made, forward, sky, members=1, generator=rng, steps=20, polish=1)
    assert compared[1] > len(sky.flux), "as many as there are, some twice, and those left out"


def test_load_ensemble_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("POPCOSMOS_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="population_ensemble"):
        population.load_ensemble("fast")


# Beyond the selection


class Selected:
    """The selected among galaxies, drawn as a population would."""

    def __init__(self, theta):
        self.theta = theta

    def sample(self, n, generator):
        return self.theta[torch.randint(len(self.theta), (n,), generator=generator)]


def test_unselected_recovers_the_galaxies_before_the_cut(galaxies):
    """Counts in bins of noiseless r, up to where 5 % are selected, from the selected galaxies alone."""
    rng = torch.Generator().manual_seed(11)
    forward = population.ForwardModel(Colours(), survey.truth(), selection="r<25")
    r = filters.SHORT.index("r")
    theta = galaxies[0].expand(300_000, 16).clone()
    theta[:, 0] += 0.4 * (Colours().magnitudes(galaxies[:1])[0, r] - 25) + 2 * torch.rand(len(theta), generator=rng) - 1  # about the limit
    with torch.no_grad():
        true = forward.flux(theta)[:, r]
        kept = theta[forward(theta, forward.draws(len(theta), rng)).selected]
    limit = filters.flux_from_magnitude(torch.tensor(25.0))
    made = calibration.unselected(Selected(kept), forward, 100_000, rng, repeats=4)
    with torch.no_grad():
        seen = forward.flux(made.theta)[:, r]
    edges = limit * torch.tensor([0.965, 0.98, 1.0, 1.03, 1.1, 1.3])
    wanted = torch.histogram(true, edges).hist / len(kept)
    weighted = torch.histogram(seen, edges, weight=made.weight).hist / len(made.theta)
    plain = torch.histogram(seen, edges).hist / len(made.theta)
    assert ((weighted - wanted) / wanted).abs().max() < 0.15, "scatter of a few hundred galaxies a bin"
    assert plain[0] < 0.5 * wanted[0], "without weights most galaxies beyond the limit are missing"
    assert made.beyond.any() and (seen[made.beyond] < limit).all() and not made.beyond[seen > limit].any()
