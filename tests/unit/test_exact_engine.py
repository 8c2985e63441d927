"""The exact engine on a population, an emulator and a survey of closed form: coverage, two ways to one posterior, promises kept."""

import numpy as np
import pytest
import torch
from toy import Normal, Sky, Toy

from popcosmos_lib import population, survey
from popcosmos_lib.fitting import exact_engine, goodness_of_fit, inference, photoz, proposal, sbc
from popcosmos_lib.galaxies import parameters, priors
from popcosmos_lib.population import metrics
from popcosmos_lib.survey import likelihood

N = 40
OPTIONS = {"emulator": Toy(), "population": Normal(), "floor": 0.02, "seed": 4}


@pytest.fixture(scope="module")
def guess():
    """Deliberately trained too short: exactness must not depend on it."""
    g = torch.Generator().manual_seed(5)
    return proposal.learn(Normal(), Toy(), Sky(), n_simulated=20_000, steps=400, batch=512, generator=g, width=48, depth=4)


@pytest.fixture(scope="module")
def trial():
    return sbc.galaxies(N, Normal(), Toy(), Sky(), torch.Generator().manual_seed(6), floor=0.02)


@pytest.fixture(scope="module")
def result(trial, guess):
    return inference.fit(trial.flux, trial.flux_err, guess=guess[0], **OPTIONS)


def test_training_lowers_the_loss(guess):
    history = guess[1]
    assert float(history[-20:].mean()) < float(history[:20].mean()) - 3


def test_every_galaxy_passes_its_gates(result):
    assert (result.summary["ess"] >= 400).mean() >= 0.95 and (result.summary["khat"] < 0.7).mean() >= 0.95
    assert ((result.summary["flags"] & 192) == 0).mean() >= 0.95


def test_truths_are_covered(result, trial):
    g = torch.Generator().manual_seed(7)
    inside = metrics.coverage(result.equal(512, g), trial.theta) / N
    low, high = metrics.binomial_range(3 * N, 0.68, 0.999)  # parameters of one galaxy are correlated: as good as three independent ones
    assert low / (3 * N) <= float(inside.mean()) <= high / (3 * N)
    ranks = metrics.pit(result.samples[..., -1], trial.theta[:, -1], result.weights)
    assert metrics.ks(ranks) < metrics.ks_limit(N, 0.999)


def test_chains_find_the_same_posteriors(trial, guess, result):
    """Two rounds of importance sampling are not enough, so annealing and Hamiltonian chains take over: another way, the same answer."""
    few = slice(0, 2)
    chains = inference.fit(trial.flux[few], trial.flux_err[few], guess=guess[0], rounds=2, **OPTIONS)
    assert set(chains.summary["engine"]) == {"chains"} and (chains.summary["rhat"] <= exact_engine.RHAT).all(), chains.summary["rhat"]
    assert (chains.summary["flags"] & 64 == 0).all(), "chains that mixed are to be trusted"
    for name in ("z", "log10M_formed", "dust2"):
        width = (result.summary[f"{name}_q84"] - result.summary[f"{name}_q16"])[few] / 2
        apart = (chains.summary[f"{name}_q50"] - result.summary[f"{name}_q50"][few]) / width
        assert np.abs(apart).max() < 0.35, (name, apart)


def test_no_chains_for_what_is_no_galaxy(trial, guess):
    flux = trial.flux[:2].clone()
    flux[:, 3] *= 1e4
    found = inference.fit(flux, trial.flux_err[:2], guess=guess[0], rounds=3, **OPTIONS).summary
    assert set(found["engine"]) == {"importance"} and (found["flags"] & 32 > 0).all() and (found["flags"] & 64 > 0).all(), found["flags"]


def test_draws_depend_on_seed_and_id_only(trial, guess, result):
    part = [17, 3]
    again = inference.fit(trial.flux[part], trial.flux_err[part], guess=guess[0], id=part, **OPTIONS)
    assert torch.equal(again.samples, result.samples[part]) and torch.equal(again.weights, result.weights[part])
    other = inference.fit(trial.flux[part], trial.flux_err[part], guess=guess[0], id=part, **(OPTIONS | {"seed": 5}))
    assert not np.allclose(other.summary["z_q50"], again.summary["z_q50"], atol=1e-6)


def test_missing_bands_and_empty_rows(trial, guess):
    part = sbc.without(trial, 5, torch.Generator().manual_seed(8))
    flux = part.flux[:6].clone()
    flux[2] = torch.nan
    flux[3, 2:] = torch.nan  # two bands left
    found = inference.fit(flux, part.flux_err[:6], guess=guess[0], **OPTIONS)
    table = found.summary
    assert np.isnan(table["z_q50"][2]) and table["flags"][2] & 16 and table["engine"][2] == ""
    assert np.isfinite(np.delete(np.asarray(table["z_q50"]), 2)).all()
    narrow, wide = (table["z_q84"] - table["z_q16"])[0], (table["z_q84"] - table["z_q16"])[3]
    assert wide > narrow, "two bands cannot know more than 21"


def test_known_redshifts_are_kept_and_tell_more_of_the_rest(trial, guess, result):
    few, z = slice(0, 4), trial.theta[:4, -1].clone()
    z[3] = torch.nan
    known = inference.fit(trial.flux[few], trial.flux_err[few], guess=guess[0], redshift=z, **OPTIONS)
    apart = (known.samples[:3, :, -1] - z[:3, None]).abs() / (1 + z[:3, None])
    assert float(apart.max()) < 0.012 and torch.equal(known.samples[3], result.samples[3])


def test_zero_points_of_a_calibration_are_applied(trial, guess, result):
    """Measured on other zero points and fitted with these, galaxies are the same galaxies."""
    few, shift = slice(0, 3), torch.zeros(26)
    shift[[0, 7]] = torch.tensor([0.1, -0.05])
    there = population.ForwardModel(Toy(), survey.truth()).corrected(shift, torch.zeros(44))
    measured = [values[few] * shift.exp() for values in (trial.flux, trial.flux_err)]
    found = inference.fit(*measured, guess=guess[0], **(OPTIONS | {"emulator": there})).summary
    for name in ("z", "log10M_formed", "dust2"):
        width = (result.summary[f"{name}_q84"] - result.summary[f"{name}_q16"])[few] / 2
        apart = (found[f"{name}_q50"] - result.summary[f"{name}_q50"][few]) / width
        assert np.abs(apart).max() < 0.35, (name, apart)
    assert list(found["flags"]) == list(result.summary["flags"][few])
    described = ((trial.flux[few], trial.flux_err[few], OPTIONS["emulator"]), (*measured, there))
    draws = result.samples[few], result.weights[few]
    one, other = (goodness_of_fit.goodness(*draws, *data, torch.full((26,), OPTIONS["floor"]), emulator) for *data, emulator in described)
    for name in one:  # of one set of draws: the most likely of two sets differ by more than the zero points change
        assert torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-3), name


def test_a_forward_model_moves_its_networks_to_a_device():
    """The meta device stands for a GPU: fits go where ``_device`` says that the emulator is."""
    net = torch.nn.BatchNorm1d(3)
    there = population.ForwardModel(net, survey.truth())
    assert there.to("meta") is there and inference._device(there).type == "meta" == inference._device(net).type
    assert population.ForwardModel(Toy(), survey.truth()).to("cpu").emulator.error is None and inference._device(Toy()) == "cpu"


def test_zero_points_of_two_bands_are_found_by_the_other_half(trial, guess):
    wrong = torch.ones(26)
    wrong[4], wrong[11] = 1.25, 0.8
    options = {**OPTIONS, "guess": guess[0], "n_draws": 128, "ess": 100.0}
    g = torch.Generator().manual_seed(11)
    flux, flux_err, found = photoz.cross_validated(trial.flux * wrong, trial.flux_err * wrong, trial.theta[:, -1], g, **options)
    share = (found[:, [4, 11]] - 1) / (wrong[[4, 11]] - 1)
    assert (share > 0.4).all() and (share < 1.3).all(), "16 parameters take up a part of what is wrong in 26 bands of five per cent"
    assert float((found - wrong).abs().median()) < 0.02
    assert torch.allclose(flux / flux_err, trial.flux / trial.flux_err, rtol=1e-4), "signal to noise is what it was"


def test_coordinates_lead_to_parameters_with_the_right_volume(trial, guess):
    """ln |d phi / d w| against the determinant of the Jacobian, and photometry against that of the parameters."""
    net, few = guess[0], slice(0, 3)
    flux, flux_err, floor = trial.flux[few].clone(), trial.flux_err[few], torch.full((26,), 0.02)
    flux[1, 5:] = torch.nan
    given = net.features(flux, flux_err, floor)
    w = torch.randn(3, 1, 16, generator=torch.Generator().manual_seed(9))
    phi, magnitude, log_det = net.decode(w, given, flux, flux_err, floor, Toy())
    for i in range(3):
        one = lambda v, i=i: net.decode(v[None, None], given[i : i + 1], flux[i : i + 1], flux_err[i : i + 1], floor, Toy())[0][0, 0]  # noqa: E731
        jacobian = torch.autograd.functional.jacobian(one, w[i, 0])
        assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(float(log_det[i, 0]), abs=0.02)
    theta = parameters.to_theta(phi)[:, 0]
    assert torch.allclose(likelihood.photometry(Toy(), theta), magnitude[:, 0], atol=1e-3)


def test_a_trajectory_that_runs_away_has_no_density_and_harms_no_other(trial, guess):
    target = exact_engine.Target(trial.flux[:1], trial.flux_err[:1], torch.full((26,), 0.02), guess[0], Normal(), Strict())
    w = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(13))
    alone = target(w[:, :1], torch.tensor([0]))[0]
    w[0, 1], w[0, 2, 5] = 1e38, torch.nan
    together = target(w, torch.tensor([0]))[0]
    assert torch.allclose(together[:, :1], alone, rtol=1e-5) and not (together[0, 1:] > -1e30).any()


class Strict(Toy):
    """As real emulators do, it looks redshifts up in tables."""

    def magnitudes(self, theta):
        assert theta.isfinite().all()
        return super().magnitudes(theta)


def without_density(net):
    """The proposal as it is for a prior of closed form."""
    return proposal.Proposal(net.flow, None, net.softening, net.centre, net.spread)


def test_density_of_the_closed_prior_is_that_of_the_prior(guess):
    net, closed = guess[0], without_density(guess[0])
    phi = 20 * torch.eye(16)[0] + 0.7 * torch.randn(50, 16, generator=torch.Generator().manual_seed(9))
    expected = priors.Prospector().log_prob(phi)
    assert torch.allclose(closed.log_prior(phi, parameters.to_theta(phi)), expected.float(), atol=1e-3)
    assert set(closed.state_dict()) == {name for name in net.state_dict() if not name.startswith("density.")}


def test_brightness_is_the_peak_of_the_likelihood_and_its_width():
    """Of a spectrum of given shape, against a scan of N; without photometry, that of the prior."""
    g = torch.Generator().manual_seed(12)
    shape = 2 * torch.randn(6, 26, generator=g)
    model = likelihood.model_flux(shape + 22.0)
    error = 0.05 * model + 0.01
    flux = model + error * torch.randn(model.shape, generator=g)
    flux[4, 3:], flux[5] = torch.nan, torch.nan
    floor = torch.full((26,), 0.02)
    peak, width = proposal.brightness(shape, flux, error, floor, 21.0, 1.5)
    scan = torch.linspace(15, 28, 26_001)
    log_p = likelihood.log_likelihood(shape[:, None] + scan[:, None], flux[:, None], error[:, None], floor) - 0.5 * ((scan - 21) / 1.5) ** 2
    assert torch.allclose(scan[log_p.argmax(1)], peak, atol=0.01), "the fractional part of the error follows the model, hence not 0.001"
    level = log_p.softmax(1).cumsum(1)
    half = (scan[(level < 0.84).sum(1)] - scan[(level < 0.16).sum(1)]) / 2
    assert ((width / half - 1).abs() < 0.35).all(), (width, half)
    assert float(peak[5]) == pytest.approx(21.0) and float(width[5]) == pytest.approx(1.5)


def test_flow_in_place_of_the_population_is_put_right(trial, guess):
    """A proposal whose density is that of another population gives the same posteriors: the draws that are kept are weighted anew."""
    net = guess[0]
    x = torch.randn(500, 16, generator=torch.Generator().manual_seed(13))
    phi = net.centre + net.spread * x
    theta = parameters.to_theta(phi)
    target = exact_engine.Target(trial.flux, trial.flux_err, torch.full((26,), 0.02), net, Normal(), Toy())
    log_flow = net.log_prior(phi, theta)
    weight, share, found = target.amends(theta, torch.full((500,), 1 / 500))
    log_p = Normal().log_prob(theta) + parameters.log_jacobian(phi)
    assert torch.allclose(found, log_p, atol=1e-4)
    inside = log_flow.isfinite() & (phi[:, 1:].abs() < 5).all(1)
    body = weight < weight.quantile(0.85)  # the tail is smoothed
    ratio = (weight.log() - (log_p - log_flow))[inside & body & (weight > 0)]
    assert float(ratio.std()) < 0.02 and 0 < float(share) <= 1 and float(weight.sum()) == pytest.approx(1, abs=1e-4)
    closed = exact_engine.Target(trial.flux, trial.flux_err, torch.full((26,), 0.02), net, None, Toy())
    assert torch.equal(closed.amends(theta, weight)[0], weight) and float(closed.amends(theta, weight)[1]) == 1
    two = target.amends(theta.view(2, 250, 16), torch.full((2, 250), 1 / 250))
    alone = target.amends(theta[250:], torch.full((250,), 1 / 250))
    assert torch.allclose(two[0][1], alone[0]) and torch.allclose(two[1][1], alone[1]), "galaxies together as alone"


def test_a_draw_of_which_the_flow_says_far_too_little_does_not_outweigh_all_others(trial, guess, monkeypatch):
    net, x = guess[0], torch.randn(500, 16, generator=torch.Generator().manual_seed(14))
    theta = parameters.to_theta(net.centre + net.spread * x)
    log_p = Normal().log_prob(theta) + parameters.log_jacobian(net.centre + net.spread * x)
    gap = 0.3 * torch.randn(500, generator=torch.Generator().manual_seed(15))
    gap[7] = 8.0
    monkeypatch.setattr(net, "log_prior", lambda phi, theta: log_p - gap)
    target = exact_engine.Target(trial.flux, trial.flux_err, torch.full((26,), 0.02), net, Normal(), Toy())
    weight, share, _ = target.amends(theta, torch.full((500,), 1 / 500))
    assert float(gap.softmax(0)[7]) > 0.8 and float(weight[7]) < 0.1 and float(share) > 0.3
    assert weight.argmax() == 7 and float(weight.sum()) == pytest.approx(1, abs=1e-4)


class Shifted(Normal):
    """A population whose galaxies are a little dustier."""

    def __init__(self, by):
        super().__init__()
        self.shift[parameters.INDEX["dust2"]] += by


class Mixture:
    """What `population.Ensemble` is to populations."""

    def __init__(self, members):
        self.members = members

    def log_prob(self, theta, steps=0):
        return torch.stack([member.log_prob(theta) for member in self.members]).logsumexp(0) - np.log(len(self.members))

    def sample(self, n, generator):
        return torch.cat([member.sample(n // len(self.members), generator) for member in self.members])


def test_draws_weighted_by_another_population_are_its_posterior(trial, guess, result):
    """The same draws, weighted, against a fit under the other population; and a mixture of both lies between."""
    other, column, few = Shifted(0.3), parameters.INDEX["dust2"], slice(0, 12)
    weight = inference.reweighted(result.samples[few], result.weights[few], Normal(), other)
    assert torch.allclose(weight.sum(1), torch.ones(12), atol=1e-4)
    medians = {"weighted": inference.quantiles(result.samples[few, :, column], weight, torch.tensor([0.5]))[0].numpy()}
    for name, law in {"fitted": other, "mixture": Mixture([Normal(), other])}.items():
        fit = inference.fit(trial.flux[few], trial.flux_err[few], guess=guess[0], **OPTIONS | {"population": law})
        medians[name] = np.asarray(fit.summary["dust2_q50"])
    before, above = (np.asarray(result.summary[f"dust2_{q}"])[few] for q in ("q50", "q84"))
    moved = {name: float(np.mean((values - before) / (above - before))) for name, values in medians.items()}
    assert moved["fitted"] > 0.05, "the two populations must matter"
    assert np.sqrt(np.mean(((medians["weighted"] - medians["fitted"]) / (above - before)) ** 2)) < 0.15
    assert 0.2 * moved["fitted"] < moved["mixture"] < 0.8 * moved["fitted"], moved


def test_proposals_survive_the_store(guess):
    net = guess[0]
    again, smaller = proposal.restore(net.state_dict()), proposal.restore(proposal.compact(net))
    flux, error = torch.rand(5, 26), torch.full((5, 26), 0.1)
    flux[:, 3] = torch.nan
    given = net.features(flux, error, torch.tensor(0.02))
    assert given.shape == (5, 78) and given.isfinite().all() and (given[:, 52 + 3] == 1).all()
    w = torch.randn(5, 15)
    assert torch.equal(again.flow.from_base(w, again.features(flux, error, torch.tensor(0.02)))[0], net.flow.from_base(w, given)[0])
    assert torch.allclose(smaller.flow.from_base(w, given)[0], net.flow.from_base(w, given)[0], atol=0.05), "rounded, not changed"
    x = torch.randn(5, 16)
    assert torch.equal(again.density.log_prob(x), net.density.log_prob(x))


def test_mocks_of_the_closed_prior_are_bright_enough_and_the_brightest_bands_missing_sometimes():
    mocks = proposal._Mocks(None, Toy(), Sky(), 500, torch.Generator().manual_seed(10))
    assert (mocks.flux[:, 3:10].amax(1) > 10 ** (0.4 * (23.9 - 26.5))).all(), "detected in one band of i to Ks"
    assert (mocks.flux[:, 2] < 10 ** (0.4 * (23.9 - 27.0))).any(), "galaxies that drop out of r must be among them"
    x, flux, flux_err, floor = mocks.batch(2000)
    missing = flux.isnan().float().mean(1)
    assert float((missing == 0).float().mean()) > 0.5 and 0.1 < float(missing.mean()) < 0.3
    assert float(floor.min()) < 0.006 and float(floor.max()) > 0.1 and (flux_err > 0).all()


def test_galaxies_fainter_than_the_mocks_are_named(trial, guess):
    flux = trial.flux[:4].clone()
    flux[1:, 3:10] = 10 ** (0.4 * (23.9 - 27.0))
    flux[2, 9] *= 2  # 26.25 mag in Ks
    flux[3, 3:10] = torch.nan  # not measured there
    assert proposal.faint(flux).tolist() == [False, True, False, False]
    net = without_density(guess[0])
    found = inference.fit(flux[:2], trial.flux_err[:2], "prospector", guess=net, emulator=Toy(), floor=0.02, rounds=1, n_draws=8).summary
    assert (found["flags"] & 512).tolist() == [0, 512]
