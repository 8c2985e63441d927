"""The literature universe: bounds, the relations it is made of, and the sky it predicts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from popcosmos_lib.galaxies import cosmology, parameters, relations, universe


@pytest.fixture(scope="module")
def theta():
    return universe.sample(60_000, torch.Generator().manual_seed(11))


def test_draws_are_inside_the_bounds_and_repeatable(theta):
    assert theta.dtype == torch.float32 and theta.shape == (60_000, 16)
    lower, upper = parameters.BOUNDS.float().T
    assert ((theta >= lower) & (theta <= upper)).all()
    assert theta[:, 8].min() > 0 and theta[:, 15].min() > 0, "interior: latents are finite"
    assert parameters.to_latent(theta).abs()[:, 1:].max() < 5
    again = universe.sample(60_000, torch.Generator().manual_seed(11))
    assert torch.equal(theta, again)


@pytest.mark.parametrize(("log_mass", "z"), [(10.0, 0.2), (10.79, 0.2), (9.0, 1.6), (10.0, 3.0)])
def test_mass_function_is_the_double_schechter_of_leja20(log_mass, z):
    c = {0.2: (-2.44, -2.89, 10.79), 1.6: (-3.08, -3.29, 10.88), 3.0: (-4.14, -3.51, 10.84)}[z]
    x = log_mass - c[2]
    by_hand = np.log10(np.log(10) * (10 ** (c[0] + 0.72 * x) + 10 ** (c[1] - 0.48 * x)) * np.exp(-(10**x)))
    value = universe.mass_function(torch.tensor(log_mass, dtype=torch.float64), torch.tensor(z, dtype=torch.float64))
    assert float(value) == pytest.approx(by_hand, abs=1e-9)


def test_mass_function_falls_beyond_z_3_as_jwst_sees():
    m = torch.tensor([8.25, 9.25, 10.25])
    for z, weibel in ((4.0, (-1.97, -2.74, -3.68)), (5.0, (-2.00, -2.89, -4.04)), (6.0, (-2.24, -3.26, -4.44))):
        assert (universe.mass_function(m, torch.tensor(z)) - torch.tensor(weibel)).abs().max() < 0.25, f"Weibel+24 at z = {z}"


def test_drawn_masses_follow_the_mass_function(theta):
    log_mass = universe.surviving_mass(theta)
    z_low, z_high, edges = 0.9, 1.1, torch.arange(8.6, 11.3, 0.3)
    chosen = (theta[:, -1] > z_low) & (theta[:, -1] < z_high)
    counts = torch.histogram(log_mass[chosen], edges).hist
    z = torch.linspace(z_low, z_high, 21, dtype=torch.float64)
    volume = torch.trapezoid(cosmology.comoving_volume(z), z) / (4 * np.pi) * universe.SQUARE_DEGREE
    fine = torch.linspace(0, 1, 31, dtype=torch.float64)[:-1] + 1 / 60
    middle = edges[:-1, None] + 0.3 * fine
    density = (10 ** universe.mass_function(middle, torch.full_like(middle, 1.0))).mean(1) * 0.3
    expected = density * volume * len(theta) / universe.number_density()
    assert ((counts - expected).abs() < 4 * expected.sqrt() + 0.05 * expected).all()


def test_recent_star_formation_matches_the_drawn_sequence(theta):
    z, log_mass = theta[:, -1], universe.surviving_mass(theta)
    offset = parameters.log_sfr(theta) - universe.star_forming_sequence(log_mass, z)
    forming = parameters.log_ssfr(theta) > -10.7
    ordinary = forming & (z > 0.5) & (z < 4)
    assert abs(offset[ordinary].median()) < 0.03 and 0.25 < offset[ordinary].std() < 0.35, "0.3 dex about the ridge"


def test_quiescent_fraction_is_recovered(theta):
    z, log_mass = theta[:, -1], universe.surviving_mass(theta)
    quiescent = parameters.log_ssfr(theta) < -10.95
    for low, high in ((9, 10), (10, 10.6), (10.6, 11.4)):
        chosen = (log_mass > low) & (log_mass < high) & (z > 0.5) & (z < 1.5)
        expected = universe.quiescent_fraction(log_mass[chosen], z[chosen]).mean()
        assert abs(quiescent[chosen].float().mean() - expected) < 4 * (expected / chosen.sum()) ** 0.5 + 0.02


def test_star_formation_rises_at_high_redshift_and_falls_at_low(theta):
    fade = theta[:, parameters.INDEX["log10SFR_ratio3"] : parameters.INDEX["log10SFR_ratio5"] + 1].sum(-1)
    z, massive = theta[:, -1], theta[:, 0] > 10
    assert fade[(z < 0.8) & massive].median() < 0 < fade[z > 3].median()


def test_hermite_limit_returns_the_published_values():
    z = torch.tensor([1.0, 2.0, 4.0, 6.0], dtype=torch.float64)
    assert torch.allclose(universe.mass_completeness(z), torch.tensor([8.68, 9.05, 9.36, 9.70], dtype=torch.float64), atol=0.006)
    knots = torch.tensor([0.0, 0.7948, 6.0], dtype=torch.float64)
    assert torch.allclose(universe.mass_mask(knots), torch.tensor([9.7108, 11.6535, 11.3251], dtype=torch.float64), atol=1e-6)


def test_gas_relations_have_their_published_limits():
    heavy, light = torch.tensor(12.0), torch.tensor(8.0)
    assert abs(float(universe.gas_metallicity(heavy, torch.tensor(0.0))) - 0.089) < 1e-3, "saturates at 12 + log(O/H) = 8.779"
    assert universe.gas_metallicity(light, torch.tensor(1.0)) < universe.gas_metallicity(light, torch.tensor(-1.0)), "FMR: SFR dilutes"
    shifted = universe.gas_metallicity(light + 0.56, torch.tensor(1.0))
    assert torch.allclose(shifted, universe.gas_metallicity(light, torch.tensor(0.0))), (
        "Curti+20: only M - 0.56 log SFR matters (m1 of table 6)"
    )
    mean, sigma = universe.stellar_metallicity(torch.tensor([9.0, 11.0]))
    assert torch.allclose(mean, torch.tensor([-0.60, 0.09]), atol=0.06), "Gallazzi+05 table 2"
    assert (sigma > 0).all()
    assert universe.ionisation(torch.tensor(-8.5)) > universe.ionisation(torch.tensor(-10.0))


def test_agn_are_bimodal_about_three_per_cent(theta):
    ln_f = theta[:, parameters.INDEX["lnfAGN"]]
    z, log_mass = theta[:, -1], universe.surviving_mass(theta)
    bright = (ln_f > np.log(0.03)).float().mean()
    assert abs(bright - universe.agn_fraction(log_mass, z).mean()) < 0.05
    dip = ((ln_f > -4.5) & (ln_f < -3.8)).float().mean()
    assert dip < 0.5 * ((ln_f > -2.5) & (ln_f < -1.8)).float().mean()


def test_surviving_fraction_is_plausible():
    age = torch.tensor([0.1, 1.0, 10.0])
    fraction = universe.surviving_fraction(age)
    assert (fraction.diff() < 0).all() and 0.5 < fraction[-1] < fraction[0] < 0.9


def test_a_fitted_limit_returns_the_spline_it_was_made_from():
    z = np.linspace(0.05, 6, 60)
    made = universe.mass_completeness(torch.as_tensor(z)).numpy() + 0.3 * np.sin(z)
    fit = relations.fit_limit(z, made)
    again = universe.hermite_limit(torch.as_tensor(z), **fit).numpy()
    assert np.abs(again - made).max() < 0.12, "seven numbers follow a smooth limit"
    exact = relations.fit_limit(z, universe.mass_completeness(torch.as_tensor(z)).numpy())
    assert np.allclose([exact["knot"], *exact["values"]], [0.7404, 6.5184, 8.5429, 9.6966], atol=0.02)


def test_modal_mass_marks_where_counts_are_lost():
    generator = torch.Generator().manual_seed(4)
    z = 5 * torch.rand(200_000, generator=generator)
    log_mass = 7 - torch.rand(200_000, generator=generator).log() / np.log(10) / 0.6  # counts fall as 10^(-0.6 m) above 7
    seen = torch.rand(200_000, generator=generator) < torch.sigmoid((log_mass - 8.5 - 0.2 * z) / 0.08)
    modes = relations.modal_mass(log_mass[seen], z[seen], 8)
    # the mode of 10^(-0.6 m) sigmoid((m - m50) / 0.08) lies 0.17 above m50; up to 0.15 more where m50 changes inside a redshift bin
    above = modes[:, 1] - 8.5 - 0.2 * modes[:, 0]
    assert above.min() > 0.12 and above.max() < 0.32
    assert (modes[:, 2] > modes[:, 1]).all()


def test_mass_function_of_the_universe_is_measured_back(theta):
    area = len(theta) / universe.number_density()
    measured = relations.mass_function(universe.surviving_mass(theta), theta[:, -1], (0.8, 1.2), np.arange(9, 11.1, 0.25), area)
    expected = universe.mass_function(torch.tensor(measured[:, 0]), torch.ones(len(measured), dtype=torch.float64)).numpy()
    assert (np.abs(measured[:, 1] - expected) < 0.06 + 2.5 / np.log(10) / np.sqrt(measured[:, 2])).all()


def test_published_relations_are_read_and_missing_ones_refused():
    gallazzi = relations.published("stellar_metallicity")
    mean, sigma = universe.stellar_metallicity(torch.tensor(gallazzi[:, 0]))
    assert np.abs(mean.numpy() - gallazzi[:, 1]).max() < 0.08, "the tanh fit of the mock runs through Gallazzi+05"
    with pytest.raises(ValueError, match="no published"):
        relations.published("quiescent_fraction", 7.0)
    fraction = relations.published("quiescent_fraction", 1.25)
    ours = universe.quiescent_fraction(torch.tensor(fraction[:, 0]), torch.full((len(fraction),), 1.25, dtype=torch.float64))
    assert np.abs(ours.numpy() - fraction[:, 1]).max() < 0.06
    ridge = relations.published("star_forming_sequence", 1.0)
    ridge = ridge[ridge[:, 0] > 9.4]
    ours = universe.star_forming_sequence(torch.tensor(ridge[:, 0]), torch.ones(len(ridge), dtype=torch.float64))
    assert np.abs(ours.numpy() - ridge[:, 1]).max() < 0.12


def test_quiescent_fractions_are_the_published_ones():
    """All points of Koprowski et al. (2026) that are kept: the logistic fit has an rms of 0.03 (its docstring)."""
    misses = []
    lines = Path(relations.__file__).with_name("relations.csv").read_text().splitlines()
    for z in sorted({float(line.split(",")[1]) for line in lines if line.startswith("quiescent_fraction,")}):
        mass, fraction = torch.tensor(relations.published("quiescent_fraction", z)[:, :2]).T
        misses.append(universe.quiescent_fraction(mass, torch.full_like(mass, z)) - fraction)
    miss = torch.cat(misses)
    assert len(miss) == 18 and miss.square().mean().sqrt() < 0.035 and abs(miss.mean()) < 0.01, miss
