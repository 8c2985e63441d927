"""Bands of another survey in the places of the 26 COSMOS2020 bands, so that ``inference.fit`` can use its photometry.

Each band takes the place of the nearest COSMOS2020 band, but its light is computed through its own transmission curve; the other places
stay empty. The proposal, trained on COSMOS2020 bands, is then slightly off, which the importance weights correct. Used by
``catalog.real_galaxies``, ``catalog.batch`` and ``catalog.dry_run``.
"""

from popcosmos_lib.galaxies import parameters
from popcosmos_lib.synthesis import filters, sps

__all__ = ["BandMap"]

_EMPTY = 30.0  # magnitude in the places where nothing is compared


class BandMap:
    """Photometry of another survey, in the form of an emulator of the 26 bands.

    Parameters
    ----------
    curves : dict of str to str
        Short name of a COSMOS2020 band -> transmission curve, as for ``filters.load``.
    emulator : emulator.Emulator, optional
        Emulator that has all these curves, see ``emulator.having``; direct synthesis by default.
    """

    error = None

    def __init__(self, curves, emulator=None):
        self.places = [filters.SHORT.index(band) for band in curves]
        self.emulator = emulator or sps.load(list(curves.values()))
        self.columns = [self.emulator.bands.index(curve) for curve in curves.values()]

    def to(self, device):
        """The same on another device."""
        self.emulator.to(device)
        return self

    def magnitudes(self, theta):
        """Magnitudes (n, 26) of galaxies (n, 16) of given parameters; not of this survey where it has no band."""
        lower, upper = (edge.to(theta) for edge in parameters.BOUNDS.T)
        filled = theta.new_full((len(theta), len(filters.SHORT)), _EMPTY)
        filled[:, self.places] = self.emulator.magnitudes(theta.clamp(lower, upper))[:, self.columns].to(theta)
        return filled
