"""Random streams, one per galaxy, so that the draws of a galaxy do not depend on the others in its batch. Introduced in notebook 07."""

import hashlib

import torch

__all__ = ["Streams", "seeds"]


def seeds(seed, ids):
    """One seed for each galaxy, from its identifier."""
    return [int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big") for name in ids]


class Streams:
    """One random stream for each galaxy.

    Parameters
    ----------
    seeds : sequence of int
    device : str
        Device of the results. Numbers are drawn on the CPU, so that all devices see the same.
    """

    def __init__(self, seeds, device="cpu"):
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.device = device

    def normal(self, n, d):
        """Unit-normal numbers of shape (g, n, d) for the g streams."""
        return torch.stack([torch.randn(n, d, generator=g) for g in self.generators]).to(self.device)

    def uniform(self, n):
        """Uniform numbers between 0 and 1, of shape (g, n), for the g streams."""
        return torch.stack([torch.rand(n, generator=g) for g in self.generators]).to(self.device)

    def of(self, rows):
        """The streams of some galaxies, in their present state."""
        part = Streams([], self.device)
        part.generators = [self.generators[i] for i in rows]
        return part
