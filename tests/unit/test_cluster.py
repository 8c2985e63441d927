"""Tasks on several processes: every one once, the same results as in one process, and a sentence where there is no cluster."""

import os
import sys
import time
from pathlib import Path

import distributed
import numpy as np
import pytest
import standin
from astropy.table import Table

from popcosmos_lib.catalog import batch, cluster

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def threads():
    """The address of a scheduler whose one worker is a thread of this process."""
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as made:
        yield made.scheduler_address


def test_one_process_or_one_task_needs_no_dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert list(cluster.run(abs, [-1, 2, -3])) == [1, 2, 3]
    assert list(cluster.run(abs, [-1], workers=8)) == [1] and list(cluster.run(abs, [], workers=8)) == []


def test_every_task_once_even_if_there_are_many(threads):
    assert sorted(cluster.run(abs, range(-60, 0), scheduler=threads)) == list(range(1, 61))
    assert list(cluster.run(abs, [], scheduler=threads)) == []


def test_workers_that_come_late_get_their_share():
    """Jobs that wait in the queue of a cluster start long after the command."""
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as made:
        results = cluster.run(time.sleep, [0.05] * 80, scheduler=made.scheduler_address)
        next(results)
        assert len(made.scheduler.tasks) <= 5
        made.scale(8)
        made.wait_for_workers(8)
        next(results)
        assert len(made.scheduler.tasks) >= 25, "eight cores are kept busy, not one"
        assert len(list(results)) == 78


def test_workers_keep_the_memory_of_freed_tensors(monkeypatch):
    """Dask would have them return every page, which costs two fifths of the time of a fit."""
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    kept = list(cluster.run(os.getenv, 2 * ["MALLOC_TRIM_THRESHOLD_"], workers=2))
    assert len(kept) == 2 and all(int(size) > 1 << 30 for size in kept)


def reciprocal(x):
    return 1 / x


def test_an_exception_of_a_task_is_raised_here(threads):
    with pytest.raises(ZeroDivisionError):
        list(cluster.run(reciprocal, [1, 2, 0, 3], scheduler=threads))


def test_a_scheduler_that_ends_is_said_in_one_sentence():
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as made:
        results = cluster.run(time.sleep, [0.0, 2.0, 2.0], scheduler=made.scheduler_address)
        next(results)
        made.close()
        with pytest.raises(RuntimeError, match="the same command again"):
            list(results)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tcp://no.such.host.invalid:8786", "nonsense://x"])
def test_no_scheduler_there_is_said_in_one_sentence(monkeypatch, address):
    monkeypatch.setattr(cluster, "_PATIENCE", "1s")
    with pytest.raises(ValueError, match=f"no Dask scheduler answers at '{address}', an address such as tcp://host:8786"):
        list(cluster.run(abs, [1], scheduler=address))


@pytest.mark.parametrize("where", ["workers", "scheduler"])
def test_a_catalogue_on_two_processes_or_a_scheduler_is_that_of_one(tmp_path, monkeypatch, request, where):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))  # of the workers, which import the stand-in
    options = {"workers": 2} if where == "workers" else {"scheduler": request.getfixturevalue("threads")}
    table = standin.mock(40)
    table["flux_r"][11] = standin.POISON
    table.write(tmp_path / "mock.parquet")
    settings = batch.Settings(draws=2)
    one = batch.run(tmp_path / "mock.parquet", tmp_path / "one.parquet", settings=settings, fit=standin.fit)
    many = batch.run(tmp_path / "mock.parquet", tmp_path / "p.parquet", settings=settings, fit=standin.fit, chunk=6, **options)
    assert one == many and (one.rows, one.failed) == (40, 1), "neither chunks nor workers change a result"
    for name in ("{}.parquet", "{}_draws.parquet"):
        one, many = (Table.read(tmp_path / name.format(stem)) for stem in ("one", "p"))
        assert len(one) == len(many)
        for column in one.colnames:
            np.testing.assert_array_equal(np.asarray(one[column]), np.asarray(many[column]), err_msg=column)
