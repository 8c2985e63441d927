"""Tasks on the cores of this machine or on a cluster, through Dask.

Where there is SLURM, start workers with dask-jobqueue (``pip install popcosmos[cluster]``) and give the address of their scheduler;
catalogue and output must lie on a file system that all of them see:

    >>> from dask_jobqueue import SLURMCluster
    >>> kept = ["export MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_MMAP_THRESHOLD_=1073741824"]  # see keep_memory
    >>> cluster = SLURMCluster(cores=16, processes=16, memory="64GB", walltime="08:00:00", queue="...", job_script_prologue=kept)
    >>> cluster.scale(jobs=20)              # or cluster.adapt(maximum_jobs=20)
    >>> print(cluster.scheduler_address)    # tcp://...:8786, for --scheduler; keep this process alive

Used by ``batch``.
"""

import contextlib
import itertools
import os

__all__ = ["keep_memory", "run"]

_AHEAD = 4  # tasks in the hands of the scheduler per core: enough to keep it busy, few enough for a million tasks
_PATIENCE = "20s"


def keep_memory():
    """Let processes that are started from here keep the memory of freed tensors.

    glibc otherwise returns their pages to the system and fetches them again, a third of the time of batched fits. Dask has its workers
    return all of them, two fifths of the time of posteriors, unless the environment says otherwise.
    """
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 30))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 32))


def run(function, tasks, workers=1, scheduler=None):
    """Results of ``function`` on every task, in the order in which they end.

    Parameters
    ----------
    function : callable
        Of one argument; like the tasks it travels by pickle.
    tasks : sequence
    workers : int
        Processes on this machine, at most, one thread each; with one, or one task, this process works, without Dask.
    scheduler : str, optional
        Address of a running Dask scheduler, whose workers are used instead.

    Yields
    ------
    object
        What ``function`` returns. An exception of a task is raised here.

    Raises
    ------
    ValueError
        If no scheduler answers.
    RuntimeError
        If the scheduler ends before the tasks do.
    """
    workers = min(workers, len(tasks))
    if scheduler is None and workers <= 1:
        yield from map(function, tasks)
        return
    import distributed  # a second, which one process need not wait for

    if scheduler is None:
        keep_memory()
        options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
        with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
            yield from _results(distributed, client, function, tasks)
        return
    try:
        client = distributed.Client(scheduler, timeout=_PATIENCE)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"no Dask scheduler answers at {scheduler!r}, an address such as tcp://host:8786 ({error})") from None
    with client:
        yield from _results(distributed, client, function, tasks)


def _results(distributed, client, function, tasks):
    left, cores, waiting = iter(tasks), 1, distributed.as_completed()
    while True:
        with contextlib.suppress(OSError):  # a scheduler that is gone: the next result says so
            cores = max(1, sum(client.ncores().values()))  # asked again, as jobs that wait in a queue bring workers late
        more = list(itertools.islice(left, max(0, _AHEAD * cores - waiting.count())))
        waiting.update(client.map(function, more, pure=False))
        if waiting.is_empty():
            return
        done = next(waiting)
        try:
            result = done.result()
        except distributed.CancelledError:
            raise RuntimeError("the Dask scheduler is gone: start it and give the same command again, what was finished is kept") from None
        done.release()
        yield result
