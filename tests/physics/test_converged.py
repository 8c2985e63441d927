"""The exact engine against ensemble chains that were run until they converged (benchmarks/reference.py): medians and widths agree."""

import numpy as np
import pytest
import torch

from popcosmos_lib import inference, tables

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
