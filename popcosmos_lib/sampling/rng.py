"""Random numbers of many galaxies, each from a stream of its own: what is drawn for one then does not depend on which others it is with."""

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
        Of what is drawn. It is drawn on the CPU, so that every device sees the same.
    """

    def __init__(self, seeds, device="cpu"):
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.device = device

    def normal(self, n, d):
        """(g, n, d)."""
        return torch.stack([torch.randn(n, d, generator=g) for g in self.generators]).to(self.device)

    def uniform(self, n):
        """(g, n), from 0 to 1."""
        return torch.stack([torch.rand(n, generator=g) for g in self.generators]).to(self.device)

    def of(self, rows):
        """The streams of some galaxies; they go on from where they are."""
        part = Streams([], self.device)
        part.generators = [self.generators[i] for i in rows]
        return part
