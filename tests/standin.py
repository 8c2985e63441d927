"""A quick stand-in for ``inference.fit``: the same form of result, from a generator of each galaxy's own, and rows that make it fail."""

import os
import time
import zlib
from types import SimpleNamespace

import numpy as np
import torch
from astropy.table import Table

from popcosmos_lib.catalog import batch
from popcosmos_lib.fitting import inference
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.synthesis import filters

__all__ = ["POISON", "fit", "mock", "work"]

POISON = 7.25  # µJy in band r: a galaxy with it raises


def fit(flux, flux_err, prior="pop-cosmos", *, engine="exact", profile="published", n_draws=64, seed=0, id=None, emulator=None):
    """Draws around the middle of the bounds; ``STANDIN_SLEEP`` seconds a call, and a line in ``STANDIN_LOG`` for each galaxy."""
    time.sleep(float(os.environ.get("STANDIN_SLEEP", 0)))
    if (flux[:, 2] == POISON).any():
        raise ArithmeticError("the chain has left the sky")
    lower, upper = parameters.BOUNDS.float().T
    spread = []
    for galaxy in id:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {galaxy}".encode()))
        spread.append(torch.randn(n_draws, 16, generator=generator))
    samples = (lower + upper) / 2 + 0.02 * (upper - lower) * torch.stack(spread)
    weights = torch.full(samples.shape[:2], 1 / n_draws)
    table = Table({"id": np.asarray(id)})
    derived = {name: samples[..., i] for i, name in enumerate(inference.DERIVED)}
    for name, values in {**dict(zip(parameters.NAMES, samples.permute(2, 0, 1), strict=True)), **derived}.items():
        for suffix, share in inference.QUANTILES.items():
            table[f"{name}_{suffix}"] = values.quantile(share, dim=1).numpy()
    for name in ("ess", "khat", "rhat", "chi2", "p_fit", "p_band", "p_rare"):
        table[name] = flux[:, 2].numpy()
    table["engine"], table["bands"] = np.full(len(flux), engine), flux.isfinite().sum(1).numpy()
    table["flags"] = np.where(flux[:, 2].numpy() > 3, 32, 0)
    if "STANDIN_LOG" in os.environ:
        with open(os.environ["STANDIN_LOG"], "a") as file:
            file.write("".join(f"{galaxy}\n" for galaxy in id))
    return SimpleNamespace(samples=samples, weights=weights, summary=table)


def mock(n, seed=1):
    """A table with the names of the built-in mock, ids from 1001, r below ``POISON``."""
    rng = np.random.default_rng(seed)
    table = Table({"id": 1001 + np.arange(n), "z_spec": rng.uniform(0, 3, n)})
    for band in filters.SHORT:
        table[f"flux_{band}"] = rng.uniform(0.5, 5.0, n).astype("f4")
        table[f"flux_err_{band}"] = np.full(n, 0.05, "f4")
    return table


def work(path, out, chunk):
    """A whole run with this stand-in, for a process that may be killed."""
    batch.run(path, out, settings=batch.Settings(draws=3), chunk=chunk, fit=fit)
