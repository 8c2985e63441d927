"""The exact engine against ensemble chains that were run until they converged (benchmarks/reference.py): medians and widths agree.

Engine and chains share their coordinates and the density in them, so that density is tested by itself: against base noise.
"""

import numpy as np
import pytest
import torch

from popcosmos_lib import population
from popcosmos_lib.density import flows
from popcosmos_lib.emulation import emulator
from popcosmos_lib.fitting import exact_engine, inference, proposal
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.survey import forward_model, likelihood
from popcosmos_lib.workflow import tables

FOLLOWED = ("z", "log10M_formed", "log10SFR")


@pytest.fixture(scope="module")
def quantiles():
    """Of the exact engine and of the chains, each (galaxies, 3, 5), and the R-hats."""
    reference = tables.benchmark("reference")
    rows = reference["rows"]
    flux, flux_err = (torch.tensor([row[key] for row in rows]) for key in ("flux", "flux_err"))
    table = inference.fit(flux, flux_err, floor=reference["floor"], ess=1000.0, n_draws=1000).summary
    found = np.stack([[table[f"{name}_{suffix}"] for suffix in inference.QUANTILES] for name in FOLLOWED]).transpose(2, 0, 1)
    return found, np.array([[row["quantiles"][name] for name in FOLLOWED] for row in rows]), [row["rhat"] for row in rows]


def test_the_chains_converged(quantiles):
    assert len(quantiles[2]) >= 10 and max(quantiles[2]) < 1.01


def test_medians_of_redshift_mass_and_rate_agree(quantiles):
    found, known, _ = quantiles
    apart = (found[..., 2] - known[..., 2]) / ((known[..., 3] - known[..., 1]) / 2)
    rms = np.sqrt((apart**2).mean(0))
    assert (rms < 0.15).all(), f"z, mass and SFR are {rms.round(3)} sigma from the converged chains"


def test_intervals_are_as_wide(quantiles):
    found, known, _ = quantiles
    ratio = (found[..., 3] - found[..., 1]) / (known[..., 3] - known[..., 1])
    assert (abs(np.exp(np.log(ratio).mean(0)) - 1) < 0.1).all(), "posteriors of the exact engine must not be too narrow, nor too wide"


def test_density_is_likelihood_times_a_unit_normal_in_base_noise():
    """In the base noise of the population its prior is N(0, I): no density of the model is needed there, nor any Jacobian in its own."""
    net, law, guess = emulator.load(), population.load(), proposal.load()
    row, floor = tables.benchmark("reference")["rows"][0], likelihood.fractional_error(0.01, net).expand(26)
    data = torch.tensor([row["flux"]]), torch.tensor([row["flux_err"]])
    target = exact_engine.Target(*data, floor, guess, law, net)
    for w in 0.7 * torch.randn(2, 16, generator=torch.Generator().manual_seed(14)):

        def base(w):
            phi = guess.decode(w[None, None], target.context, *data, floor, net)[0]
            return law.to_base(parameters.to_theta(phi[0]))[0]

        with torch.no_grad():
            log_p, theta = target(w[None, None], torch.tensor([0]))
            log_p = log_p + population.log_ratio(law, theta, lambda phi, theta=theta: guess.log_prior(phi, theta))
            u = base(w)
            magnitude = likelihood.photometry(net, law.from_base(u[None]))
            log_l = likelihood.log_likelihood(magnitude, *data, floor) - forward_model.log_passing(magnitude, *data, floor)
        volume = torch.linalg.slogdet(torch.autograd.functional.jacobian(base, w, vectorize=True).double()).logabsdet
        assert float(log_p) == pytest.approx(float(log_l + flows.log_normal(u) + volume), abs=0.1)
