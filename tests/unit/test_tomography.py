"""Tomographic bins: equal parts, unit integrals, honest sampling errors."""

import numpy as np
import pytest
import torch

from popcosmos_lib.galaxies import universe
from popcosmos_lib.survey import tomography
from popcosmos_lib.synthesis import filters


def sample(n, seed=1):
    rng = np.random.default_rng(seed)
    colour = rng.standard_normal(n)
    return tomography.Galaxies(np.clip(1 + 0.3 * colour + 0.2 * rng.standard_normal(n), 0.01, 5.9), np.full(n, 10.0), colour)


def test_colour_bands_are_r_and_i_or_the_middle_ones():
    assert (
        tomography.pair("ugrizy") == ("r", "i")
        and tomography.pair(["V", "J", "H", "K"]) == ("J", "H")
        and tomography.pair("gz") == ("g", "z")
    )
    with pytest.raises(ValueError, match="two bands; got V"):
        tomography.pair(["V"])


def test_galaxies_have_the_colour_of_their_flux_and_negative_ones_count_as_faint():
    theta = universe.sample(3, torch.Generator().manual_seed(1))
    flux = filters.flux_from_magnitude(torch.tensor([[24.0, 22.0, 21.0], [24.0, 23.5, 23.0], [24.0, 23.0, 23.0]]))
    flux[2, 2] = -1.0
    found = tomography.galaxies(theta, flux, "gri")
    assert found.colour[:2] == pytest.approx([1.0, 0.5], abs=1e-5) and found.colour[2] < -5
    assert found.z == pytest.approx(theta[:, -1].double().numpy()) and found.log_mass == pytest.approx(
        universe.surviving_mass(theta).double().numpy()
    )


def test_bins_are_quarters_of_the_reference_and_densities_integrate_to_one():
    sky, z_edges = sample(4000), np.linspace(0, 6, 61)
    binned = tomography.binned(sky, tomography.edges(sky), z_edges)
    mean, error, number = binned.moments
    assert (number == [4000, 1000, 1000, 1000, 1000]).all() and (binned.density.sum(1) * 0.1) == pytest.approx(np.ones(5))
    assert (
        (np.diff(mean[1:]) > 0).all()
        and mean[0] == pytest.approx(sky.z.mean())
        and error[0] == pytest.approx(sky.z.std() / 4000**0.5, rel=1e-3)
    )


def test_sampling_errors_are_the_scatter_of_repetitions():
    z_edges = np.linspace(0, 3, 31)
    colours = tomography.edges(sample(4000))
    found = [tomography.binned(sample(500, seed), colours, z_edges) for seed in range(300)]
    scatter, quoted = np.std([one.moments[0] for one in found], 0), np.mean([one.moments[1] for one in found], 0)
    assert scatter == pytest.approx(quoted, rel=0.15)
    peak = np.argmax(found[0].density[0])
    assert np.std([one.density[0, peak] for one in found]) == pytest.approx(np.mean([one.sampling[0, peak] for one in found]), rel=0.15)


def test_an_empty_bin_is_refused():
    with pytest.raises(ValueError, match="a tomographic bin is empty"):
        tomography.binned(sample(10), np.array([5.0, 6.0, 7.0]), np.linspace(0, 6, 7))
