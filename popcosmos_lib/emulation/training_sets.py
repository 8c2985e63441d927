"""Galaxies from which emulators learn. Introduced in notebook 02."""

import torch

from popcosmos_lib.galaxies import parameters, priors, universe

__all__ = ["draw"]


def draw(n: int, generator: torch.Generator) -> torch.Tensor:
    """Training draws: half like the literature universe, a quarter uniform in the bounds, a quarter in between.

    The last quarter is the library of the Prospector-like prior, where the fits of later notebooks begin. In the uniform quarter dust2 is
    uniform in its square root, as in the training set of the public networks.

    Parameters
    ----------
    n : int
        Number of draws.
    generator : torch.Generator
        Its device is that of the draws.

    Returns
    -------
    Tensor of shape (n, 16)
        SPS parameters, float32, in no particular order.
    """
    quarter = n // 4
    uniform = priors.Broad().sample(quarter, generator)
    dust2, top = parameters.INDEX["dust2"], float(parameters.BOUNDS[parameters.INDEX["dust2"], 1])
    uniform[:, dust2] = uniform[:, dust2] ** 2 / top
    return torch.cat([universe.sample(n - 2 * quarter, generator), uniform, priors.Prospector().library(quarter, generator)])
