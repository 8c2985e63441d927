"""Command line: ``python -m popcosmos_lib run|mock|fit|data|figures|copies|refs|weights|tables|map``; the Makefile calls nothing else."""

import argparse
import os
import sys
from pathlib import Path


def _run(options):
    from popcosmos_lib.workflow import driver, notebook

    name = Path(options.notebook).stem
    if not notebook.path(name).exists():
        raise ValueError(f"no notebook {options.notebook!r}: notebooks/ has {', '.join(notebook.names()) or 'none'}")
    given = dict(notebook.parsed(notebook.path(name), word) for word in options.parameters)
    if "profile" in given:
        raise ValueError("give --profile, not -p profile=...")
    driver.execute(name, options.profile, given)


def _mock(options):
    import torch

    from popcosmos_lib import catalog
    from popcosmos_lib.population import mocks

    made = mocks.load(options.survey, options.selection, profile=options.profile)
    catalog.write(options.out, made.tables(options.n, torch.Generator().manual_seed(options.seed)))
    print(f"{options.out}: {options.n} galaxies of {made.meta['survey']}, {made.selection}; magnitudes by {made.meta['photometry']}")


def _fit(options):
    import torch

    from popcosmos_lib.catalog import batch, columns, dry_run, readers, schema

    if options.dry_run:
        source = readers.load(options.catalogue)
        for line in dry_run.report(source, columns.resolve(source, options.columns), options.profile):
            print(line)
        return
    if options.out is None:
        raise ValueError("fit needs --out posteriors.parquet (or --dry-run, to see what would be fitted)")
    from popcosmos_lib.figures import posteriors

    out, plots = Path(options.out), Path(options.plots or Path(options.out).with_suffix(".pdf"))
    posteriors.check(plots)
    settings = batch.Settings(options.prior, options.engine, options.profile, options.seed, options.draws)
    work = {"mapping": options.columns, "chunk": options.chunk, "workers": options.workers, "scheduler": options.scheduler}
    torch.set_num_threads(1)  # one process a core: threads gain little in matrices this small
    made = batch.run(options.catalogue, out, settings=settings, **work)
    posteriors.write(out, plots)
    print(f"{out}: {made.rows:,} galaxies, of which {made.failed:,} could not be fitted (flag 2048); summary page: {plots}")
    for bit, found in made.flagged.items():
        if found:
            print(f"flag {bit}, {found:,} galaxies: {schema.FLAGS[bit]}")


def _data(options):
    from popcosmos_lib.artefacts import data

    return data.main(options.id)


def _figures(options):
    from popcosmos_lib.workflow import publish

    publish.figures(options.profile)


def _copies(options):
    from popcosmos_lib.workflow import publish

    publish.copies()


def _refs(options):
    from popcosmos_lib.workflow import publish

    publish.references()


def _weights(options):
    from popcosmos_lib.workflow import publish

    publish.weights(options.names)


def _map(options):
    from popcosmos_lib.workflow import layout

    layout.draw()


def _tables(options):
    from popcosmos_lib.workflow import pages

    pages.update()


def main(words=None):
    """Run one subcommand; 0 when it went well, 1 when a notebook failed, 2 when the request makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m popcosmos_lib", description="Run and publish the notebooks.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(action, text):
        added = commands.add_parser(action.__name__[1:], help=text, description=text)
        added.set_defaults(action=action)
        return added

    profile = {"choices": ["smoke", "fast", "full"], "default": "fast", "help": "size of the computation (default: fast)"}
    published = {"choices": ["published", *profile["choices"]], "default": "published", "help": "whose networks (default: published)"}
    run = command(_run, "execute a notebook into build/<profile>/")
    run.add_argument("notebook", help="for example notebooks/04_calibration.py")
    run.add_argument("--profile", **profile)
    run.add_argument("-p", dest="parameters", metavar="name=value", action="append", default=[], help="override a declared parameter")
    mock = command(_mock, "write a mock catalogue of the calibrated population")
    mock.add_argument("--n", type=int, required=True, help="galaxies that pass the selection")
    mock.add_argument("--survey", default="cosmos2020", help="cosmos2020, kids, lsst-y1 or a YAML file (default: cosmos2020)")
    mock.add_argument("--selection", help='cuts on observed magnitudes, such as "r<25" or "i>=17.5 and i<22.5" (default: its own)')
    mock.add_argument("--out", required=True, help="Parquet file to write")
    mock.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    mock.add_argument("--profile", **published)
    fit = command(_fit, "posteriors of your own catalogue: redshift, mass and the other parameters, one row a galaxy")
    fit.add_argument("catalogue", help="FITS, Parquet, CSV or ECSV file, or the folder of a HATS catalogue")
    fit.add_argument("--out", help="Parquet file to write; a run that was killed goes on from <out>.parts")
    fit.add_argument(
        "--columns", metavar="map.yaml", help="what the columns mean, see popcosmos_lib/catalog/columns.py (default: by their names)"
    )
    fit.add_argument("--dry-run", action="store_true", help="only print what was understood, and each band beside the model")
    fit.add_argument("--prior", choices=["pop-cosmos", "prospector"], default="pop-cosmos", help="(default: pop-cosmos)")
    fit.add_argument("--engine", choices=["exact", "ensemble"], default="exact", help="(default: exact)")
    fit.add_argument("--draws", type=int, default=0, metavar="N", help="also write N weighted draws a galaxy to <out>_draws.parquet")
    fit.add_argument("--plots", metavar="page.pdf", help="summary page (default: beside --out)")
    fit.add_argument("--chunk", type=int, default=256, metavar="N", help="galaxies fitted and saved at a time (default: 256)")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fit.add_argument("--workers", type=int, default=cores, metavar="N", help="processes on this machine, through Dask (default: its cores)")
    fit.add_argument("--scheduler", metavar="tcp://...", help="Dask scheduler of a cluster; for SLURM see popcosmos_lib/catalog/cluster.py")
    fit.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    fit.add_argument("--profile", **published)
    command(_data, "list the data, or fetch one item").add_argument("id", nargs="?", help="item of data_manifest.yaml to download")
    command(_figures, "check declared against produced figures; write their manifest").add_argument("--profile", **profile)
    command(_copies, "publish build/fast as the reading copies notebooks/*.ipynb")
    command(_refs, "publish build/smoke as the references of the tests")
    command(_weights, "ship networks that the full profile trained").add_argument("names", nargs="+", help="artefacts, such as emulator")
    command(_tables, "regenerate the tables of README.md, REPRODUCING.md and docs/")
    command(_map, "draw docs/architecture.svg from the imports")
    options = parser.parse_args(words)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts its threads: those that wait would burn a core each
    try:
        return options.action(options) or 0
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
