"""The exact engine on a population, an emulator and a survey of closed form: coverage, two ways to one posterior, promises kept."""

import numpy as np
import pytest
import torch
from toy import Normal, Sky, Toy

from popcosmos_lib import inference, metrics, parameters, photoz, priors, proposal, trials

N = 40
OPTIONS = {"emulator": Toy(), "population": Normal(), "floor": 0.02, "seed": 4}


@pytest.fixture(scope="module")
def guess():
    """Deliberately trained too short: exactness must not depend on it."""
    g = torch.Generator().manual_seed(5)
    return proposal.learn(Normal(), Toy(), Sky(), n_simulated=4000, steps=250, generator=g, width=48, depth=4)


@pytest.fixture(scope="module")
def trial():
    return trials.galaxies(N, Normal(), Toy(), Sky(), torch.Generator().manual_seed(6), floor=0.02)


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
    """Three rounds of importance sampling are not enough, so annealing and Hamiltonian chains take over: another way, the same answer."""
    few = slice(0, 2)
    chains = inference.fit(trial.flux[few], trial.flux_err[few], guess=guess[0], rounds=3, **OPTIONS)
    assert set(chains.summary["engine"]) == {"chains"} and (chains.summary["rhat"] < 1.2).all(), chains.summary["rhat"]
    for name in ("z", "log10M_formed", "dust2"):
        width = (result.summary[f"{name}_q84"] - result.summary[f"{name}_q16"])[few] / 2
        apart = (chains.summary[f"{name}_q50"] - result.summary[f"{name}_q50"][few]) / width
        assert np.abs(apart).max() < 0.5, (name, apart)


def test_draws_depend_on_seed_and_id_only(trial, guess, result):
    part = [17, 3]
    again = inference.fit(trial.flux[part], trial.flux_err[part], guess=guess[0], id=part, **OPTIONS)
    assert torch.equal(again.samples, result.samples[part]) and torch.equal(again.weights, result.weights[part])
    other = inference.fit(trial.flux[part], trial.flux_err[part], guess=guess[0], id=part, **(OPTIONS | {"seed": 5}))
    assert not np.allclose(other.summary["z_q50"], again.summary["z_q50"], atol=1e-6)


def test_missing_bands_and_empty_rows(trial, guess):
    part = trials.without(trial, 5, torch.Generator().manual_seed(8))
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


def test_zero_points_of_two_bands_are_found_by_the_other_half(trial, guess):
    wrong = torch.ones(26)
    wrong[4], wrong[11] = 1.25, 0.8
    options = {**OPTIONS, "guess": guess[0], "n_draws": 128}
    g = torch.Generator().manual_seed(11)
    flux, flux_err, found = photoz.cross_validated(trial.flux * wrong, trial.flux_err * wrong, trial.theta[:, -1], g, **options)
    share = (found[:, [4, 11]] - 1) / (wrong[[4, 11]] - 1)
    assert (share > 0.4).all() and (share < 1.3).all(), "16 parameters take up a part of what is wrong in 26 bands of five per cent"
    assert float((found - wrong).abs().median()) < 0.02
    assert torch.allclose(flux / flux_err, trial.flux / trial.flux_err, rtol=1e-4), "signal to noise is what it was"


def test_density_of_the_closed_prior_is_that_of_the_prior(guess):
    """Per unit x: the density in phi times the width of x."""
    net = guess[0]
    wide = proposal.Proposal(net.flow, net.softening, 20 * torch.eye(16)[0], 0.7 * torch.ones(16))
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(9))
    phi = 20 * torch.eye(16)[0] + 0.7 * x
    expected = priors.Prospector().log_prob(phi) + 16 * np.log(0.7)
    assert torch.allclose(wide.log_prior(x, parameters.to_theta(phi)), expected.float(), atol=1e-3)
    assert torch.allclose(wide.theta(x), parameters.to_theta(phi))


def test_proposals_survive_the_store(guess):
    net = guess[0]
    again, smaller = proposal.restore(net.state_dict()), proposal.restore(proposal.compact(net))
    flux, error = torch.rand(5, 26), torch.full((5, 26), 0.1)
    flux[:, 3] = torch.nan
    given = net.features(flux, error, torch.tensor(0.02))
    assert given.shape == (5, 78) and given.isfinite().all() and (given[:, 52 + 3] == 1).all()
    w = torch.randn(5, 16)
    assert torch.equal(again.flow.from_base(w, again.features(flux, error, torch.tensor(0.02)))[0], net.flow.from_base(w, given)[0])
    assert torch.allclose(smaller.flow.from_base(w, given)[0], net.flow.from_base(w, given)[0], atol=0.05), "rounded, not changed"


def test_mocks_of_the_closed_prior_are_bright_enough_and_the_brightest_bands_missing_sometimes():
    mocks = proposal._Mocks(None, Toy(), Sky(), 500, torch.Generator().manual_seed(10))
    assert (mocks.flux[:, 2] > 10 ** (0.4 * (23.9 - 26.0))).all()
    x, flux, flux_err, floor = mocks.batch(2000)
    missing = flux.isnan().float().mean(1)
    assert float((missing == 0).float().mean()) > 0.5 and 0.1 < float(missing.mean()) < 0.3
    assert float(floor.min()) < 0.006 and float(floor.max()) > 0.1 and (flux_err > 0).all()
