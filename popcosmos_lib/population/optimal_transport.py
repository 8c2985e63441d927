"""Optimal-transport distances between two samples of photometry, differentiable in the first.

The features are the 26 asinh magnitudes and the 25 differences between neighbours in band order. ``Transport``, the loss of a calibration,
transports the two separately and adds the distances (Alsing+24 sect. 4); scores take the 51 as one cloud.
Features are cut at 5 standard deviations, so that the few wild values of Student-t noise do not decide the distance.
Introduced in notebook 04.

References
----------
Alsing et al. (2024), arXiv:2402.00935 sect. 4 (Sinkhorn divergence); Bonneel et al. (2015), doi:10.1007/s10851-014-0506-3
(sliced Wasserstein distance).
"""

import torch

__all__ = ["DISTANCES", "Features", "Transport", "sinkhorn", "sliced_wasserstein"]

_CUT = 5.0  # standard deviations
_MATRIX = 2048  # galaxies of either cloud in a Sinkhorn divergence, whose cost is a matrix
_RICHER = 4  # galaxies of the catalogue for each one of the mock in a sliced distance


class Features:
    """Magnitudes and colours, standardised by the mean and standard deviation of a reference cloud.

    Parameters
    ----------
    reference : Tensor of shape (n, bands)
        asinh magnitudes of the data.

    Raises
    ------
    ValueError
        If the reference holds missing values: a distance between clouds has no meaning for them.
    """

    def __init__(self, reference):
        if not reference.isfinite().all():
            raise ValueError("the reference photometry must be finite in every band; drop galaxies with missing bands")
        raw = self._raw(reference)
        self.mean, self.scale = raw.mean(0), raw.std(0)

    @staticmethod
    def _raw(magnitude):
        return torch.cat([magnitude, magnitude[..., :-1] - magnitude[..., 1:]], -1)

    def __call__(self, magnitude):
        """Features, shape (n, 2 bands - 1), of asinh magnitudes of shape (n, bands)."""
        return ((self._raw(magnitude) - self.mean.to(magnitude)) / self.scale.to(magnitude)).clamp(-_CUT, _CUT)


def sliced_wasserstein(x, y, *, generator=None, projections=256):
    """Sliced 2-Wasserstein distance.

    Parameters
    ----------
    x : Tensor of shape (n, features)
        First cloud; the result is differentiable in it.
    y : Tensor of shape (m, features)
        Second cloud; the larger of the two is read at the quantiles of the smaller.
    generator : torch.Generator, optional
        Source of the directions; by default the same ones every time, so that two scores can be compared.
    projections : int
        Number of random directions.

    Returns
    -------
    Tensor of shape ()
        Root mean square, over directions and quantiles, of the difference of sorted projections; in units of the features.

    Raises
    ------
    ValueError
        If the clouds differ in their number of features or one is empty.
    """
    if x.shape[-1] != y.shape[-1] or not len(x) or not len(y):
        raise ValueError(f"two non-empty clouds with the same features are needed; got {tuple(x.shape)} and {tuple(y.shape)}")
    generator = generator or torch.Generator().manual_seed(0)
    direction = torch.randn(x.shape[-1], projections, generator=generator, device=generator.device).to(x)
    direction = direction / direction.norm(dim=0)
    a, b = _at_quantiles(x @ direction, min(len(x), len(y))), _at_quantiles(y.to(x) @ direction, min(len(x), len(y)))
    return ((a - b) ** 2).mean().sqrt()


def sinkhorn(x, y, *, generator=None, blur=0.1):
    """Debiased Sinkhorn divergence with squared Euclidean cost, as a distance.

    Parameters
    ----------
    x, y : Tensors of shape (n, features) and (m, features)
        The two clouds; memory and time grow as n m, so keep both to a few thousand.
    generator : torch.Generator, optional
        Not used (the divergence is deterministic); taken so that both distances are called alike.
    blur : float
        Entropic smoothing, in units of the features.

    Returns
    -------
    Tensor of shape ()
        sqrt of twice the divergence, in units of the features.
    """
    from geomloss import SamplesLoss

    divergence = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=0.6, backend="tensorized")(x, y.to(x))
    return (2 * divergence.clamp_min(1e-12)).sqrt()


class Transport:
    """Distance from a catalogue as a loss: of the magnitudes and of the colours, added (Alsing+24 sect. 4.1).

    Parameters
    ----------
    magnitude : Tensor of shape (n, bands)
        asinh magnitudes of the catalogue, finite.
    distance : {"sliced", "sinkhorn"}
    features : Features, optional
        Standardisation; by default that of the catalogue itself.

    Raises
    ------
    ValueError
        If there is no such distance, or a magnitude is missing.
    """

    def __init__(self, magnitude, distance="sliced", features=None):
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}; got {distance!r}")
        self.target, self.distance = magnitude, distance
        self.features = features or Features(magnitude)
        self.cloud = self.features(magnitude)

    def against(self, magnitude):
        """The same loss for other galaxies, such as held-out ones, in the same units."""
        return Transport(magnitude, self.distance, self.features)

    def parts(self, magnitude, generator=None):
        """Distances of the magnitudes and of the colours of a mock, two Tensors of shape (); arguments as for the call."""
        mock = self.features(magnitude)
        mock = mock[:_MATRIX] if self.distance == "sinkhorn" else mock
        wanted = len(mock) * (1 if self.distance == "sinkhorn" else _RICHER)
        data = self.cloud[:wanted]
        if generator is not None and wanted < len(self.cloud):
            rows = torch.randperm(len(self.cloud), generator=generator, device=generator.device)[:wanted]
            data = self.cloud[rows.to(self.cloud.device)]
        n, measure = magnitude.shape[-1], DISTANCES[self.distance]
        return tuple(measure(mock[:, side], data[:, side], generator=generator) for side in (slice(n), slice(n, None)))

    def __call__(self, magnitude, generator=None):
        """The loss of a mock.

        Parameters
        ----------
        magnitude : Tensor of shape (m, bands)
            asinh magnitudes of the selected mock galaxies; differentiable.
        generator : torch.Generator, optional
            Directions of projection and, where the catalogue is much larger than the mock, which of its galaxies; by default the same
            every time.

        Returns
        -------
        Tensor of shape ()
            In standard deviations of the features.
        """
        return sum(self.parts(magnitude, generator))


def _at_quantiles(projected, n):
    """Sorted columns of (m, k), read at n evenly spaced quantiles."""
    ordered = projected.sort(0).values
    m = len(ordered)
    if m == n:
        return ordered
    position = ((torch.arange(n, dtype=projected.dtype, device=projected.device) + 0.5) * (m / n) - 0.5).clamp(0, m - 1)
    below = position.long().clamp(max=m - 2)
    weight = (position - below)[:, None]
    return ordered[below] * (1 - weight) + ordered[below + 1] * weight


DISTANCES = {"sliced": sliced_wasserstein, "sinkhorn": sinkhorn}
