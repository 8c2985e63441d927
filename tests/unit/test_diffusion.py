"""The diffusion model against closed forms, in float64."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from scipy.stats import ks_1samp, norm
from torchdiffeq import odeint

from popcosmos_lib import figures
from popcosmos_lib.density import diffusion
from popcosmos_lib.figures import calibration

ROOT = Path(__file__).resolve().parents[2]
VE, VP = diffusion.VE(), diffusion.VP()
BOTH = pytest.mark.parametrize("sde", [VE, VP], ids=["VE", "VP"])


class Mixture:
    """Exact denoiser of a Gaussian mixture with diagonal covariances."""

    def __init__(self, weights, means, variances):
        self.weights, self.means, self.variances = (torch.as_tensor(value, dtype=torch.float64) for value in (weights, means, variances))

    def _slopes(self, x, extra):
        """Share of each component at x, and the slope of its log density there."""
        total = self.variances + extra**2
        gap = x[..., None, :] - self.means
        terms = self.weights.log() - 0.5 * (gap**2 / total + torch.log(2 * math.pi * total)).sum(-1)
        return terms, -gap / total, total

    def __call__(self, x, sigma):
        terms, slope, _ = self._slopes(x, sigma)
        return x + sigma**2 * (torch.softmax(terms, -1)[..., None] * slope).sum(-2)

    def with_trace(self, x, sigma):
        terms, slope, total = self._slopes(x, sigma)
        share = torch.softmax(terms, -1)
        mean = (share[..., None] * slope).sum(-2)
        bend = (share * ((slope**2 - 1 / total).sum(-1))).sum(-1) - (mean**2).sum(-1)  # trace of the second derivatives of ln p
        return x + sigma**2 * mean, x.shape[-1] + sigma**2 * bend

    def log_prob(self, x, sde):
        return torch.logsumexp(self._slopes(x, sde.sigma_min)[0], -1)

    def sample(self, n, generator):
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[which] + self.variances.sqrt()[which] * noise


def gaussian(dim):
    """Standardised, as the model's input is: mean 0, variance 1."""
    return Mixture([1.0], torch.zeros(1, dim), torch.ones(1, dim))


def two_clumps():
    """Two clumps of width 0.3; mean 0 and variance 1 along the first axis."""
    return Mixture([0.5, 0.5], [[0.9539, 0.0], [-0.9539, 0.0]], [[0.09, 1.0], [0.09, 1.0]])


def spike():
    """A tenth of the points in a component of width 0.05 within a broad one."""
    return Mixture([0.1, 0.9], [[0.0, 0.0], [0.0, 0.0]], [[0.0025, 1.0], [1.1108, 1.0]])


EXACT = pytest.mark.parametrize("exact", [gaussian(16), two_clumps(), spike()], ids=["gaussian", "clumps", "spike"])


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(5)


@pytest.fixture
def net(rng):
    return diffusion.ScoreNet(dim=5, width=32, depth=4, generator=rng).double()


@BOTH
@EXACT
@pytest.mark.parametrize("solver", ["gauss", "dopri5"])
def test_density_matches_the_closed_form(exact, sde, solver, rng):
    x = exact.sample(200, rng)
    error = diffusion.log_prob(exact, x, sde=sde, solver=solver) - exact.log_prob(x, sde)
    assert error.abs().max() < 0.01, "nat"


@BOTH
def test_density_integrates_to_one(sde):
    exact = two_clumps()
    axis = torch.linspace(-6, 6, 81, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    total = diffusion.log_prob(exact, grid, sde=sde).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(float(total) - 1) < 2e-3


@BOTH
@pytest.mark.parametrize("solver", ["adams", "dpm++", "heun", "dopri5"])
def test_samples_follow_the_density(solver, sde, rng):
    steps = 30 if solver == "heun" and sde is VP else None  # second order, and a longer way
    u = torch.randn(4000, 3, generator=rng, dtype=torch.float64)
    x = diffusion.decode(gaussian(3), u, sde=sde, solver=solver, steps=steps)
    assert ks_1samp(x.flatten().numpy(), norm(scale=math.sqrt(1 + sde.sigma_min**2)).cdf).pvalue > 0.01
    x = diffusion.decode(two_clumps(), u[:, :2], sde=sde, solver=solver, steps=steps)[:, 0].numpy()
    width = math.sqrt(0.09 + sde.sigma_min**2)
    cdf = lambda y: 0.5 * (norm.cdf((y - 0.9539) / width) + norm.cdf((y + 0.9539) / width))  # noqa: E731
    assert ks_1samp(x, cdf).pvalue > 0.01


@pytest.mark.parametrize(("exact", "allowed"), [(gaussian(2), 2e-4), (spike(), 2e-3), (two_clumps(), 0.01)], ids=["normal", "spike", "two"])
def test_width_after_the_default_sixteen_evaluations(exact, allowed):
    """Standard deviation along the first axis of the component that comes first, against the solution of the ODE."""
    u = torch.zeros(2000, 2, dtype=torch.float64)
    u[:, 0] = torch.special.ndtri((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000)
    reference = diffusion.decode(exact, u, solver="dopri5", tolerance=1e-9)
    share = torch.softmax(exact._slopes(reference, VE.sigma_min)[0], -1)[:, 0]

    def width(x):
        mean = (share * x[:, 0]).sum() / share.sum()
        return float(((share * (x[:, 0] - mean) ** 2).sum() / share.sum()).sqrt())

    calls = []
    x = diffusion.decode(lambda x, sigma: calls.append(sigma) or exact(x, sigma), u)
    assert len(calls) == 16
    assert abs(width(x) / width(reference) - 1) < allowed


@BOTH
def test_solvers_converge_to_adaptive_dopri5(sde, rng):
    exact = two_clumps()
    u = torch.randn(200, 2, generator=rng, dtype=torch.float64)
    reference = diffusion.decode(exact, u, sde=sde, solver="dopri5", tolerance=1e-9)

    def error(solver, steps):
        return float((diffusion.decode(exact, u, sde=sde, solver=solver, steps=steps) - reference).abs().median())

    for solver in ("dpm++", "heun"):
        assert error(solver, 96) < 2e-3
        assert error(solver, 96) < 0.35 * error(solver, 48), "second order in the step"
    assert error("adams", 96) < 0.15 * error("adams", 48), "third order"
    assert error("adams", 16) < min(error("dpm++", 16), error("heun", 8)), "equal evaluations"


def test_variance_preserving_noise_is_the_usual_one_in_other_units(rng):
    """Song et al. (2021): dx/dt = -beta (x + score) / 2 in its own variable and time, solved here without the library."""
    exact = two_clumps()
    u = torch.randn(50, 2, generator=rng, dtype=torch.float64)

    def drift(t, x):
        integral = 0.1 * t + 9.95 * t**2
        shrunk = Mixture(exact.weights, exact.means * torch.exp(-integral / 2), exact.variances * torch.exp(-integral))
        noise = (1 - torch.exp(-integral)).sqrt()
        return -0.5 * (0.1 + 19.9 * t) * (x + (shrunk(x, noise) - x) / noise**2)

    times = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    x = odeint(drift, u, times, rtol=1e-9, atol=1e-9, method="dopri5", options={"step_t": times[1:]})[-1]
    ours = diffusion.decode(exact, u, sde=VP, solver="dopri5", tolerance=1e-9)
    torch.testing.assert_close(ours, x * math.exp(0.5 * (0.1e-3 + 9.95e-6)), rtol=0, atol=1e-6)
    fraction = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(VP.time(VP.sigma(fraction)), 1e-3 + (1 - 1e-3) * fraction)


@BOTH
@EXACT
@pytest.mark.parametrize("solver", ["adams", "dpm++", "heun", "dopri5"])
def test_round_trip(exact, sde, solver, rng):
    options = {"sde": sde, "solver": solver, "tolerance": 1e-7}
    corrections = {"corrections": 8} if solver == "dpm++" and sde is VP else {}  # its map is the furthest from the ODE's
    x = exact.sample(300, rng)
    again = diffusion.decode(exact, diffusion.encode(exact, x, **options, **corrections), **options)
    assert (again - x).abs().max() < 1e-3
    u = torch.randn(x.shape, generator=rng, dtype=torch.float64)
    assert (diffusion.encode(exact, diffusion.decode(exact, u, **options), **options, **corrections) - u).abs().max() < 1e-3


def test_trace_of_the_network_is_exact(net, rng):
    x, sigma = torch.randn(7, 5, generator=rng).double(), torch.rand(7, generator=rng).double() + 0.1
    jacobian = torch.func.vmap(torch.func.jacrev(lambda y, s: net(y, s)))(x, sigma)
    denoised, trace = net.with_trace(x, sigma)
    torch.testing.assert_close(trace, jacobian.diagonal(dim1=1, dim2=2).sum(-1))
    torch.testing.assert_close(denoised, net(x, sigma))


@BOTH
def test_nodes_integrate_over_the_logarithm_of_the_noise(sde):
    levels, weights = (torch.tensor(values, dtype=torch.float64) for values in sde.nodes(24))
    assert (levels.diff() > 0).all() and sde.sigma_min < levels[0] and levels[-1] < sde.sigma_max
    integral = lambda values: float((weights * values).sum())  # noqa: E731
    assert integral(torch.ones(24)) == pytest.approx(math.log(sde.sigma_max / sde.sigma_min), rel=1e-6)
    rise = math.log1p(sde.sigma_max**2) - math.log1p(sde.sigma_min**2)
    assert integral(2 * levels**2 / (1 + levels**2)) == pytest.approx(rise, rel=1e-4)


def test_a_density_takes_the_dear_trace_no_more_often_than_it_has_nodes(net, rng):
    calls, trace = [], net.with_trace
    net.with_trace = lambda x, sigma: calls.append(sigma) or trace(x, sigma)
    diffusion.log_prob(net, torch.randn(3, 5, generator=rng, dtype=torch.float64))
    assert calls == diffusion.VE().nodes(24)[0]


@BOTH
@pytest.mark.parametrize("options", [{}, {"trace": "hutchinson"}], ids=["exact", "hutchinson"])
def test_log_prob_has_the_gradient_of_its_values(options, sde, net, rng):
    x = torch.randn(1, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    seeded = lambda: {"generator": torch.Generator().manual_seed(1)} if "trace" in options else {}  # noqa: E731

    def value(y):
        return diffusion.log_prob(net, y, sde=sde, steps=3, **options, **seeded())

    assert torch.autograd.gradcheck(value, x, atol=1e-5)
    value(x).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in list(net.parameters())[:-1]), "the last bias shifts x, its gradient may vanish"


@BOTH
def test_adaptive_log_prob_has_the_gradient_of_its_values(sde):
    x = torch.tensor([[0.4, -0.7]], dtype=torch.float64, requires_grad=True)
    value = lambda y: diffusion.log_prob(two_clumps(), y, sde=sde, solver="dopri5", tolerance=1e-6)  # noqa: E731
    assert torch.autograd.gradcheck(value, x, eps=1e-3, atol=1e-3)


def test_hutchinson_is_noisy_and_right_on_average(net, rng):
    x = torch.randn(1, 5, generator=rng, dtype=torch.float64)
    with torch.no_grad():
        exact = diffusion.log_prob(net, x, steps=8)
        noisy = diffusion.log_prob(net, x.expand(2000, -1), steps=8, trace="hutchinson", generator=rng)
    assert noisy.std() > 1e-3, "nat"
    assert abs(float((noisy - exact).mean())) < 4 * float(noisy.std()) / math.sqrt(2000)


@BOTH
def test_training_learns_a_density(sde, rng):
    """A net of the default kind, trained for seconds, gets the log density of two clumps to a few per cent of a nat on average."""
    exact = two_clumps()
    x = exact.sample(20_000, rng).float()
    net = diffusion.ScoreNet(dim=2, width=64, generator=rng)
    diffusion.train(net, x, generator=rng, steps=1500, batch=256, lr=1e-2, sde=sde)
    held = exact.sample(500, rng)
    with torch.no_grad():
        learned = diffusion.log_prob(net, held.float(), sde=sde).double()
    assert abs(float((learned - exact.log_prob(held, sde)).mean())) < 0.05
    assert float((learned - exact.log_prob(held, sde)).std()) < 0.3


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
    x = torch.zeros(1, 5).double()
    for call in (diffusion.decode, diffusion.encode, diffusion.log_prob):
        with pytest.raises(ValueError, match="dopri5"):
            call(net, x, solver="euler")
    with pytest.raises(ValueError, match="hutchinson"):
        diffusion.log_prob(net, x, trace="xtrace")
    with pytest.raises(ValueError, match="generator"):
        diffusion.log_prob(net, x, trace="hutchinson")
    with pytest.raises(ValueError, match="finite"):
        diffusion.train(net, torch.full((4, 5), torch.nan), generator=torch.Generator(), steps=1)


@pytest.fixture
def committed():
    return json.loads((ROOT / "benchmarks" / "results" / "solvers.json").read_text())


def test_the_committed_benchmark_is_what_its_script_measures(committed):
    spec = importlib.util.spec_from_file_location("solvers_benchmark", ROOT / "benchmarks" / "solvers.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    kept = [row for row in committed["rows"]["width"] if row["sde"] == "VE"]
    for old, new in zip(kept, bench.widths(VE), strict=True):
        assert {**old, "error": 0} == {"sde": "VE", **new, "error": 0}
        assert abs(old["error"] - new["error"]) < 1e-6


def test_the_default_solver_is_the_best_of_the_benchmark(committed):
    for kind in ("VE", "VP"):
        rms = {row["solver"]: row["rms"] for row in committed["rows"]["decode"] if row["sde"] == kind and row["evaluations"] == 16}
        assert min(rms, key=rms.get) == "adams"
    assert len(committed["commit"]) == 40 and not committed["dirty"]
    text = json.dumps(committed)
    assert not any(place in text for place in (str(ROOT), str(Path.home()), "/tmp/", "/site-packages"))


def test_the_figure_of_the_solvers_shows_every_line(committed):
    fig = calibration.solvers(committed["rows"])
    assert fig.get_figwidth() == figures.DOUBLE
    for axis, shown in zip(fig.axes, (8, 6), strict=True):
        lines = [line for line in axis.lines if len(line.get_xdata()) > 2]
        assert len(lines) == shown, "each solver under both kinds of noise"
