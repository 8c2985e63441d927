"""Closure scores: at the floor for another sample of the same sky, beyond each bar for a sample that is wrong in what the bar judges."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from popcosmos_lib import population, survey
from popcosmos_lib.emulation import emulator
from popcosmos_lib.galaxies import parameters, universe
from popcosmos_lib.population import closure_test, metrics
from popcosmos_lib.survey import photometry
from popcosmos_lib.synthesis import filters


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(7)


@pytest.fixture(scope="module")
def sky():
    """Galaxies with r < 25 in two halves: (flux, theta), (flux, theta)."""
    rng = torch.Generator().manual_seed(8)
    theta = universe.sample(40_000, rng)
    forward = population.ForwardModel(emulator.load(), survey.truth())
    with torch.no_grad():
        seen = forward(theta, forward.draws(len(theta), rng))
    flux, theta = seen.flux[seen.selected], theta[seen.selected]
    return [(flux[i::2], theta[i::2]) for i in range(2)]


@pytest.fixture(scope="module")
def test(sky):
    return closure_test.Closure(*sky[0])


def changed(theta, name, by):
    theta = theta.clone()
    theta[:, parameters.INDEX[name]] += by
    return theta


def dimmed(flux, names, magnitudes):
    flux = flux.clone()
    flux[:, [filters.SHORT.index(name) for name in names]] *= 10 ** (-0.4 * magnitudes)
    return flux


def test_a_sample_against_itself_reaches_every_goal(test, sky, rng):
    scores = test(*sky[0], generator=rng)
    judged = [bar.name for bar in closure_test.BARS if not math.isnan(bar.bar)]
    assert closure_test.verdicts(scores) == dict.fromkeys(judged, "goal")
    assert all(scores[key] == 0 for key in ("pc1", "ks_z", "mass", "sfr_z2", "log10Zgas", "bin3", "mean_z"))


def test_another_sample_of_the_sky_is_at_the_floor(test, sky, rng):
    scores = test(*sky[1], generator=rng)
    floor = test.floor(*sky[1], generator=rng)
    assert scores.keys() == floor.keys()
    assert scores["w2_ratio"] == pytest.approx(1, abs=0.3) and floor["w2_ratio"] == pytest.approx(1, abs=0.3)
    assert scores["c2st"] == pytest.approx(0.5, abs=0.03)
    n = len(sky[0][0])
    expected = math.sqrt(math.pi / 2) * math.log(2) * math.sqrt(2 / n)  # mean of the Kolmogorov distribution, for two samples of n
    assert np.mean([floor[f"pc{i}"] for i in range(1, 7)]) == pytest.approx(expected, rel=0.25)
    assert all(scores[name] < 2.5 * expected for name in closure_test.BARS[-1].scores), "no KS distance beyond chance"


WRONG = {
    "colour components": (lambda flux: dimmed(flux, ["g"], 0.1), None),
    "sliced W2": (lambda flux: dimmed(flux, filters.SHORT, 0.8), None),
    "classifier": (lambda flux: dimmed(flux, ["IA738", "IB827"], 0.05), None),
    "mean redshift": (None, ("z", 0.05)),
    "mass": (None, ("log10M_formed", 0.15)),
    "star-formation rate": (None, ("log10SFR_ratio2", 0.8)),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_bar_can_be_missed(name, test, sky, rng):
    dim, move = WRONG[name]
    flux, theta = sky[0]
    scores = test(dim(flux) if dim else flux, changed(theta, *move) if move else theta, generator=rng)
    verdicts = closure_test.verdicts(scores)
    assert verdicts[name] == "missed", scores
    if move:
        assert verdicts["colour components"] == verdicts["sliced W2"] == verdicts["classifier"] == "goal", "photometry did not change"
    else:
        assert verdicts["mass"] == verdicts["star-formation rate"] == "goal", "the parameters did not change"
    assert closure_test.verdicts(scores, slack=1000)[name] == "bar"


def test_every_judged_test_has_a_case():
    assert set(WRONG) == {bar.name for bar in closure_test.BARS if not math.isnan(bar.bar)}


def test_distances_along_components_are_those_of_numpy_and_scipy(test, sky):
    one, two = (
        photometry.asinh_magnitude(flux).double().numpy()[:, [filters.SHORT.index(b) for b in closure_test.BROAD]] for flux, _ in sky
    )
    one, two = one[:, :-1] - one[:, 1:], two[:, :-1] - two[:, 1:]
    centre = one.mean(0)
    vectors = np.linalg.svd(one - centre, full_matrices=False)[2][:6]
    scores = test(*sky[1])
    for i, vector in enumerate(vectors):
        expected = stats.ks_2samp((one - centre) @ vector, (two - centre) @ vector).statistic
        assert scores[f"pc{i + 1}"] == pytest.approx(expected, abs=1e-3)
        assert abs(float(np.dot(vector, test.vectors[i].numpy()))) == pytest.approx(1, abs=1e-4)
    assert torch.all(test.variance.diff() > 0) and float(test.variance[-1]) == pytest.approx(1)


def test_mean_redshifts_in_bins_follow_their_formula(test, sky):
    flux, theta = sky[0]
    colour = photometry.asinh_magnitude(flux)[:, [filters.SHORT.index(b) for b in "ri"]].diff(dim=1)[:, 0].neg()
    reddest = parameters.column(theta, "z")[colour > colour.quantile(0.75)].mean()
    scores = test(flux, changed(theta, "z", 0.03))
    assert scores["bin4"] == pytest.approx(0.03 / float(1 + reddest), rel=1e-3)
    assert scores["worst_bin"] == max((scores[f"bin{i}"] for i in range(1, 5)), key=abs)


def test_missing_bands_drop_galaxies_from_the_tests_that_need_them(sky):
    (flux, theta), other = sky
    gaps = flux.clone()
    gaps[::3, filters.SHORT.index("IB464")] = math.nan
    gaps[1::3, filters.SHORT.index("r")] = math.nan
    whole, some = gaps.isfinite().all(1), torch.arange(len(flux)) % 3 != 1
    scores, expected = closure_test.Closure(gaps, theta)(*other), closure_test.Closure(flux[some], theta[some])(*other)
    assert scores["sliced_w2"] == closure_test.Closure(flux[whole], theta[whole])(*other)["sliced_w2"]
    assert all(scores[key] == pytest.approx(expected[key], abs=1e-6) for key in ("pc1", "pc6", "bin1", "bin4"))


def test_without_truth_only_photometry_is_scored(sky):
    scores = closure_test.Closure(sky[0][0])(sky[1][0])
    assert set(scores) == {*(f"pc{i}" for i in range(1, 7)), "sliced_w2", "w2_ratio"}
    assert set(closure_test.verdicts(scores)) == {"colour components", "sliced W2"}


def test_an_empty_range_of_redshift_is_not_a_pass(test, sky):
    flux, theta = sky[1]
    near = parameters.column(theta, "z") < 1
    scores = test(flux[near], theta[near])
    assert math.isnan(scores["mass_z3"]) and closure_test.verdicts(scores)["mass"] == "missed"


def test_table_has_bars_goals_models_and_verdicts(test, sky):
    good, bad = test(*sky[0]), test(sky[0][0], changed(sky[0][1], "z", 0.1))
    table = closure_test.table({"bad": bad, "good": good})
    assert table.colnames == ["test", "unit", "bar", "goal", "bad", "good", "verdict"]
    assert len(table) == sum(len(bar.scores) for bar in closure_test.BARS)
    row = {name: i for i, name in enumerate(table["test"])}
    assert table["bar"][row["colour PC 3"]] == 0.03 and table["goal"][row["mean $z$, bin 1"]] == 0.002
    assert table["verdict"][row["mean $z$, bin 1"]] == "goal" and table["verdict"][row["$n(z)$"]] == ""
    assert closure_test.table({"bad": bad, "good": good}, "bad")["verdict"][row["mean $z$, bin 1"]] == "missed"
    assert math.isnan(table["good"][row["classifier, 26 bands"]]) and table["verdict"][row["classifier, 26 bands"]] == ""


def test_widths_tell_data_from_prior(rng):
    truth = torch.randn(3000, 1, 16, generator=rng)
    share = torch.linspace(0, 1, 16)  # of the variance that data leave
    draws = (1 - share).sqrt() * truth + share.sqrt() * torch.randn(3000, 4, 16, generator=rng)
    assert torch.allclose(closure_test.widths(draws), share.sqrt(), atol=0.02)
    with pytest.raises(ValueError, match="k >= 2"):
        closure_test.widths(draws[:, :1])


def test_what_photometry_decides_is_narrow_and_the_same_from_two_priors(rng):
    truth = torch.randn(3000, 1, 16, generator=rng)
    share = torch.where(torch.arange(16) % 2 == 0, 0.1, 0.9)  # of the variance that data leave
    draws = (1 - share).sqrt() * truth + share.sqrt() * torch.randn(3000, 4, 16, generator=rng)
    moved = torch.where(torch.arange(16) < 8, 0.0, 0.5)
    said = closure_test.constraints(draws, truth[:, 0], truth[:, 0] + moved)
    assert torch.equal(said.decided, (torch.arange(16) % 2 == 0) & (torch.arange(16) < 8))
    assert torch.allclose(said.width, share.sqrt(), atol=0.02) and float(said.apart[12]) == pytest.approx(0.197, abs=0.03)


def test_classifier_sees_one_band_out_of_twenty_six(sky, rng):
    """The single shift of 0.05 mag that every marginal hides: its two-sample KS distance is a few hundredths."""
    flux, other = sky[0][0], sky[1][0]
    moved = dimmed(other, ["i"], 0.05)
    one, two = (photometry.asinh_magnitude(f)[:, filters.SHORT.index("i")] for f in (flux, moved))
    assert metrics.ks(one, two) < 0.06
    assert metrics.c2st(photometry.asinh_magnitude(flux), photometry.asinh_magnitude(moved), generator=rng) > 0.6
