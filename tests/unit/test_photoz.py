"""Redshift posteriors as a qp ensemble: the layout that qp 1.1 writes, and qp itself where it is installed."""

import h5py
import numpy as np
import pytest
import torch

from popcosmos_lib.fitting import photoz


@pytest.fixture
def written(tmp_path):
    g = torch.Generator().manual_seed(1)
    z = (1.2 + 0.05 * torch.randn(4, 500, generator=g)).clamp(0, 6)
    z[2] = torch.nan
    weight = torch.rand(4, 500, generator=g)
    photoz.write_qp(tmp_path / "z.hdf5", z, weight / weight.sum(1, keepdim=True), id=np.arange(4))
    return tmp_path / "z.hdf5", z, weight / weight.sum(1, keepdim=True)


def test_histograms_are_normalised_and_centred(written):
    path, z, weight = written
    with h5py.File(path) as file:
        assert file["meta/pdf_name"][0] == b"hist" and file["meta/bins"].shape == (1, 601)
        edges, density = file["meta/bins"][0], file["data/pdfs"][:]
        assert list(file["ancil/id"]) == [0, 1, 3], "a galaxy without draws has no row"
    assert density.shape == (3, 600) and np.allclose((density * np.diff(edges)).sum(1), 1)
    mean = (density * np.diff(edges) * (edges[1:] + edges[:-1]) / 2).sum(1)
    assert np.allclose(mean, (z * weight).sum(1)[[0, 1, 3]], atol=0.006)


def test_qp_reads_it(written):
    qp = pytest.importorskip("qp", reason="pip install qp-prob")
    ensemble = qp.read(str(written[0]))
    median = np.ravel(ensemble.ppf(0.5))
    assert ensemble.npdf == 3 and np.allclose(median, written[1][[0, 1, 3]].median(1).values, atol=0.01)
