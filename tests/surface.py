"""What users write, typed: mypy checks these calls against the annotations of the public surface (``make lint``); nothing here is run.

A public function without annotations, or with one that contradicts its use in the documentation, fails the check.
"""

from pathlib import Path
from typing import assert_type

import numpy as np
import torch
from astropy.table import Table

from popcosmos_lib import catalog, diffusion, emulator, filters, inference, parameters, population, release, sps, survey, universe
from popcosmos_lib.emulation.photulator import Emulator
from popcosmos_lib.emulation.spectra import Spectra
from popcosmos_lib.population.calibration import Calibration
from popcosmos_lib.survey.photometry import Catalogue


def parameters_and_spectra(theta: torch.Tensor, random: torch.Generator) -> None:
    phi = assert_type(parameters.to_latent(parameters.check(theta)), torch.Tensor)
    assert_type(parameters.to_theta(phi) + 0 * parameters.log_jacobian(phi)[..., None], torch.Tensor)
    assert_type(parameters.column(theta, "z"), torch.Tensor)
    assert_type(parameters.log_sfr(theta) - parameters.log_ssfr(theta) + parameters.mass_weighted_age(theta), torch.Tensor)
    assert_type(universe.sample(10, random), torch.Tensor)
    assert_type(universe.number_density(), float)
    assert_type(universe.mass_function(theta[:, 0], theta[:, 15]), torch.Tensor)
    synthesiser = assert_type(sps.load(["hsc_g", "hsc_r"], resolution=300), sps.Synthesiser)
    assert_type(synthesiser.magnitudes(theta), torch.Tensor)
    assert_type(synthesiser.derived(theta), dict[str, torch.Tensor])
    assert_type(filters.load("kids").average(np.ones(3), np.ones(3)), torch.Tensor)
    assert_type(filters.magnitude_from_flux(filters.flux_from_magnitude(theta)), torch.Tensor)


def networks(theta: torch.Tensor, random: torch.Generator) -> None:
    assert_type(emulator.load("photometry", profile="fast"), Emulator | Spectra)
    found = emulator.having({"hsc_g"})
    if found is not None:
        assert_type(found.magnitudes(theta), torch.Tensor)
        assert_type(found.line_flux(theta) + found.errors(theta)[:, None], torch.Tensor)
    trained, history = emulator.train(sps.load(), n_train=1000, steps=10, generator=random, hidden=(16, 16))
    assert_type(trained, Emulator)
    assert_type(history, list[dict])
    assert_type(release.photulators(Path("folder")).magnitudes(theta), torch.Tensor)
    net = diffusion.ScoreNet(dim=2, generator=random)
    assert_type(diffusion.train(net, theta[:, :2], generator=random, steps=10), torch.Tensor)
    assert_type(diffusion.log_prob(net, diffusion.decode(net, theta[:, :2])), torch.Tensor)


def populations(theta: torch.Tensor, random: torch.Generator) -> None:
    model = assert_type(population.load(), population.Population)
    assert_type(model.log_prob(model.sample(100, random)), torch.Tensor)
    assert_type(population.load_ensemble("published").sample(10, random), torch.Tensor)
    learned = assert_type(population.calibrate(catalog.read("catalogue.fits"), floor=0.03, generator=random), Calibration)
    assert_type(learned.population.to_base(theta), torch.Tensor)
    assert_type(population.mock(100, "kids", generator=random), Table)


def surveys_and_catalogues(flux: torch.Tensor, flux_err: torch.Tensor, random: torch.Generator) -> None:
    sky = assert_type(survey.truth(), survey.Survey)
    assert_type(sky.observe(flux, sky.sigma(flux, random), random), torch.Tensor)
    assert_type(survey.select(flux, "r<25"), torch.Tensor)
    assert_type(survey.flux_from_asinh(survey.asinh_magnitude(flux)), torch.Tensor)
    rows = assert_type(catalog.read(Path("catalogue.parquet"), zero_points=None), Catalogue)
    assert_type(catalog.from_table(rows.table), Catalogue)
    catalog.write("mock.parquet", [rows.table])
    result = inference.fit(rows.flux, np.asarray(rows.flux_err), prior="prospector", seed=1, id=rows.id.tolist(), draws=512)
    assert_type(result, inference.Result)
    assert_type(result.summary, Table)
    assert_type(result.equal(10, random), torch.Tensor)
    assert_type(inference.published_floor(), torch.Tensor)
