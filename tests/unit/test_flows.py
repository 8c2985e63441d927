"""Flows: densities with the right Jacobian, the inverse of their own map, close to closed forms once trained."""

import itertools
import math

import pytest
import torch

from popcosmos_lib.artefacts import checkpoint
from popcosmos_lib.density import flows


def perturbed(dim, context=0, size=0.1, seed=1):
    """A flow far from the identity, in float64."""
    generator = torch.Generator().manual_seed(seed)
    flow = flows.Flow(dim, context, width=16, depth=4, embedding=16, generator=generator).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return flow, generator


def test_points_to_base_noise_and_back():
    flow, generator = perturbed(5, 3)
    context, x = torch.randn(50, 1, 3, generator=generator).double(), 2 * torch.randn(50, 4, 5, generator=generator).double()
    u, log_det = flow.to_base(x, context)
    back, again = flow.from_base(u, context)
    assert torch.allclose(back, x, atol=1e-8) and torch.allclose(log_det, again, atol=1e-8)
    assert torch.allclose(flow.to_base(x[:, 2], context[:, 0])[0], u[:, 2]), "one context for many points is the same as one for each"


def test_the_log_determinant_is_that_of_the_map():
    flow, generator = perturbed(4)
    for x in (3 * torch.randn(5, 4, generator=generator)).double():
        jacobian = torch.autograd.functional.jacobian(lambda point: flow.to_base(point[None])[0][0], x)
        assert torch.allclose(torch.linalg.slogdet(jacobian)[1], flow.to_base(x[None])[1][0], atol=1e-9)


def test_draws_come_with_their_density_and_integrate_to_one():
    flow, generator = perturbed(2)
    x, log_prob = flow.sample(1000, generator)
    assert torch.allclose(flow.log_prob(x), log_prob, atol=1e-8)
    axis = torch.linspace(-10, 10, 251).double()
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=5e-3)


def test_a_correlated_gaussian_is_learned():
    generator = torch.Generator().manual_seed(2)
    root = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.5, 0.3, 0.2]]).double()
    flow = flows.Flow(3, width=16, depth=2, generator=generator).double()

    def batch(g):
        return torch.randn(256, 3, generator=g).double() @ root.T, None

    history = flows.train(flow, batch, generator=generator, steps=300, lr=3e-3)
    truth = torch.distributions.MultivariateNormal(torch.zeros(3).double(), scale_tril=root)
    x = batch(generator)[0]
    with torch.no_grad():
        error = truth.log_prob(x) - flow.log_prob(x)
    assert history.isfinite().all() and error.abs().mean() < 0.1
    assert error.mean().abs() < 0.02, "Kullback-Leibler divergence from the Gaussian [nat]"


def test_a_killed_training_ends_at_the_same_flow(tmp_path, monkeypatch):
    monkeypatch.setattr(flows, "_SAVED", 20)

    def trained(kept, last=None):
        g, calls = torch.Generator().manual_seed(5), itertools.count()
        flow = flows.Flow(2, width=8, depth=2, generator=g)

        def batch(_):
            if next(calls) == last:
                raise KeyboardInterrupt
            return torch.randn(32, 2, generator=g), None

        history = flows.train(flow, batch, generator=g, steps=50, checkpoint=kept)
        return {**flow.state_dict(), "history": history}, next(calls)

    whole, batches = trained(None)
    kept = checkpoint.Checkpoint(tmp_path / "flow.pt", {})
    with pytest.raises(KeyboardInterrupt):
        trained(kept, 33)
    again, fewer = trained(kept)
    assert batches == 50 and fewer == 30, "it went on from the checkpoint"
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_posterior_is_learned_and_narrow_ones_too():
    """x ~ N(0, 1) twice, seen as d = x1 + 0.05 noise: x1 given d is N(d / (1 + s^2), s^2 / (1 + s^2)), x2 is as before."""
    generator, s = torch.Generator().manual_seed(3), 0.05
    flow = flows.Flow(2, 1, width=32, depth=2, generator=generator).double()

    def batch(g):
        x = torch.randn(256, 2, generator=g).double()
        return x, x[:, :1] + s * torch.randn(256, 1, generator=g).double()

    flows.train(flow, batch, generator=generator, steps=400, lr=5e-3)
    x, d = batch(generator)
    width = s / math.sqrt(1 + s**2)
    exact = torch.distributions.Normal(d[:, 0] / (1 + s**2), width).log_prob(x[:, 0]) + torch.distributions.Normal(0, 1).log_prob(x[:, 1])
    assert (exact - flow.log_prob(x, d)).mean().abs() < 0.1, "Kullback-Leibler divergence from the exact posterior [nat]"
    draws = flow.sample(500, generator, torch.tensor([[-1.0], [1.5]]).double())[0]
    assert draws.shape == (2, 500, 2)
    assert torch.allclose(draws[..., 0].mean(1), torch.tensor([-1.0, 1.5]).double(), atol=0.02)
    assert torch.allclose(draws[..., 0].std(1), torch.full((2,), width).double(), rtol=0.25)


def test_weights_come_from_the_generator_alone():
    def made(seed, world):
        torch.manual_seed(world)
        return flows.Flow(4, 2, width=8, depth=2, generator=torch.Generator().manual_seed(seed)).state_dict()

    first, same, other = made(1, 1), made(1, 2), made(2, 1)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_context_is_asked_for_or_refused():
    with pytest.raises(ValueError, match="context of 2 features"):
        flows.Flow(3, 2, width=8, depth=2).log_prob(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="context of 0 features"):
        flows.Flow(3, width=8, depth=2).log_prob(torch.zeros(4, 3), torch.zeros(4, 2))
