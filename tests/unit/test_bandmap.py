"""Other surveys in the places of the 26 bands."""

import torch
from toy import observed

from popcosmos_lib.catalog import columns
from popcosmos_lib.emulation import emulator
from popcosmos_lib.fitting import inference
from popcosmos_lib.fitting.bandmap import BandMap
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.survey import likelihood
from popcosmos_lib.synthesis import filters, sps


def test_bands_of_another_survey_are_synthesised_in_their_places():
    theta = observed(6)[0]
    bands = BandMap({"g": "sdss_g0", "Ks": "vista_vircam_Ks"})
    magnitude = bands.magnitudes(theta)
    places = [filters.SHORT.index("g"), filters.SHORT.index("Ks")]
    assert torch.allclose(magnitude[:, places], sps.load(["sdss_g0", "vista_vircam_Ks"]).magnitudes(theta), atol=1e-4)
    assert magnitude.shape == (6, 26) and magnitude.isfinite().all(), "an empty place needs a number, though nothing is compared there"
    heavier = theta.clone()
    heavier[:, parameters.INDEX["log10M_formed"]] += 0.4
    change = likelihood.photometry(bands, heavier) - likelihood.photometry(bands, theta)
    assert torch.allclose(change[:, places], torch.tensor(-1.0), atol=1e-3), "light follows the mass"


def test_a_shipped_emulator_does_what_the_synthesis_does():
    theta = observed(200)[0]
    engine = emulator.having(columns.KIDS_CURVES.values())
    fast, slow = (BandMap(columns.KIDS_CURVES, one).to("cpu").magnitudes(theta) for one in (engine, None))
    bright = slow < 27
    assert float((fast - slow)[bright].abs().median()) < 0.002 and float((fast - slow)[bright].abs().quantile(0.99)) < 0.05
    assert torch.equal(fast == 30.0, slow == 30.0), "the same places are empty"
    assert emulator.having(["decam_g"]) is None


def test_they_move_to_a_device():
    """The meta device stands for a GPU: fits go where ``_device`` says that the emulator is."""
    bands = BandMap({"g": "sdss_g0"})
    assert inference._device(bands).type == "cpu"
    assert bands.to("meta") is bands and inference._device(bands).type == "meta"
