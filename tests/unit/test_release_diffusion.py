"""The released diffusion models: read from files of the published structure, against exact densities and an independent ODE solver."""

import math
import os
import sys
import types
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions.studentT import StudentT
from torchdiffeq import odeint

from popcosmos_lib.emulation import release, release_pickles
from popcosmos_lib.galaxies import cosmology, parameters, universe
from popcosmos_lib.survey import photometry
from popcosmos_lib.synthesis import filters

NAMES = "N log10Z logsfr_ratio1 logsfr_ratio2 logsfr_ratio3 logsfr_ratio4 logsfr_ratio5 logsfr_ratio6".split()
NAMES += "dust2 dust_index dust1_fraction lnfagn lnagntau gaslog10Z gaslog10U z".split()


def empty(name):
    """A network class of that name with nothing in it: what the file needs is put in by hand."""
    return type(name, (nn.Module,), {"__qualname__": name})


CLASSES = {
    "flowfusion.diffusion": ("MLP", "ScoreModel", "VESDE", "VPSDE", "PopulationModelDiffusion"),
    "pop_cosmos.catalogue": ("CatalogueGenerator", "NoiseModel"),
    "pop_cosmos.emlines": ("EmLineEmulator",),
    "speculator.speculator": ("Photulator", "PhotulatorModelStack", "Speculator"),
}


@pytest.fixture
def published(monkeypatch):
    """Importable modules and classes of the published names."""
    made = {}
    for path, names in CLASSES.items():
        module = types.ModuleType(path)
        for name in names:
            made[name] = empty(name)
            made[name].__module__ = path
            setattr(module, name, made[name])
        monkeypatch.setitem(sys.modules, path.split(".")[0], types.ModuleType(path.split(".")[0]))
        monkeypatch.setitem(sys.modules, path, module)
    return made


def catalogue(made, kind, layers, *, activation, no_sigma, frequencies, zmax=6.0):
    """A generator with the attributes of the published one, and a population network of the given layers."""
    network = made["MLP"]()
    network.n_dimensions, network.n_conditionals, network.n_layers = 16, 0, len(layers)
    network.NN = nn.ModuleList(layers)
    network.W = nn.Parameter(frequencies, requires_grad=False)
    network.activation = activation
    network.register_buffer("pi", torch.tensor(math.pi))
    sde = made[f"{kind}SDE"]()
    if kind == "VE":
        for name, value in {"sigma_min": 0.01, "sigma_max": 10.0, "T": 1.0, "epsilon": 1e-5}.items():
            sde.register_buffer(name, torch.tensor(value))
    else:
        sde.beta_min, sde.beta_max, sde.T = 0.1, torch.tensor(20.0), 1.0
        sde.register_buffer("epsilon", torch.tensor(1e-3))
    model = made["PopulationModelDiffusion"]()
    model.model, model.sde, model.score_model = network, sde, made["ScoreModel"]()
    model.score_model.model, model.score_model.sde, model.score_model.no_sigma = network, sde, no_sigma
    model.register_buffer("shift", torch.tensor([24.0, *[0.1 * i for i in range(15)]]))
    model.register_buffer("scale", torch.tensor([1.5, *[0.5 + 0.02 * i for i in range(15)]]))
    model.method, model.options = "dopri5", {"min_step": 1e-6}

    whole = made["CatalogueGenerator"]()
    whole.param_names, whole.n_params, whole.n_bands = list(NAMES), 16, 26
    whole.lower, whole.upper = parameters.BOUNDS.float().T.clone()
    whole.upper[15] = zmax
    whole.range, whole.power = whole.upper - whole.lower, torch.ones(16)
    whole.f_b, whole.zero_points = torch.ones(26), torch.linspace(0.9, 1.1, 26)
    whole.emline_offsets, whole.ln_emline_scatters = torch.linspace(-1, 0.3, 44), torch.full((44,), -29.6)
    whole.population_model, whole.noise_model = model, made["NoiseModel"]()
    whole.noise_base = StudentT(2)
    whole.flux_emulator = made["PhotulatorModelStack"]()
    whole.flux_emulator.n_emulators, whole.flux_emulator.emulators = 1, [made["Photulator"]()]
    lines = whole.emission_line_flux_emulator = made["EmLineEmulator"]()
    lines.line_lambdas_selected, lines.saved_model_dir, lines.device = torch.linspace(1215.67, 9548.8, 44), "somewhere", torch.device("cpu")
    speculator = lines.speculator_emlines = made["Speculator"]()
    speculator.wavelengths, speculator.params = np.linspace(900.0, 1e6, 128), nn.ParameterList([torch.ones(3)])
    speculator.optimizer = torch.optim.Adam(speculator.params)
    speculator.optimizer.zero_grad()
    speculator.notes = defaultdict(dict)
    return whole


def unit_normal(made, **options):
    """A VP generator whose score is -x at all times: its latent is exactly normal, with the file's shift and scale."""
    layer = nn.Linear(8 + 16, 16)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, 8:] = -torch.eye(16)
        layer.bias.zero_()
    return catalogue(made, "VP", [layer], activation=nn.Tanh(), no_sigma=True, frequencies=torch.tensor([1.0, 9.0, -20.0, 4.0]), **options)


def drawn_inwards(made, kind, no_sigma):
    """A generator with two hidden layers whose output is about -x, so that its density is a proper one, plus a random part."""
    g = torch.Generator().manual_seed(7)
    slope, gain, part = (1.0, 0.25, 0.03) if kind == "VE" else (0.1, 2.5, 0.1)  # silu(x) - silu(-x) = x; tanh is only nearly linear
    layers = [nn.Linear(8 + 16, 40), nn.Linear(40, 40), nn.Linear(40, 16)]
    both = torch.cat([torch.eye(16), -torch.eye(16)])
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(0.3 * torch.randn(layer.weight.shape, generator=g))
            layer.bias.copy_(0.1 * torch.randn(layer.bias.shape, generator=g))
        layers[0].weight[:32] = torch.cat([torch.zeros(32, 8), slope * both], -1)
        layers[1].weight[:32] = torch.cat([both @ both.T, torch.zeros(32, 8)], -1)
        layers[2].weight.mul_(part)[:, :32] = -gain * both.T
        for layer in layers[:2]:
            layer.bias[:32] = 0
    activation = nn.SiLU() if kind == "VE" else nn.Tanh()
    return catalogue(made, kind, layers, activation=activation, no_sigma=no_sigma, frequencies=torch.tensor([0.1, 0.5, -0.3, 0.2]))


def upstream_drift(whole, t, x):
    """Drift of the probability-flow ODE in its own time, as written by Song et al. (2021): f - g^2 score / 2."""
    model = whole.population_model
    phase = 2 * math.pi * t * model.model.W.double()
    hidden = torch.cat([phase.sin().expand(len(x), -1), phase.cos().expand(len(x), -1), x], -1)
    for i, layer in enumerate(model.model.NN):
        hidden = nn.functional.linear(hidden, layer.weight.double(), layer.bias.double())
        hidden = model.model.activation(hidden) if i < len(model.model.NN) - 1 else hidden
    if hasattr(model.sde, "sigma_max"):
        level = 0.01 * 1000**t
        return -0.5 * level**2 * 2 * math.log(1000) * (hidden if model.score_model.no_sigma else hidden / level)
    beta, integral = 0.1 + 19.9 * t, 9.95 * t**2 + 0.1 * t
    score = hidden if model.score_model.no_sigma else hidden / (1 - torch.exp(-integral)).sqrt()
    return -0.5 * beta * (x + score)


def latent(whole, theta):
    """Standardised latent of galaxies and ln |d theta / d latent|, by automatic differentiation of the definitions."""
    model, lower, width = whole.population_model, whole.lower.double(), (whole.upper - whole.lower).double()

    def to_theta(x):
        phi = x * model.scale.double() + model.shift.double()
        physical = lower + width * 0.5 * (1 + torch.erf(phi / math.sqrt(2)))
        return torch.cat([0.4 * (cosmology.distance_modulus(physical[15:]) - phi[:1]), physical[1:]])

    fraction = (theta.double() - lower) / width
    phi = math.sqrt(2) * torch.erfinv(2 * fraction - 1)
    phi[:, 0] = cosmology.distance_modulus(theta[:, 15].double()) - 2.5 * theta[:, 0].double()
    x = (phi - model.shift.double()) / model.scale.double()
    return x, torch.stack([torch.func.jacfwd(to_theta)(row).slogdet().logabsdet for row in x])


def stored(whole, tmp_path):
    torch.save(whole, tmp_path / "catalogueModelX.pt")
    return release.population(tmp_path / "catalogueModelX.pt")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)


def test_density_of_an_exactly_known_population(published, tmp_path, home, generator):
    whole = unit_normal(published)
    population = stored(whole, tmp_path)
    theta = population.sample(64, generator)
    x, jacobian = latent(whole, theta)
    expected = -0.5 * (x**2).sum(-1) - 8 * math.log(2 * math.pi) - jacobian
    torch.testing.assert_close(population.log_prob(theta).double(), expected, rtol=0, atol=0.02)
    torch.testing.assert_close(population.double().log_prob(theta.double(), steps=128), expected, rtol=0, atol=1e-4)


def test_draws_of_an_exactly_known_population(published, tmp_path, home, generator):
    whole = unit_normal(published)
    population = stored(whole, tmp_path)
    u = torch.randn(2000, 16, generator=generator)
    phi = u * whole.population_model.scale + whole.population_model.shift
    theta = population.from_base(u)
    physical = whole.lower + whole.range * torch.special.ndtr(phi)
    assert ((theta - physical) / whole.range)[:, 1:].abs().max() < 0.003
    mass = 0.4 * (cosmology.distance_modulus(theta[:, 15]) - phi[:, 0])
    torch.testing.assert_close(theta[:, 0], mass, rtol=0, atol=5e-3)
    drawn = population.sample(500, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, population.sample(500, torch.Generator().manual_seed(1)))
    parameters.check(drawn)


def test_bounds_are_those_of_the_file(published, tmp_path, home, generator):
    population = stored(unit_normal(published, zmax=4.5), tmp_path)
    theta = population.sample(300, generator)
    assert 4.0 < theta[:, 15].max() <= 4.5
    theta[0, 15] = 4.6
    density = population.log_prob(theta.reshape(3, 100, 16))
    assert density.shape == (3, 100) and density[0, 0] == -torch.inf and density.flatten()[1:].isfinite().all()
    assert torch.equal(population.zero_points, torch.linspace(0.9, 1.1, 26))
    assert population.line_offsets.shape == population.line_wavelength.shape == population.line_ln_scatters.shape == (44,)


@pytest.mark.parametrize(("kind", "no_sigma"), [("VE", False), ("VP", True), ("VP", False)])
def test_draws_and_density_against_an_adaptive_solver(kind, no_sigma, published, tmp_path, home, generator):
    whole = drawn_inwards(published, kind, no_sigma)
    population = stored(whole, tmp_path).double()
    u = torch.randn(6, 16, generator=generator, dtype=torch.float64)
    first = 1e-5 if kind == "VE" else 1e-3
    times = torch.tensor([1.0, first], dtype=torch.float64)
    with torch.no_grad():
        x = odeint(lambda t, x: upstream_drift(whole, t, x), u * (10 if kind == "VE" else 1), times, rtol=1e-8, atol=1e-8)[-1]
    phi = x * whole.population_model.scale.double() + whole.population_model.shift.double()
    physical = (whole.lower + whole.range * torch.special.ndtr(phi))[:, 1:]
    for steps, tolerance in ((64, 0.01), (1024, 1e-4)):
        assert ((population.from_base(u, steps)[:, 1:] - physical) / whole.range[1:]).abs().max() < tolerance

    theta = torch.cat([torch.full((6, 1), 10.0, dtype=torch.float64), physical.clamp(-4, 4)], -1)
    theta = torch.where(whole.lower.double() + 0.05 < theta, theta, whole.lower.double() + 0.05)
    theta = torch.minimum(theta, whole.upper.double() - 0.05)
    x, jacobian = latent(whole, theta)

    def with_divergence(t, state):
        point = state[0].detach()
        rate = torch.func.vmap(torch.func.jacrev(lambda row: upstream_drift(whole, t, row[None])[0]))(point)
        return upstream_drift(whole, t, point).detach(), rate.diagonal(dim1=1, dim2=2).sum(-1).detach()

    end, volume = odeint(with_divergence, (x, torch.zeros(6, dtype=torch.float64)), times.flip(0), rtol=1e-7, atol=1e-7)
    base = torch.distributions.Normal(0.0, 10.0 if kind == "VE" else 1.0)
    expected = base.log_prob(end[-1]).sum(-1) + volume[-1] - jacobian
    torch.testing.assert_close(population.log_prob(theta), expected, rtol=0, atol=0.05)
    torch.testing.assert_close(population.log_prob(theta, steps=160), expected, rtol=0, atol=1e-3)


def test_density_is_differentiable(published, tmp_path, home, generator):
    population = stored(drawn_inwards(published, "VP", True), tmp_path).double()
    theta = parameters.BOUNDS.mean(1).repeat(2, 1).requires_grad_()
    slope = torch.autograd.grad(population.log_prob(theta, steps=12).sum(), theta)[0]
    for k in (0, 3, 8, 15):
        step = torch.zeros(16, dtype=torch.float64)
        step[k] = 1e-4
        with torch.no_grad():
            difference = (population.log_prob(theta + step, steps=12) - population.log_prob(theta - step, steps=12)) / 2e-4
        torch.testing.assert_close(slope[:, k], difference, rtol=1e-4, atol=1e-4)


def test_another_order_of_parameters_is_refused(published, tmp_path, home):
    whole = unit_normal(published)
    whole.param_names = whole.param_names[1:] + whole.param_names[:1]
    with pytest.raises(ValueError, match="not the 16"):
        stored(whole, tmp_path)


def test_the_pickle_is_opened_once(published, tmp_path, home, generator, monkeypatch):
    population = stored(unit_normal(published), tmp_path)
    monkeypatch.setattr(release_pickles, "read", lambda path: pytest.fail(f"{path} was unpickled again"))
    again = release.population(tmp_path / "catalogueModelX.pt")
    assert torch.equal(population.sample(5, torch.Generator().manual_seed(0)), again.sample(5, torch.Generator().manual_seed(0)))


@pytest.fixture
def faint(home):
    """Released noise model, and asinh magnitudes of galaxies with Ch1 < 26."""
    if "POPCOSMOS_DATA" not in os.environ:
        pytest.skip("POPCOSMOS_DATA is not set: the released noise model is not at hand")
    theta = universe.sample(4000, torch.Generator().manual_seed(8))
    model = release.noise_model()
    with torch.no_grad():
        magnitude = photometry.asinh_magnitude(filters.flux_from_magnitude(release.photulators().magnitudes(theta)), model.softening)
    return model, magnitude[magnitude[:, 24] < 26]


def test_released_errors_have_the_depths_of_the_catalogue(faint, generator):
    model, magnitude = faint
    torch.testing.assert_close(model.softening.double(), photometry.BANDS["softening"], rtol=1e-3, atol=0)
    sigma = model.sigma(magnitude[:1000], generator)
    assert torch.equal(sigma, model.sigma(magnitude[:1000], torch.Generator().manual_seed(5)))
    depth = filters.magnitude_from_flux(3 * sigma.median(0).values)
    # 3 sigma, as measured with the released code on galaxies of its own catalogue with Ch1 < 26
    expected = {"u": 28.4, "g": 28.8, "r": 28.5, "i": 28.5, "z": 28.0, "y": 27.1, "Y": 27.2, "J": 27.1, "H": 26.8, "Ks": 26.6}
    expected |= {"Ch1": 27.35, "Ch2": 27.2}
    for short, value in expected.items():
        assert abs(depth[filters.SHORT.index(short)] - value) < 0.5, f"{short}: {depth[filters.SHORT.index(short)]:.2f} against {value}"
    bright = model.sigma(magnitude[:500] - 5, torch.Generator().manual_seed(2))
    assert (bright.median(0).values > 1.2 * sigma.median(0).values).all(), "galaxies 5 mag brighter have larger errors in every band"
    with pytest.raises(ValueError, match="finite"):
        model.sigma(torch.full((1, 26), torch.nan), generator)


def test_released_errors_follow_an_adaptive_solver(faint, generator):
    model, magnitude = faint
    magnitude = magnitude[:24].double()
    u = torch.randn(24, 26, generator=generator)
    state = {name: value.double() for name, value in model.score.named_buffers()}
    condition = (magnitude - model.conditional_shift) / model.conditional_scale

    def drift(t, x):
        phase = (2 * math.pi * t * state["W"]).expand(len(x), -1)
        hidden = torch.cat([phase.sin(), phase.cos(), x, condition], -1)
        for i in range(5):
            hidden = torch.tanh(hidden @ state[f"NN{i}weight"].T + state[f"NN{i}bias"])
        return -0.5 * (0.1 + 19.9 * t) * (x + hidden @ state["NN5weight"].T + state["NN5bias"])

    with torch.no_grad():
        x = odeint(drift, u.double(), torch.tensor([1.0, 1e-3], dtype=torch.float64), rtol=1e-5, atol=1e-5)[-1]
    expected = (x * model.scale + model.shift).clamp(-28, -19.5) + math.log(10 ** (0.4 * 23.9))
    scatter = expected.std()
    error = (model.from_base(magnitude, u).log() - expected).pow(2).mean().sqrt()
    assert error < 0.02, f"the default steps leave {error:.4f} in ln sigma, whose scatter is {scatter:.2f}"
    assert (model.from_base(magnitude, u, steps=200).log() - expected).pow(2).mean().sqrt() < 0.005
