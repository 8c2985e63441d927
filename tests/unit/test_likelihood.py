"""The likelihood by hand, the library's rescaling, and fits that really are at a maximum."""

import math

import pytest
import torch
from toy import Toy, observed

from popcosmos_lib.galaxies import parameters, priors
from popcosmos_lib.survey import likelihood, modes


def test_likelihood_is_a_student_t_with_two_degrees_of_freedom():
    magnitude = torch.tensor([[23.9, 22.0, 25.0]], dtype=torch.float64)
    flux, flux_err = torch.tensor([[1.3, 5.0, -0.2]]).double(), torch.tensor([[0.1, 0.2, 0.3]]).double()
    model = 10 ** (0.4 * (23.9 - magnitude))
    scale = (flux_err**2 + (0.05 * model) ** 2).sqrt()
    by_torch = torch.distributions.StudentT(2.0, model, scale).log_prob(flux).sum(-1)
    assert torch.allclose(likelihood.log_likelihood(magnitude, flux, flux_err, 0.05), by_torch)


def test_missing_bands_do_not_count_and_do_not_spoil_gradients():
    _, flux, flux_err = observed(5)
    magnitude = likelihood.photometry(Toy(), observed(5)[0]).requires_grad_()
    holes = flux.clone()
    holes[:, 3] = torch.nan
    lost = flux_err.clone()
    lost[:, 7] = torch.nan
    keep = [i for i in range(26) if i not in (3, 7)]
    with_holes = likelihood.log_likelihood(magnitude, holes, lost, 0.03)
    assert torch.allclose(with_holes, likelihood.log_likelihood(magnitude[:, keep], flux[:, keep], flux_err[:, keep], 0.03))
    (gradient,) = torch.autograd.grad(with_holes.sum(), magnitude)
    assert torch.isfinite(gradient).all() and (gradient[:, [3, 7]] == 0).all()
    assert (likelihood.scaled_residual(magnitude, holes, lost)[:, [3, 7]] == 0).all()


@pytest.mark.parametrize("magnitude", [-60.0, 90.0])
def test_absurd_models_stay_finite(magnitude):
    value = torch.full((1, 2), magnitude, requires_grad=True)
    log_l = likelihood.log_likelihood(value, torch.tensor([[1.0, -1.0]]), torch.tensor([[0.1, 0.1]]), 0.02)
    log_l.sum().backward()
    assert torch.isfinite(log_l).all() and torch.isfinite(value.grad).all()


def test_fractional_error_adds_the_emulator_in_quadrature():
    toy = Toy()
    toy.error = torch.full((26,), 0.02)
    assert torch.allclose(likelihood.fractional_error(0.03, toy), torch.tensor(math.hypot(0.03, 0.02 * 0.4 * math.log(10))))
    assert float(likelihood.fractional_error(0.03, Toy())) == pytest.approx(0.03)


def test_photometry_scales_exactly_with_mass_outside_the_bounds_too():
    theta = observed(4)[0]
    heavy = theta.clone()
    heavy[:, 0] = 14.0
    difference = likelihood.photometry(Toy(), heavy) - likelihood.photometry(Toy(), theta)
    assert torch.allclose(difference, (-2.5 * (14 - theta[:, :1])).expand(-1, 26), atol=1e-4)


def test_library_finds_a_galaxy_whatever_its_brightness():
    theta, flux, flux_err = observed(20)
    faint = theta.clone()
    faint[:, 0] -= 3.0
    others = priors.Prospector().library(2000, torch.Generator().manual_seed(8))
    library = modes.Library.of(torch.cat([faint, others]), Toy())
    flux[:, 5] = torch.nan
    index, shift = library.nearest(flux, flux_err, torch.tensor(0.02), 50)
    found = (index == torch.arange(20)[:, None]).nonzero()
    assert len(found) == 20, "the galaxy itself, 7.5 mag fainter, must be in the shortlist"
    assert torch.allclose(shift[found[:, 0], found[:, 1]], torch.tensor(-7.5), atol=0.05)
    assert (index[:, 0] == torch.arange(20)).float().mean() > 0.5


@pytest.fixture(scope="module")
def fits():
    theta, flux, flux_err = observed(12)
    prior, g = priors.Prospector(), torch.Generator().manual_seed(1)
    fit = modes.maximum_posterior(flux, flux_err, prior, Toy(), g, n_starts=3, floor=0.01, n_library=4000)
    return theta, flux, flux_err, prior, fit


def test_maximum_posterior_fits_and_says_so(fits):
    theta, flux, flux_err, prior, fit = fits
    assert fit.converged.all()
    assert fit.chi_square.median() < 26, "26 bands, 16 parameters, errors as stated"
    truth = modes._log_posterior(parameters.to_latent(theta), flux, flux_err, torch.tensor(0.01), prior, Toy())
    assert (fit.log_posterior > truth - 0.1).float().mean() > 0.9, "the maximum cannot lie below the truth"


def test_no_direction_leads_up_from_a_converged_fit(fits):
    _, flux, flux_err, prior, fit = fits
    phi = parameters.to_latent(fit.theta)[fit.converged]
    data = flux[fit.converged], flux_err[fit.converged], torch.tensor(0.01), prior, Toy()
    value = modes._log_posterior(phi, *data)
    g = torch.Generator().manual_seed(4)
    for size in (0.003, 0.03, 0.3):
        for _ in range(20):
            moved = modes._log_posterior(phi + size * torch.randn(phi.shape, generator=g), *data)
            assert (moved < value + 2 * modes.TOLERANCE).all()


def test_starts_are_at_different_redshifts():
    z = torch.linspace(0, 5, 200).expand(3, -1)
    score = -((z - torch.tensor([[0.5], [2.0], [4.0]])) ** 2)
    chosen = z.gather(1, modes._distinct(score, z, 4))
    gaps = (chosen[:, :, None] - chosen[:, None]).abs() / (1 + chosen[:, None])
    assert (gaps[:, ~torch.eye(4, dtype=torch.bool)] > 0.05).all()


def test_curvature_stays_positive_definite_at_very_high_signal_to_noise():
    """Errors of a millionth make directions that differ by 1e12 in stiffness."""
    _, flux, _ = observed(6)
    library = modes.Library.of(observed(500)[0], Toy())
    found = modes.local_maxima(flux, 1e-6 * flux, priors.Prospector(), Toy(), library, n_starts=2, steps=5)
    assert (torch.linalg.eigvalsh(found.curvature)[..., 0] > 0).all()
    assert (torch.linalg.cholesky_ex(found.curvature).info == 0).all()


def test_information_is_that_of_a_student_t():
    """Fisher information of the location of Student's t, (nu + 1) / (nu + 3), by quadrature of its score for nu = 2."""
    t = torch.linspace(-400.0, 400.0, 2_000_001, dtype=torch.float64)
    density, score = (2 + t**2) ** -1.5, 3 * t / (2 + t**2)
    information = torch.trapezoid(density * score**2, t) / torch.trapezoid(density, t)
    assert likelihood.STUDENT_INFORMATION == pytest.approx(float(information), rel=1e-3), "metrics of chains and fits rest on it"
