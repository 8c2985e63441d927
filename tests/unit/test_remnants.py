"""Mass functions and remnants against closed forms and what is published."""

import numpy as np
import pytest
import torch

from popcosmos_lib.synthesis import remnants


def test_light_costs_more_mass_with_kroupa_than_with_chabrier():
    below = 2 * (0.5**0.7 - 0.1**0.7) / 0.7  # of Kroupa's power laws, in units of the number at 1 Msun: 0.1 to 0.5 Msun
    bright, middle = (1 - 100**-0.3) / 0.3, (0.5**-0.3 - 1) / 0.3
    assert remnants.bright_fraction("kroupa") == pytest.approx(bright / (below + middle + bright), rel=1e-3)
    ratio = remnants.bright_fraction("chabrier") / remnants.bright_fraction("kroupa")
    assert 1.02 < ratio < 1.10, "published conversions are 0.01 to 0.04 dex"


@pytest.mark.parametrize("kind", ["kroupa", "chabrier"])
def test_remnants_gather_with_age(kind):
    fraction = remnants.mass_fraction(torch.tensor([1e6, 1e8, 1e9, 1e10]), kind)
    assert fraction[0] == 0 and (fraction.diff() > 0).all()
    assert 0.12 < fraction[-1] < 0.18


def test_an_unknown_mass_function_is_named():
    with pytest.raises(ValueError, match="salpeter"):
        remnants.bright_fraction("salpeter")


def test_initial_and_final_masses_are_those_of_renzini_and_ciotti():
    """Renzini & Ciotti (1993): white dwarfs of 0.077 M + 0.48 below 8.5 Msun, neutron stars of 1.4, half the mass from 40."""
    initial, final = np.array([1.0, 5.0, 8.0, 20.0, 60.0]), [0.557, 0.865, 1.096, 1.4, 30.0]
    assert remnants.final_mass(initial) == pytest.approx(final), "the initial-final mass relation sets every surviving mass"
    edges = remnants.final_mass(np.array([8.4, 8.6, 39.0, 41.0]))
    assert edges == pytest.approx([1.1268, 1.4, 1.4, 20.5]), "white dwarfs end at 8.5 Msun, black holes begin at 40"
    sun = remnants.final_mass(np.array([1.0]))[0]
    assert 0.51 < sun < 0.60, "white dwarfs of one solar mass are observed at 0.5 to 0.6 Msun"
