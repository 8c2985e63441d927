"""The real samples, where their files are."""

import pytest
import torch

from popcosmos_lib.artefacts import data
from popcosmos_lib.catalog import real_galaxies
from popcosmos_lib.synthesis import filters


@pytest.mark.parametrize("name, rows, bands", [("cosmos", 50, 26), ("distant", 2562, 26), ("threedhst", 193, 23), ("kids", 4950, 9)])
def test_real_samples(name, rows, bands):
    try:
        path = data.shared(real_galaxies.FILES[name])
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    sample = getattr(real_galaxies, name)(path)
    assert len(sample.id) == len(set(sample.id)) == rows
    seen = sample.flux.isfinite().any(0)
    assert int(seen.sum()) == bands and torch.equal(sample.flux.isfinite(), sample.flux_err.isfinite())
    brightness = filters.magnitude_from_flux(sample.flux[:, filters.SHORT.index("r")])
    assert 17 < float(brightness.nanmedian()) < 26, "in microjanskys"
    part = sample.of(torch.tensor([3, 1]))
    assert part.id == [sample.id[3], sample.id[1]] and torch.equal(part.flux[0].nan_to_num(), sample.flux[3].nan_to_num())
