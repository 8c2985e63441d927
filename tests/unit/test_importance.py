"""Importance sampling on targets with known answers, the Pareto tail on known tails, thinning without bias."""

import math

import pytest
import torch

from popcosmos_lib.sampling import importance, mixtures, rng


@pytest.fixture(scope="module")
def gaussians():
    """Six correlated, displaced normals in 16 dimensions."""
    g = torch.Generator().manual_seed(3)
    root = 0.25 * torch.randn(6, 16, 16, generator=g) + 0.5 * torch.eye(16)
    covariance = root @ root.mT + 0.02 * torch.eye(16)
    return 0.7 * torch.randn(6, 16, generator=g), covariance


def target(gaussians):
    mean, precision = gaussians[0], torch.linalg.inv(gaussians[1])

    def log_target(w, rows):
        d = w - mean[rows][:, None]
        return -0.5 * ((d @ precision[rows]) * d).sum(-1), w[..., :2]

    return log_target


@pytest.fixture(scope="module")
def found(gaussians):
    return importance.sample(target(gaussians), rng.Streams(range(6)))


def test_moments_of_gaussians(gaussians, found):
    for one, mean, covariance in zip(found, *gaussians, strict=True):
        assert one.ess >= 400 and one.khat < 0.7 and one.rounds < 30
        p, sd = one.log_weight.exp()[:, None], covariance.diagonal().sqrt()
        assert float(p.sum()) == pytest.approx(1.0, abs=1e-4)
        centre = (p * one.w).sum(0)
        assert ((centre - mean).abs() / sd).max() < 0.25, "16 means of 400 effective draws: 5 standard errors"
        assert ((p * (one.w - mean) ** 2).sum(0).sqrt() / sd - 1).abs().max() < 0.15
        assert torch.equal(one.extra, one.w[:, :2])
        integral = 8 * math.log(2 * math.pi) + 0.5 * torch.logdet(covariance)
        assert one.log_integral == pytest.approx(float(integral), abs=0.2)


def test_draws_do_not_depend_on_the_company(gaussians, found):
    part = target((gaussians[0][3:4], gaussians[1][3:4]))
    alone = importance.sample(part, rng.Streams([3]))[0]
    assert alone.rounds == found[3].rounds and torch.allclose(alone.w, found[3].w, atol=1e-2)


def test_curved_targets_come_out_as_wide_as_they_are():
    """Mixtures that are fitted to the draws which they weigh make these 5 per cent too narrow, with as many effective draws."""

    def curved(w, rows):
        even, odd = w[..., ::2], w[..., 1::2]
        return -0.5 * even.square().sum(-1) - 0.5 * ((odd - 0.25 * (even.square() - 1)) / 0.6).square().sum(-1), w

    found = importance.sample(curved, rng.Streams(range(24)), ess=300.0)
    weights, points = [one.log_weight.exp()[:, None] for one in found], [one.w[:, ::2] for one in found]
    variance = torch.stack([(p * w**2).sum(0) - (p * w).sum(0) ** 2 for p, w in zip(weights, points, strict=True)])
    assert float(variance.mean().sqrt()) == pytest.approx(0.985, abs=0.015), "exact is 1; the far ends of the curves are rarely reached"


def test_two_modes_are_weighed_right():
    """Modes at -2 and +2 of weights 0.8 and 0.2."""

    def log_target(w, rows):
        at = torch.stack([-0.5 * ((w[..., 0] - c) / 0.4) ** 2 + torch.tensor(p).log() for c, p in ((-2.0, 0.8), (2.0, 0.2))])
        return at.logsumexp(0) - 0.5 * w[..., 1:].square().sum(-1), w

    one = importance.sample(log_target, rng.Streams([5]), ess=2000.0)[0]
    assert float(one.log_weight.exp()[one.w[:, 0] < 0].sum()) == pytest.approx(0.8, abs=0.04)


def test_a_target_goes_on_while_the_caller_makes_too_little_of_its_draws(gaussians, found):
    """Every other target is worth a tenth of its effective draws."""
    worth, asked = torch.tensor([1.0, 0.1]).repeat(3), []

    def count(rows, draws):
        asked.extend(rows.tolist())
        return worth[rows] * torch.tensor([one.ess for one in draws])

    more = importance.sample(target(gaussians), rng.Streams(range(6)), count=count)
    for one, before, share in zip(more, found, worth.tolist(), strict=True):
        assert one.ess * share >= 400 and (one.rounds > before.rounds) == (share < 1)
    assert sorted(set(asked)) == list(range(6)) and asked.count(0) == 1 and 2 <= asked.count(1) <= 4
    spared = importance.sample(target(gaussians), rng.Streams(range(6)), count=count, spare=1.5)
    assert all(one.ess >= 600 for one in spared)


def test_a_target_of_which_the_caller_keeps_next_to_nothing_is_given_up(gaussians, found):
    worth, asked = torch.tensor([0.3, 0.05]).repeat(3), []

    def count(rows, draws):
        asked.extend(rows.tolist())
        return worth[rows] * torch.tensor([one.ess for one in draws])

    more = importance.sample(target(gaussians), rng.Streams(range(6)), count=count)
    for i, (one, before) in enumerate(zip(more, found, strict=True)):
        given_up = i % 2 == 1
        assert (one.rounds == before.rounds) == given_up and (asked.count(i) == 1) == given_up


def test_a_hopeless_target_says_so():
    def nowhere(w, rows):
        return torch.full(w.shape[:2], -torch.inf), w

    one = importance.sample(nowhere, rng.Streams([0]), rounds=3)[0]
    assert one.rounds == 3 and not one.khat < 0.7 and one.log_weight.isfinite().all()


@pytest.mark.parametrize("alpha", [1.0, 1.5, 3.0])
def test_tail_index_of_pareto_weights(alpha):
    """The weights of a Pareto law of index alpha have k = 1 / alpha."""
    u = torch.rand(8, 40_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    smoothed, khat = importance.pareto_smooth(-u.log() / alpha)
    assert float(khat.mean()) == pytest.approx(1 / alpha, abs=0.05)
    assert torch.allclose(smoothed.exp().sum(-1), torch.ones(8), atol=1e-3)


def test_equal_weights_have_no_tail_and_all_draws_count():
    smoothed, khat = importance.pareto_smooth(torch.zeros(2, 1000) + 1e-4 * torch.rand(2, 1000, generator=torch.Generator().manual_seed(2)))
    assert (khat < 0.5).all() and torch.allclose(mixtures.effective(smoothed), torch.tensor(1000.0), rtol=1e-3)


@pytest.mark.parametrize("n", [1, 4, 24])
def test_a_few_weights_have_no_tail_and_stay_as_they_are(n):
    raw = torch.randn(2, n, generator=torch.Generator().manual_seed(3))
    smoothed, khat = importance.pareto_smooth(raw)
    assert torch.equal(khat, torch.full((2,), torch.inf)) and torch.allclose(smoothed, raw.log_softmax(-1))


def test_thinning_keeps_the_heavy_and_is_fair_to_the_light():
    g = torch.Generator().manual_seed(4)
    log_weight = (3 * torch.randn(3000, generator=g)).log_softmax(-1)
    value, truth = torch.randn(3000, generator=g), 0.0
    truth = float((log_weight.exp() * value).sum())
    means = []
    for u in torch.linspace(0.0005, 0.9995, 400).tolist():
        rows, weight = importance.thin(log_weight, 256, u)
        assert len(rows.unique()) == 256 and float(weight.sum()) == pytest.approx(1.0, abs=1e-5)
        means.append(float((weight * value[rows]).sum()))
    assert sum(means) / len(means) == pytest.approx(truth, abs=3e-3), "averaged over its one random number, thinning changes nothing"
    heaviest = int(log_weight.argmax())
    assert float(weight[rows == heaviest]) == pytest.approx(float(log_weight[heaviest].exp()), rel=1e-3)


def test_more_draws_may_be_asked_for_than_there_are():
    log_weight = torch.randn(100, generator=torch.Generator().manual_seed(5)).log_softmax(-1)
    rows, weight = importance.thin(log_weight, 256, 0.3)
    total = torch.zeros(100).index_add(0, rows, weight)
    assert len(rows) == 256 and torch.allclose(total, log_weight.exp(), atol=1e-6)


def test_a_draw_is_weighted_by_all_densities_it_could_have_come_from():
    """Cornuet et al. (2012) eq. 4, with rounds of unequal size: the mean over all draws of the densities that these came from."""
    streams, rounds = rng.Streams(range(8)), importance._Rounds()  # two targets in four folds
    for draws in (256, 512, 1024):
        new = rounds.next(draws, 3, streams)
        rounds.add(new, -0.5 * new.square().sum(-1) * torch.arange(1.0, 9.0)[:, None], new[..., :1])
        rounds.refit(rounds.log_weight().log_softmax(-1), streams)
    sizes, fitted = (256.0, 512.0, 1024.0), rounds.mixtures[:2]
    for w, density in zip(rounds.w, rounds.density, strict=True):
        each = torch.stack([mixtures.log_wide(w), *(mixture.log_prob(w) for mixture in fitted)])
        expected = (each + torch.tensor(sizes).log()[:, None, None]).logsumexp(0)
        assert torch.allclose(density, expected, atol=1e-4), "each mixture counts as often as it was drawn from"


def test_mixtures_are_normalised():
    w = torch.linspace(-60.0, 60.0, 120_001, dtype=torch.float64)[None, :, None]
    mean, factor = torch.tensor([[[-1.0], [2.0]]]).double(), torch.tensor([[[[0.5]], [[1.5]]]]).double()
    mixture = mixtures.Mixture(torch.tensor([[0.3, 0.7]]).double().log(), mean, factor)
    total = torch.trapezoid(mixture.log_prob(w).exp()[0], w[0, :, 0])
    assert float(total) == pytest.approx(1.0, abs=1e-6), "components and defensive normal must add up to one"
