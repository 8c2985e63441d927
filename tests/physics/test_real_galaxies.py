"""Real COSMOS2020 galaxies with spectroscopic redshifts, through the front doors: fitted, and calibrated on."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from popcosmos_lib import catalog, population, survey
from popcosmos_lib.artefacts import store
from popcosmos_lib.emulation import emulator, release
from popcosmos_lib.fitting import inference
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.population import metrics

FILE = Path(os.environ.get("POPCOSMOS_DATA", ""), "cosmos2020", "cosmos2020_classic_26band_allz.fits")
if not FILE.is_file():  # the folder of the data files may lie one level down
    FILE = Path(os.environ.get("POPCOSMOS_DATA", ""), "data", "cosmos2020", FILE.name)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("POPCOSMOS_DATA" not in os.environ or not FILE.is_file(), reason="set POPCOSMOS_DATA"),
]
MAX_SIGMA, MAX_OUTLIERS = 0.03, 0.15  # four of the fifty reference redshifts contradict the photometry


@pytest.fixture(scope="module")
def galaxies():
    return catalog.read(FILE)


def check(result, galaxies):
    score = metrics.photoz(torch.tensor(result.summary["z_q50"]), galaxies.z_spec)
    print(score, f"k-hat below 0.7 in {(result.summary['khat'] < 0.7).mean():.0%}, effective draws {np.median(result.summary['ess']):.0f}")
    assert score["n"] == len(galaxies.flux) >= 25
    assert score["sigma_mad"] <= MAX_SIGMA, score
    assert score["outliers"] <= MAX_OUTLIERS, score
    assert abs(score["median"]) <= 0.01, score
    assert (result.summary["flags"] & 32 == 0).mean() > 0.8, "the model must reproduce the photometry of most real galaxies"


@pytest.mark.parametrize("prior", inference.PRIORS)
def test_fifty_real_galaxies(prior, galaxies):
    try:
        tools = {"emulator": emulator.load()}
        store.load("population", "published")
    except store.Missing as missing:
        pytest.skip(f"needs the trained emulator and population: {missing}")
    check(inference.fit(galaxies.flux, galaxies.flux_err, prior, **tools), galaxies)


def test_real_galaxies_with_the_public_emulator(galaxies):
    try:
        public = release.photulators()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    half = galaxies[torch.arange(0, len(galaxies.flux), 2)]  # the public networks are slow, and the guess was not made for them
    check(inference.fit(half.flux, half.flux_err, "prospector", emulator=public), half)


def test_a_population_of_real_galaxies(galaxies):
    """Learned from those with r < 25, in the least time: their redshifts enter nowhere, and are found."""
    g, few = torch.Generator().manual_seed(8), galaxies[survey.select(galaxies.flux, population.SELECTION) & galaxies.clean]
    small = {"start_steps": 200, "iterations": 1, "trajectories": 10, "refit_steps": 60, "density_steps": 1500}
    made = population.calibrate(galaxies, floor=inference.published_floor(), generator=g, **small)
    score = metrics.photoz(parameters.column(made.draws, "z").median(1).values, few.z_spec)
    print(score)
    assert score["n"] == len(few) >= 40 and score["nmad"] <= 0.02 and score["outliers"] <= MAX_OUTLIERS, score
    z = parameters.column(made.population.sample(2000, g), "z")
    assert abs(float(z.median()) - float(few.z_spec.median())) < 0.2, "the population must have the redshifts of its galaxies"
    assert float(z.std()) > 0.2 and made.population.log_prob(made.draws[:20, -1]).isfinite().all()
