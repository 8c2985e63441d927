"""Hamiltonian draws against quadrature, where the posterior is known."""

import torch

from popcosmos_lib.galaxies import parameters
from popcosmos_lib.population import chains
from popcosmos_lib.synthesis import filters


class Independent:
    """A prior that is normal in every latent direction, for a posterior that quadrature can check."""

    def log_prob(self, phi):
        return -0.5 * ((phi[..., 0] - 18) / 2) ** 2 - 0.5 * (phi[..., 1:] ** 2).sum(-1)

    def sample(self, n, generator):
        phi = torch.randn(n, 16, generator=generator)
        phi[:, 0] = 18 + 2 * phi[:, 0]
        return parameters.to_theta(phi)


class Brightness:
    """All bands measure N and nothing else."""

    def magnitudes(self, theta):
        return parameters.to_latent(theta)[:, :1] + torch.full((1, len(filters.COSMOS26)), 5.0).to(theta)


def test_posterior_draws_match_quadrature():
    n, true_n, rng = 300, 19.0, torch.Generator().manual_seed(0)
    flux_true = 10 ** (0.4 * (23.9 - true_n - 5)) * torch.ones(n, 26)
    flux_err = 0.3 * flux_true
    flux = flux_true + flux_err * torch.randn(n, 26, generator=rng)
    start = torch.zeros(n, 16)
    start[:, 0] = true_n
    prior = Independent()
    draws, acceptance = chains.posterior_draws(
        parameters.to_theta(start), flux, flux_err, emulator=Brightness(), prior=prior, generator=rng, trajectories=60, keep=4
    )
    phi = parameters.to_latent(draws)
    grid = torch.linspace(true_n - 1, true_n + 1, 401)
    residual = (flux[:, None] - 10 ** (0.4 * (18.9 - grid))[:, None]) / flux_err[:, None]
    log_p = (-1.5 * torch.log1p(residual**2 / 2)).sum(-1) - 0.5 * ((grid - 18) / 2) ** 2
    weight = torch.softmax(log_p, -1)
    mean = (weight * grid).sum(-1)
    sd = (weight * (grid - mean[:, None]) ** 2).sum(-1).sqrt()
    pull = (phi[..., 0] - mean[:, None]) / sd[:, None]
    assert abs(float(pull.mean())) < 0.15 and abs(float(pull.std()) - 1) < 0.15
    assert abs(float(phi[..., 1:].mean())) < 0.05 and abs(float(phi[..., 1:].std()) - 1) < 0.08, "unconstrained directions keep the prior"
    assert 0.5 < float(acceptance.mean()) < 0.95
