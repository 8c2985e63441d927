"""Summary statistics of a catalogue's photometry, and the loss that compares them with a mock's.

Thorp+25 sect. 3.5: 26 asinh magnitudes, 11 colours of adjacent broad bands and 13 of adjacent narrow and intermediate bands; of these 50
features the means, standard deviations, correlations and 19 percentiles; the loss is the mean squared difference of the 2275 numbers. The
paper does not say in what units. Here every feature is first standardised by the catalogue, so that a mean, a standard deviation or a
percentile counts in units of the catalogue's own spread, comparable with a correlation, and no band outweighs another.

References
----------
Thorp et al. (2025), arXiv:2506.12122 sect. 3.5.
"""

import re

import torch

from popcosmos_lib.synthesis.filters import SHORT

__all__ = ["PERCENTILES", "Summaries", "features", "summary"]

PERCENTILES = torch.arange(5, 100, 5) / 100
_NARROW = sorted((i for i, band in enumerate(SHORT) if re.match("[IN][AB]", band)), key=lambda i: int(SHORT[i][2:]))  # by wavelength
_BROAD = [i for i in range(len(SHORT)) if i not in _NARROW]
_PAIRS = torch.tensor([pair for chain in (_BROAD, _NARROW) for pair in zip(chain, chain[1:], strict=False)])


def features(magnitude):
    """Magnitudes (n, 26) and the 24 colours of neighbours in wavelength, broad bands and narrower ones apart: (n, 50) [mag]."""
    blue, red = _PAIRS.to(magnitude.device).T
    return torch.cat([magnitude, magnitude[:, blue] - magnitude[:, red]], -1)


def summary(x):
    """Means, standard deviations, correlations and percentiles.

    Parameters
    ----------
    x : Tensor of shape (n, k)
        Features; n > 1.

    Returns
    -------
    Tensor of shape (2 k + k (k - 1) / 2 + 19 k,)
        2275 for the 50 features; differentiable.
    """
    mean, sd = x.mean(0), x.std(0)
    scaled = (x - mean) / sd.clamp_min(1e-6)
    correlation = scaled.T @ scaled / (len(x) - 1)
    above = torch.triu_indices(x.shape[-1], x.shape[-1], offset=1, device=x.device)
    return torch.cat([mean, sd, correlation[above[0], above[1]], x.quantile(PERCENTILES.to(x), dim=0).flatten()])


class Summaries:
    """Mean squared difference of the summaries of a mock and of a catalogue.

    Parameters
    ----------
    magnitude : Tensor of shape (n, 26)
        asinh magnitudes of the catalogue, finite.
    scale : tuple of two Tensors of shape (50,), optional
        Shift and unit of the features; by default mean and standard deviation of the catalogue itself.
    """

    def __init__(self, magnitude, scale=None):
        raw = features(magnitude)
        self.target, self.scale = magnitude, scale or (raw.mean(0), raw.std(0))
        self.wanted = summary(self._standard(magnitude))

    def _standard(self, magnitude):
        return (features(magnitude) - self.scale[0]) / self.scale[1]

    def against(self, magnitude):
        """The same loss for other galaxies, such as held-out ones, in the same units."""
        return Summaries(magnitude, self.scale)

    def parts(self, magnitude, generator=None):
        """Zero and the loss: broad bands and narrow ones share no colour, so only all terms together can place every band."""
        loss = ((summary(self._standard(magnitude)) - self.wanted) ** 2).mean()
        return torch.zeros_like(loss), loss

    def __call__(self, magnitude, generator=None):
        """The loss of a mock, a Tensor of shape (), from asinh magnitudes (m, 26); nothing about it is random, whatever the generator."""
        return self.parts(magnitude)[1]
