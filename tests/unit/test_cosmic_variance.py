"""Cosmic variance: the numbers of the cookbook, closed forms, and what must fall with what."""

import math

import numpy as np
import pytest

from popcosmos_lib.survey import cosmic_variance

FIELDS = {  # Moster et al. (2011) table 3: sides [arcmin], then sigma_a, sigma_b and beta
    "UDF": ((3.3, 3.3), (0.251, 0.364, 0.358)),
    "GOODS": ((10.0, 16.0), (0.261, 0.854, 0.684)),
    "GEMS": ((28.0, 28.0), (0.161, 0.520, 0.729)),
    "EGS": ((10.0, 70.0), (0.128, 0.383, 0.673)),
    "COSMOS": ((84.0, 84.0), (0.069, 0.234, 0.834)),
}
Z = np.array([0.3, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5])


def cookbook(field, z, dz=0.2):
    """Relative standard deviation of dark matter by their fit, eq. 10."""
    a, b, beta = FIELDS[field][1]
    return a / (np.asarray(z, float) ** beta + b) * np.sqrt(0.2 / dz)


@pytest.mark.parametrize("field", FIELDS)
def test_linear_theory_gives_the_fits_of_the_paper_for_its_fields(field):
    sides = np.array(FIELDS[field][0]) / 60
    ratio = cosmic_variance.dark_matter(Z, 0.2, sides) / cookbook(field, Z)
    assert abs(ratio - 1).max() < 0.06, f"{field}: {ratio}"


@pytest.mark.parametrize(("field", "log_mass", "percent"), [("COSMOS", 10.25, 6), ("GEMS", 10.25, 13), ("GOODS", 10.25, 19)])
def test_the_abstract_of_the_paper(field, log_mass, percent):
    """At z = 2 with dz = 0.5, galaxies of about 10^10 Msun."""
    value = 100 * cosmic_variance.bias(log_mass, 2.0) * cookbook(field, 2.0, 0.5)
    assert value == pytest.approx(percent, abs=0.75)


def test_bias_is_that_of_the_table_and_rises_with_mass_and_redshift():
    assert cosmic_variance.bias(10.25, 1.0) == pytest.approx(0.053 * 2**3.07 + 1.225)
    assert cosmic_variance.bias([7.0, 13.0], 0.0) == pytest.approx([0.062 + 1.025, 0.173 + 1.438]), "held at the ends"
    between = cosmic_variance.bias([9.75, 10.0, 10.25], 1.0)
    assert between[1] == pytest.approx(between[[0, 2]].mean()), "linear in between"
    at = cosmic_variance.bias(np.linspace(8.75, 11.25, 6), 3.0)
    assert (np.diff(cosmic_variance.bias(10.0, Z)) > 0).all() and at[-1] == at.max()


def test_variance_of_a_box_where_the_correlation_is_a_gaussian():
    """xi = exp(-r^2 / 2 s^2) separates into one closed form for each side."""
    s, sides = 3.0, (2.0, 5.0, 30.0)

    def side(a):
        x = a / s
        return 2 / x**2 * (x * math.sqrt(math.pi / 2) * math.erf(x / math.sqrt(2)) + math.exp(-(x**2) / 2) - 1)

    found = cosmic_variance.box_variance(sides, lambda r: np.exp(-((r / s) ** 2) / 2))
    assert found == pytest.approx(math.prod(map(side, sides)), rel=1e-4)


def test_variance_falls_with_area_and_as_the_root_of_depth():
    by_area = np.array([cosmic_variance.dark_matter(Z, 0.1, (side, side)) for side in (0.05, 0.2, 0.5, 1.4, 5.0)])
    assert (np.diff(by_area, axis=0) < 0).all()
    thick, thin = cosmic_variance.dark_matter(Z, 0.4, (1.4, 1.4)), cosmic_variance.dark_matter(Z, 0.1, (1.4, 1.4))
    assert abs(thin / thick / 2 - 1).max() < 0.08, "independent slices: sigma goes as dz^-1/2, as the recipe has it"
    narrow, square = (cosmic_variance.dark_matter(Z, 0.2, sides) for sides in ((0.2, 5.0), (1.0, 1.0)))
    assert (narrow < square).all(), "a long strip averages over more structure than a square of the same area"


def test_variance_of_a_sample_is_bias_times_matter():
    edges = np.linspace(0, 3, 7)
    found = cosmic_variance.galaxies(np.array([0.6, 0.9, 2.6]), np.array([9.25, 11.25, 10.25]), edges, 1.96)
    matter = cosmic_variance.dark_matter(edges[:-1] + 0.25, 0.5, (1.4, 1.4))
    assert found[[0, 2, 3, 4]] == pytest.approx(matter[[0, 2, 3, 4]]), "no galaxy, no bias"
    assert found[1] == pytest.approx(matter[1] * (cosmic_variance.bias(9.25, 0.6) + cosmic_variance.bias(11.25, 0.9)) / 2)


def test_scatter_of_the_mean_redshift_is_that_of_simulated_fields():
    rng = np.random.default_rng(1)
    middle = np.linspace(0.05, 2.95, 30)
    n, sigma = np.exp(-(((middle - 0.8) / 0.5) ** 2)), np.linspace(0.1, 0.03, 30)
    fields = n * (1 + sigma * rng.standard_normal((40_000, 30)))
    means = (fields * middle).sum(1) / fields.sum(1)
    assert cosmic_variance.of_mean(n, middle, sigma) == pytest.approx(means.std(), rel=0.02)
    assert cosmic_variance.of_mean(np.stack([n, 7 * n]), middle, sigma) == pytest.approx([means.std()] * 2, rel=0.02)
