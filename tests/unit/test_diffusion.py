"""The diffusion model against closed forms, in float64."""

import math

import pytest
import torch
from scipy.stats import ks_1samp, norm
from torchdiffeq import odeint

from popcosmos_lib import diffusion

SDE = diffusion.VE()


class Mixture:
    """Exact denoiser of a Gaussian mixture with common diagonal covariance."""

    def __init__(self, weights, means, variance):
        self.weights, self.means, self.variance = weights, means, variance

    def __call__(self, x, sigma):
        total = self.variance + sigma**2
        gap = x[..., None, :] - self.means
        share = torch.softmax(self.weights.log() - 0.5 * (gap**2 / total).sum(-1), -1)
        return x - sigma**2 * (share[..., None] * gap / total).sum(-2)

    def with_trace(self, x, sigma):
        jacobian = torch.func.vmap(torch.func.jacrev(lambda y: self(y, sigma)))(x)
        return self(x, sigma), jacobian.diagonal(dim1=-2, dim2=-1).sum(-1)

    def log_prob(self, x, extra=SDE.sigma_min):
        total = self.variance + extra**2
        gap = x[..., None, :] - self.means
        terms = self.weights.log() - 0.5 * (gap**2 / total).sum(-1) - 0.5 * torch.log(2 * math.pi * total).sum()
        return torch.logsumexp(terms, -1)

    def sample(self, n, generator):
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        return self.means[which] + self.variance.sqrt() * torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)


def gaussian(dim):
    """Standardised, as the model's input is: mean 0, variance 1."""
    return Mixture(torch.ones(1).double(), torch.zeros(1, dim).double(), torch.ones(dim).double())


def two_clumps():
    """Two clumps of width 0.3; mean 0 and variance 1 along the first axis."""
    means = torch.tensor([[0.9539, 0.0], [-0.9539, 0.0]]).double()
    return Mixture(torch.tensor([0.5, 0.5]).double(), means, torch.tensor([0.09, 1.0]).double())


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(5)


@pytest.fixture
def net(rng):
    return diffusion.ScoreNet(dim=5, width=32, depth=4, generator=rng).double()


@pytest.mark.parametrize("exact", [gaussian(16), two_clumps()], ids=["gaussian", "mixture"])
def test_density_matches_the_closed_form(exact, rng):
    x = exact.sample(200, rng)
    error = diffusion.log_prob(exact, x) - exact.log_prob(x)
    assert error.abs().max() < 0.01, "nat"


def test_density_integrates_to_one():
    exact = two_clumps()
    axis = torch.linspace(-6, 6, 81, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    total = diffusion.log_prob(exact, grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(float(total) - 1) < 2e-3


@pytest.mark.parametrize("solver", ["dpm++", "heun"])
def test_samples_follow_the_density(solver, rng):
    u = torch.randn(4000, 3, generator=rng, dtype=torch.float64)
    x = diffusion.decode(gaussian(3), u, solver=solver)
    assert ks_1samp(x.flatten().numpy(), norm(scale=math.sqrt(1 + SDE.sigma_min**2)).cdf).pvalue > 0.01
    x = diffusion.decode(two_clumps(), u[:, :2], solver=solver)[:, 0].numpy()
    width = math.sqrt(0.09 + SDE.sigma_min**2)
    cdf = lambda y: 0.5 * (norm.cdf((y - 0.9539) / width) + norm.cdf((y + 0.9539) / width))  # noqa: E731
    assert ks_1samp(x, cdf).pvalue > 0.01


def test_solvers_agree_with_adaptive_dopri5(rng):
    """The reference integrates in ln sigma to 1e-8; both fixed-step solvers converge to it, DPM-Solver++ at half the cost."""
    exact = two_clumps()
    u = torch.randn(200, 2, generator=rng, dtype=torch.float64)
    times = torch.tensor([math.log(SDE.sigma_max), math.log(SDE.sigma_min)], dtype=torch.float64)
    reference = odeint(lambda t, x: x - exact(x, t.exp()), u * SDE.base_scale, times, rtol=1e-8, atol=1e-8, method="dopri5")[-1]

    def error(solver, steps):
        return float((diffusion.decode(exact, u, solver=solver, steps=steps) - reference).abs().median())

    for solver in ("dpm++", "heun"):
        assert error(solver, 64) < 1e-3
        assert error(solver, 64) < 0.3 * error(solver, 24), "second order in the step"
    assert error("dpm++", 16) < 1.5 * error("heun", 8), "equal evaluations"


@pytest.mark.parametrize("exact", [gaussian(4), two_clumps()], ids=["gaussian", "mixture"])
def test_round_trip(exact, rng):
    x = exact.sample(300, rng)
    again = diffusion.decode(exact, diffusion.encode(exact, x))
    assert (again - x).abs().max() < 1e-3
    u = torch.randn(x.shape, generator=rng, dtype=torch.float64)
    assert (diffusion.encode(exact, diffusion.decode(exact, u)) - u).abs().max() < 1e-2


def test_trace_of_the_network_is_exact(net, rng):
    x, sigma = torch.randn(7, 5, generator=rng).double(), torch.rand(7, generator=rng).double() + 0.1
    jacobian = torch.func.vmap(torch.func.jacrev(lambda y, s: net(y, s)))(x, sigma)
    denoised, trace = net.with_trace(x, sigma)
    torch.testing.assert_close(trace, jacobian.diagonal(dim1=1, dim2=2).sum(-1))
    torch.testing.assert_close(denoised, net(x, sigma))


def test_log_prob_has_gradients(net, rng):
    x = torch.randn(2, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: diffusion.log_prob(net, y, steps=3), x, atol=1e-5)
    diffusion.log_prob(net, x, steps=3).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in list(net.parameters())[:-1]), "the last bias shifts x, its gradient may vanish"


def test_training_learns_a_density(rng):
    """A net of the default kind, trained for seconds, gets the log density of two clumps to a few per cent of a nat on average."""
    exact = two_clumps()
    x = exact.sample(20_000, rng).float()
    net = diffusion.ScoreNet(dim=2, width=64, generator=rng)
    diffusion.train(net, x, generator=rng, steps=1500, batch=256, lr=1e-2)
    held = exact.sample(500, rng)
    with torch.no_grad():
        learned = diffusion.log_prob(net, held.float()).double()
    assert abs(float((learned - exact.log_prob(held)).mean())) < 0.05
    assert float((learned - exact.log_prob(held)).std()) < 0.3


def test_training_is_reproducible(rng):
    x = torch.randn(200, 3, generator=rng)
    nets = []
    for _ in range(2):
        g = torch.Generator().manual_seed(1)
        nets.append(diffusion.ScoreNet(dim=3, width=16, generator=g))
        diffusion.train(nets[-1], x, generator=g, steps=20, batch=32)
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b)


def test_errors_say_what_is_wrong(net):
    with pytest.raises(ValueError, match="dpm"):
        diffusion.decode(net, torch.zeros(1, 5).double(), solver="euler")
    with pytest.raises(ValueError, match="finite"):
        diffusion.train(net, torch.full((4, 5), torch.nan), generator=torch.Generator(), steps=1)
