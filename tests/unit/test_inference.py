"""Ensembles on targets with known answers; the front door's promises about bad input."""

import math

import numpy as np
import pytest
import torch
from toy import Normal, Toy, observed

from popcosmos_lib.fitting import ensemble_engine, inference
from popcosmos_lib.galaxies import parameters, priors
from popcosmos_lib.population import metrics
from popcosmos_lib.sampling import ensemble, rng
from popcosmos_lib.survey import forward_model


@pytest.fixture
def g():
    return torch.Generator().manual_seed(1)


SHORT = {"engine": "ensemble", "n_library": 4000, "n_walkers": 34, "n_steps": 64}


class Correlated:
    """Two problems: the same 8-D Gaussian with correlations, at two places."""

    def __init__(self):
        a = torch.randn(8, 8, generator=torch.Generator().manual_seed(7))
        self.covariance = a @ a.T / 8 + 0.05 * torch.eye(8)
        self.precision = torch.linalg.inv(self.covariance)
        self.mean = torch.tensor([[0.0], [5.0]]).expand(2, 8)

    def __call__(self, x):
        d = x - self.mean[:, None]
        return -0.5 * ((d @ self.precision) * d).sum(-1)


@pytest.mark.parametrize("kind", ["mixed", "stretch"])
def test_ensemble_recovers_a_gaussian(kind, g):
    target = Correlated()
    start = target.mean[:, None] + 0.1 * torch.randn(2, 40, 8, generator=g)
    chain, acceptance = ensemble.ensemble(target, start, steps=3000, random=rng.Streams([1, 2]), thin=3, kind=kind)
    draws = chain[:, 200:].flatten(1, 2)
    sd = target.covariance.diagonal().sqrt()
    assert torch.allclose(draws.mean(1), target.mean, atol=float(0.15 * sd.max()))
    assert torch.allclose(draws.std(1), sd.expand(2, -1), rtol=0.12)
    assert (acceptance > 0.1).all()
    assert (ensemble.r_hat(chain[:, 200:, :, 0]) < 1.1).all()


def test_stretch_moves_alone_are_chosen_on_request(g):
    """The Hastings factor of a stretch move is (d - 1) ln z; of differential evolution zero."""
    x, others = torch.randn(3, 20, 6, generator=g), torch.randn(3, 20, 6, generator=g)
    _, stretch = ensemble._propose(x, others, "stretch", rng.Streams(range(3)))
    _, mixed = ensemble._propose(x, others, "mixed", rng.Streams(range(3)))
    assert (stretch != 0).all() and 0.6 < float((mixed == 0).float().mean()) < 0.95


def test_annealing_fills_both_modes_by_their_weight(g):
    """From one broad normal to modes of weight 0.8 and 0.2."""
    weight, place, width = torch.tensor([0.8, 0.2]), torch.tensor([-4.0, 4.0]), 0.5

    def both(x, _):
        base = -0.5 * (x / 4).square().sum(-1) - 5 * math.log(4)
        modes = -0.5 * ((x[..., :1] - place) / width) ** 2 - 0.5 * (x[..., 1:] / width).square().sum(-1, keepdim=True)
        return torch.stack([base, torch.logsumexp(weight.log() + modes - 5 * math.log(width), -1)])

    x = ensemble.anneal(both, 4 * torch.randn(200, 300, 5, generator=g), walkers=64, moves=5, random=rng.Streams(range(200)))
    left = (x[..., 0] < 0).float().mean(1)
    assert float(left.mean()) == pytest.approx(0.8, abs=0.05)
    assert float(x[..., 1].std()) == pytest.approx(width, rel=0.1)


def test_diagnostics_know_good_chains_from_stuck_ones(g):
    independent = torch.randn(1, 200, 32, generator=g)
    stuck = independent * 0.1 + torch.randn(1, 1, 32, generator=g)
    assert float(ensemble.r_hat(independent)) < 1.02 and float(ensemble.r_hat(stuck)) > 3
    assert float(ensemble.effective_size(independent)) > 0.7 * 6400
    walk = torch.zeros(1, 2000, 32)
    for i in range(1, 2000):  # autocorrelation time (1 + 0.9) / (1 - 0.9) = 19
        walk[:, i] = 0.9 * walk[:, i - 1] + torch.randn(1, 32, generator=g)
    assert float(ensemble.effective_size(walk)) == pytest.approx(64_000 / 19, rel=0.2)


def test_reweighting_turns_one_normal_into_another(g):
    x = torch.randn(50, 2000, generator=g)
    log_weight = -0.5 * (x - 0.7) ** 2 + 0.5 * x**2
    index, efficiency = ensemble.reweight(log_weight, 1000, torch.rand(50, 1, generator=g))
    assert float(x.gather(1, index).mean()) == pytest.approx(0.7, abs=0.02)
    assert float(efficiency.mean()) == pytest.approx(math.exp(-(0.7**2)), abs=0.05)


@pytest.fixture(scope="module")
def data():
    theta, flux, flux_err = observed(24, error=0.05)
    theta = Normal().sample(24, torch.Generator().manual_seed(3))
    flux = 10 ** (0.4 * (23.9 - Toy().magnitudes(theta)))
    noise = torch.distributions.StudentT(2.0)
    torch.manual_seed(0)
    return theta, flux * (1 + 0.05 * noise.sample(flux.shape)), 0.05 * flux


@pytest.fixture(scope="module")
def result(data):
    _, flux, flux_err = data
    options = {
        "emulator": Toy(),
        "population": Normal(),
        "n_walkers": 48,
        "n_steps": 200,
        "n_library": 10_000,
        "floor": 0.0,
        "engine": "ensemble",
        "n_draws": 256,
    }
    return inference.fit(flux, flux_err, "pop-cosmos", seed=2, **options), options


def test_posteriors_contain_the_truth_as_often_as_they_should(data, result):
    """All 16 parameters of 24 galaxies; they are correlated, so the bound is that of 100 independent trials."""
    inside = metrics.coverage(result[0].samples, data[0]) / 24
    low, high = metrics.binomial_range(100, 0.68)
    assert low / 100 <= float(inside.mean()) <= high / 100


def test_result_is_what_it_says(data, result):
    found, _ = result
    assert found.samples.shape == (24, 256, 16) and found.prior == "pop-cosmos"
    names = [*parameters.NAMES, *inference.DERIVED]
    expected = ["id", *(f"{name}_{q}" for name in names for q in inference.QUANTILES)]
    assert found.summary.colnames[: len(expected)] == expected
    tests = ["ess", "khat", "rhat", "engine", "chi2", "p_fit", "p_band", "p_rare", "bands", "flags"]
    assert found.summary.colnames[len(expected) :] == tests
    assert np.allclose(found.summary["z_q50"], found.samples[..., 15].median(1).values, atol=0.02)
    assert (found.summary["z_q16"] <= found.summary["z_q84"]).all() and set(found.summary["engine"]) == {"ensemble"}
    assert torch.allclose(found.weights.sum(1), torch.ones(24), atol=1e-4)
    low, high = (np.asarray(found.summary[f"log10M_{kind}_q50"]) for kind in ("remain", "formed"))
    assert ((high - low > 0.05) & (high - low < 0.5)).all(), "ten to seventy per cent of the mass formed is lost"
    assert np.allclose(found.summary["A_V_q50"], 1.0857 * found.summary["dust2_q50"], rtol=1e-3)


def test_same_seed_same_draws(data, result):
    _, flux, flux_err = data
    again = inference.fit(flux[:24], flux_err[:24], "pop-cosmos", seed=2, **result[1])
    assert torch.equal(again.samples, result[0].samples)


def test_walkers_of_a_galaxy_do_not_depend_on_which_others_are_fitted(data):
    """Bit for bit, at the default number of walkers."""
    _, flux, flux_err = data
    options = SHORT | {"n_walkers": 64, "emulator": Toy(), "population": Normal(), "seed": 2}
    whole = inference.fit(flux[:9], flux_err[:9], "pop-cosmos", **options)
    for rows in ([4], [7, 2, 8]):
        part = inference.fit(flux[rows], flux_err[rows], "pop-cosmos", id=rows, **options)
        assert torch.equal(part.samples, whole.samples[rows]), "the draws of a galaxy depend on which others are fitted with it"
    other = inference.fit(flux[:1], flux_err[:1], "pop-cosmos", id=["another"], **options)
    assert not torch.equal(other.samples[0], whole.samples[0])


def test_prospector_prior_needs_no_population(data):
    _, flux, flux_err = data
    fit = inference.fit(flux[:3], flux_err[:3], "prospector", emulator=Toy(), **SHORT, id=["a", "b", "c"])
    assert list(fit.summary["id"]) == ["a", "b", "c"] and fit.samples.isfinite().all()


def test_bad_rows_are_flagged_not_lost(data):
    _, flux, flux_err = (x.clone() for x in data)
    flux, flux_err = flux[:5], flux_err[:5]
    flux[0] = torch.nan  # nothing measured
    flux[1, 3] = torch.nan  # one band missing
    flux_err[2, 4] = 0.0
    flux_err[3, 4] = -1.0
    flux[4, ::2] *= 30.0  # impossible colours
    fit = inference.fit(flux, flux_err, "prospector", emulator=Toy(), floor=0.02, **SHORT)
    table = fit.summary
    assert len(table) == 5 and torch.isnan(fit.samples[0]).all() and np.isnan(table["z_q50"][0])
    assert table["flags"][0] & 16 and list(table["bands"]) == [0, 25, 25, 25, 26]
    assert table["flags"][2] & 1 and table["flags"][3] & 1 and not table["flags"][1] & 1
    assert table["flags"][4] & 32, "a galaxy that the model cannot make must say so"
    assert torch.isfinite(fit.samples[1:]).all()


@pytest.mark.parametrize("factor, unit", [(1 / 3.631e9, "maggies"), (1e6, "pJy")])
def test_wrong_units_are_suspected(data, factor, unit):
    with pytest.raises(ValueError, match="convert to µJy"):
        inference.fit(data[1] * factor, data[2] * factor, "prospector", emulator=Toy())


def test_misspelt_prior_and_wrong_shape(data):
    with pytest.raises(ValueError, match="did you mean 'prospector'"):
        inference.fit(data[1], data[2], "propsector", emulator=Toy())
    with pytest.raises(ValueError, match="did you mean 'exact'"):
        inference.fit(data[1], data[2], engine="exat", emulator=Toy())
    with pytest.raises(ValueError, match="one column per band"):
        inference.fit(data[1][:, :9], data[2][:, :9], "prospector", emulator=Toy())


def test_default_floor_is_published_and_never_below_the_minimum():
    floor = inference.published_floor()
    assert floor.shape == (26,) and float(floor.min()) == pytest.approx(0.03) and float(floor[0]) == pytest.approx(0.1)


def test_mean_magnitude_coordinate_is_exact(data, g):
    """There and back, and a density that does not change: the map has unit Jacobian."""
    _, flux, flux_err = data
    law = ensemble_engine.Law("prospector", None, Toy(), 2000, g)
    problem = ensemble_engine.Problem(flux[:4], flux_err[:4], law, Toy(), torch.tensor(0.02))
    phi = parameters.to_latent(priors.Prospector().library(4 * 6, g)).reshape(4, 6, 16)
    x, magnitude = problem.bright(phi)
    back, same = problem.latent(x)
    assert torch.allclose(back, phi, atol=1e-3) and torch.allclose(same, magnitude, atol=1e-3)
    jacobian = torch.autograd.functional.jacobian(lambda row: problem.latent(row.reshape(1, 1, 16).expand(4, 1, 16))[0][0, 0], x[0, 0])
    assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(0.0, abs=1e-4)


def test_selection_is_divided_out_only_for_galaxies_that_passed():
    limit = 10 ** (0.4 * (23.9 - 25.0))
    flux, flux_err = torch.full((3, 1, 26), limit), torch.full((3, 1, 26), 0.2 * limit)
    flux[0, 0, 2], flux[1, 0, 2] = 1.1 * limit, 0.9 * limit
    flux[2, 0, 2] = flux_err[2, 0, 2] = torch.nan
    magnitude = torch.full((3, 3, 26), 25.0)
    magnitude[:, 1, 2], magnitude[:, 2, 2] = 20.0, 30.0
    log_p = forward_model.log_passing(magnitude, flux, flux_err, 0.0)
    t = torch.distributions.StudentT(2.0)
    torch.manual_seed(0)
    passed = [float((limit * f + 0.2 * limit * t.sample((200_000,)) > limit).float().mean()) for f in (1.0, 100.0, 0.01)]
    assert np.allclose(log_p[0].exp(), passed, rtol=0.02) and (log_p[1:] == 0).all()
