"""The population model: Jacobians, bounds, forward model, posterior draws, and what a kill of notebook 04 costs."""

import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import official
import psutil
import pytest
import torch
from torch import nn
from toy import Colours

from popcosmos_lib import catalog, population, survey
from popcosmos_lib.artefacts import store
from popcosmos_lib.galaxies import parameters, universe
from popcosmos_lib.synthesis import filters

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(3)


class UnitNormal(nn.Module):
    """Exact denoiser of a unit normal: the density is then known in closed form in every space."""

    def forward(self, x, sigma):
        return x / (1 + sigma**2)

    def with_trace(self, x, sigma):
        return self(x, sigma), x.shape[-1] / (1 + sigma**2) * torch.ones_like(x[:, 0])


@pytest.fixture
def exact():
    shift, scale = torch.zeros(16).double(), torch.linspace(0.4, 1.1, 16).double()
    shift[0] = 18.0
    return population.Population(UnitNormal(), shift, scale)


@pytest.fixture(scope="module")
def galaxies():
    theta = universe.sample(6000, torch.Generator().manual_seed(1))
    return theta[parameters.column(theta, "z") < 3]


@pytest.fixture(scope="module")
def small(galaxies):
    model = population.Population.fit(galaxies, generator=torch.Generator().manual_seed(2), steps=300, batch=256, width=32)[0]
    return population.Population.from_state(model.state_dict())


def test_log_prob_carries_every_jacobian(exact, rng):
    """ln p(theta) of a normal in phi, with the Jacobian of theta(phi) taken by autograd."""
    phi = exact.shift + exact.scale * torch.randn(20, 16, generator=rng, dtype=torch.float64)
    theta = parameters.to_theta(phi)
    keep = population.inside(theta)
    normal = -0.5 * ((phi - exact.shift) / exact.scale) ** 2 - exact.scale.log() - 0.5 * math.log(2 * math.pi)
    jacobian = torch.stack([torch.autograd.functional.jacobian(parameters.to_theta, row) for row in phi])
    expected = normal.sum(-1) - torch.linalg.slogdet(jacobian).logabsdet
    assert keep.any()
    assert (exact.log_prob(theta) - expected)[keep].abs().max() < 0.01, "nat"


def test_log_prob_is_minus_infinity_outside_the_bounds(exact):
    theta = parameters.to_theta(exact.shift[None].clone())
    assert exact.log_prob(theta).isfinite().all()
    theta[:, 0] = 14.0
    assert (exact.log_prob(theta) == -torch.inf).all()


def test_log_prob_has_the_gradient_of_its_values(exact):
    theta = parameters.to_theta(exact.shift[None] + 0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: exact.log_prob(t, steps=4), theta, eps=1e-5, atol=1e-4)


def test_round_trip(small, galaxies):
    u = small.to_base(galaxies[:300])
    assert (parameters.to_latent(small.from_base(u)) - parameters.to_latent(galaxies[:300])).abs().max() < 1e-3
    assert abs(float(u.std()) - 1) < 0.2, "base noise of galaxies that the model describes is about unit normal"


def test_samples_stay_inside_the_bounds_and_follow_the_seed(small):
    draws = [small.sample(3000, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert population.inside(draws[0]).all() and draws[0].shape == (3000, 16)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_state_restores_the_model(small, galaxies):
    fresh = population.Population.fit(galaxies, generator=torch.Generator().manual_seed(2), steps=2, width=32)[0]
    assert not torch.equal(fresh.from_base(torch.zeros(2, 16)), small.from_base(torch.zeros(2, 16)))
    again = population.Population.from_state(small.state_dict())
    assert torch.equal(again.from_base(torch.zeros(2, 16)), small.from_base(torch.zeros(2, 16)))
    assert not any(p.requires_grad for p in again.parameters())


def test_load_names_the_command_when_nothing_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("POPCOSMOS_HOME", str(tmp_path))
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("*.ipynb"))
    with pytest.raises(store.Missing, match="04_calibration"):
        population.load("fast")


def test_forward_model_is_fixed_by_its_draws_and_differentiable(galaxies, rng):
    forward = population.ForwardModel(Colours(), survey.truth())
    theta = galaxies[:50].clone().requires_grad_()
    draws = forward.draws(50, rng)
    seen = forward(theta, draws)
    assert torch.equal(seen.flux, forward(theta, draws).flux)
    assert torch.equal(seen.selected, survey.select(seen.flux.detach(), "r<25"))
    gradient = torch.autograd.grad(survey.asinh_magnitude(seen.flux).sum(), theta)[0]
    assert gradient.isfinite().all() and (gradient[:, [0, 8, 15]] != 0).all()


def test_chance_of_selection_matches_the_frequency(rng):
    forward = population.ForwardModel(Colours(), survey.truth())
    limit = filters.flux_from_magnitude(torch.tensor(25.0))
    need = torch.linspace(-6, 6, 7)
    flux_true = torch.ones(7, 26) * limit
    flux_err = 0.02 * flux_true
    flux_true = flux_true - need[:, None] * flux_err
    nothing = torch.zeros(7, dtype=torch.bool)
    chance = forward.log_selected(population.Photometry(flux_true, flux_err, flux_true, nothing)).exp()
    noise = survey.student_t((40_000, 7, 26), rng)
    passed = torch.stack([survey.select(f, "r<25") for f in (flux_true + flux_err * noise).unbind(1)], -1)
    assert (chance - passed.float().mean(0)).abs().max() < 0.01


SMALLER = {"weights": "published", "n_galaxies": 100, "n_second": 100, "n_library": 2000, "fit_steps": 60, "trajectories": 6}
SMALLER |= {"em_trajectories": 3, "em_steps": 10, "n_steps": 60, "n_start_steps": 60, "member_steps": 20, "polish": 2, "match_steps": 2}
SMALLER |= {"summary_steps": 2, "n_score": 600, "error_steps": 60, "slack": 100.0, "max_unconverged": 1.0, "max_round_trip": 1.0}


def driver(name, home, **smaller):
    environment = os.environ | {"POPCOSMOS_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "popcosmos_lib", "run", f"notebooks/{name}.py", "--profile", "smoke"]
    command += [word for key, value in smaller.items() for word in ("-p", f"{key}={value}")]
    return subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def home(tmp_path):
    """A copy of what a run reads, with the artefacts of notebook 03 made there unless the checkout has them."""
    for folder in ("notebooks", "figures", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.ipynb", "*.png", "*.pdf"))
    shutil.copy(ROOT / "profiles.yaml", tmp_path)
    made = ROOT / "artefacts"
    for path in [*made.glob("shared/*"), *(p for name in ("mock", "uncertainty") for p in made.glob(f"smoke/{name}.*"))]:
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    if not (tmp_path / "artefacts" / "smoke" / "uncertainty.json").exists():
        assert driver("03_survey", tmp_path).wait(timeout=600) == 0
    return tmp_path


@pytest.mark.slow
def test_a_kill_during_calibration_loses_only_the_stage_in_progress(home):
    """Calibration on a file with the official columns, whose true parameters nobody knows."""
    made = home / "artefacts" / "smoke"
    seen = catalog.read(made / "mock.parquet")
    seen = seen[survey.select(seen.flux, population.SELECTION).nonzero()[:600, 0]]
    options = SMALLER | {"catalogue": official.farmer(home, seen.flux, seen.flux_err)}
    running = driver("04_calibration", home, **options)
    deadline = time.monotonic() + 300
    while not (made / "population_start.json").exists():
        assert running.poll() is None and time.monotonic() < deadline, running.stdout.read()
        time.sleep(0.02)
    tree = [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]
    for process in tree:
        process.kill()
    psutil.wait_procs(tree)
    assert not (made / "population.json").exists(), "killed in the middle"
    before = {name: (made / f"{name}.safetensors").stat().st_mtime_ns for name in ("map_fits", "population_start")}
    again = driver("04_calibration", home, **options)
    output = again.communicate(timeout=600)[0]
    assert again.returncode == 0, output
    after = {name: (made / f"{name}.safetensors").stat().st_mtime_ns for name in before}
    assert after == before, "finished stages are read, not made again"
    assert (made / "population.json").exists()
    assert not list(made.glob("*.tmp*")), "no half-written file is left"
