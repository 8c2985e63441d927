"""Other surveys in the places of the 26 bands; the real samples, where their files are."""

import pytest
import torch
from toy import observed

from popcosmos_lib import data, filters, likelihood, parameters, samples, sps
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


@pytest.mark.parametrize("name, rows, bands", [("cosmos", 50, 26), ("distant", 2562, 26), ("threedhst", 193, 23), ("kids", 4950, 9)])
def test_real_samples(name, rows, bands):
    try:
        path = data.shared(samples.FILES[name])
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    sample = getattr(samples, name)(path)
    assert len(sample.id) == len(set(sample.id)) == rows
    seen = sample.flux.isfinite().any(0)
    assert int(seen.sum()) == bands and torch.equal(sample.flux.isfinite(), sample.flux_err.isfinite())
    brightness = filters.magnitude_from_flux(sample.flux[:, filters.SHORT.index("r")])
    assert 17 < float(brightness.nanmedian()) < 26, "in microjanskys"
    part = sample.of(torch.tensor([3, 1]))
    assert part.id == [sample.id[3], sample.id[1]] and torch.equal(part.flux[0].nan_to_num(), sample.flux[3].nan_to_num())
