"""Other surveys in the places of the 26 bands."""

import torch
from toy import observed

from popcosmos_lib import columns, emulator, filters, inference, likelihood, parameters, sps
from popcosmos_lib.slots import Slots


def test_bands_of_another_survey_are_synthesised_in_their_places():
    theta = observed(6)[0]
    slots = Slots({"g": "sdss_g0", "Ks": "vista_vircam_Ks"})
    magnitude = slots.magnitudes(theta)
    places = [filters.SHORT.index("g"), filters.SHORT.index("Ks")]
    assert torch.allclose(magnitude[:, places], sps.load(["sdss_g0", "vista_vircam_Ks"]).magnitudes(theta), atol=1e-4)
    assert magnitude.shape == (6, 26) and magnitude.isfinite().all(), "an empty place needs a number, though nothing is compared there"
    heavier = theta.clone()
    heavier[:, parameters.INDEX["log10M_formed"]] += 0.4
    change = likelihood.photometry(slots, heavier) - likelihood.photometry(slots, theta)
    assert torch.allclose(change[:, places], torch.tensor(-1.0), atol=1e-3), "light follows the mass"


def test_a_shipped_emulator_does_what_the_synthesis_does():
    theta = observed(200)[0]
    engine = emulator.having(columns.KIDS_CURVES.values())
    fast, slow = (Slots(columns.KIDS_CURVES, one).to("cpu").magnitudes(theta) for one in (engine, None))
    bright = slow < 27
    assert float((fast - slow)[bright].abs().median()) < 0.002 and float((fast - slow)[bright].abs().quantile(0.99)) < 0.05
    assert torch.equal(fast == 30.0, slow == 30.0), "the same places are empty"
    assert emulator.having(["decam_g"]) is None


def test_they_move_to_a_device():
    """The meta device stands for a GPU: fits go where ``_device`` says that the emulator is."""
    slots = Slots({"g": "sdss_g0"})
    assert inference._device(slots).type == "cpu"
    assert slots.to("meta") is slots and inference._device(slots).type == "meta"
