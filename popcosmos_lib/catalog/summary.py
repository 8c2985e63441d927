"""A table of posteriors at a glance: how many galaxies have which flag, and the columns that the summary page shows.

Used by ``batch`` and ``figures.posteriors``.
"""

import pyarrow.parquet
import torch

from popcosmos_lib.catalog import schema
from popcosmos_lib.fitting import goodness_of_fit
from popcosmos_lib.fitting.exact_engine import ESS, KHAT

__all__ = ["LIMITS", "flagged", "read", "rows"]

LIMITS = {"ess": ESS, "khat": KHAT, "p": goodness_of_fit.UNLIKELY}  # beyond which a galaxy is flagged
_COLUMNS = ["z_q16", "z_q50", "z_q84", "z_spec", "log10M_remain_q50", "ess", "khat", *goodness_of_fit.TESTS, "flags"]
_ROWS = 2_000_000  # galaxies that a page is drawn from, of larger catalogues evenly spaced row groups


def rows(path):
    """Number of galaxies in a table of posteriors."""
    return pyarrow.parquet.read_metadata(path).num_rows


def flagged(path):
    """Number of galaxies that have each bit of ``schema.FLAGS``, as a dict."""
    flags = pyarrow.parquet.read_table(path, columns=["flags"])["flags"].to_numpy()
    return {bit: int((flags & bit != 0).sum()) for bit in schema.FLAGS}


def read(path):
    """The columns that a page shows.

    Parameters
    ----------
    path : Path
        Parquet file as ``batch.run`` writes it.

    Returns
    -------
    dict of str to ndarray of shape (n,)
        Of at most about two million galaxies: median redshift and its 68 % interval, spectroscopic redshift, median surviving mass
        [dex Msun], ``ess``, ``khat``, ``flags``, and ``p``, the p-value of all tests of the fit together (``goodness_of_fit.combined``).
    """
    with pyarrow.parquet.ParquetFile(path) as file:
        step = -(-file.metadata.num_rows // _ROWS)
        table = file.read_row_groups(range(0, file.num_row_groups, max(1, step)), columns=_COLUMNS)
    found = {name: table[name].to_numpy() for name in _COLUMNS}
    tests = [torch.tensor(found.pop(name)) for name in goodness_of_fit.TESTS]
    return found | {"p": goodness_of_fit.combined(*tests).numpy()}
