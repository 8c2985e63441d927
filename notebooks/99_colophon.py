# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Colophon: what made these pages
#
# Every notebook leaves a record when it finishes; this page sets them side by side, so that each figure and each artefact can be traced to
# the run, the versions and the machine that made it.
#
# | reads | writes |
# |---|---|
# | the record of every other notebook | nothing |

# %% tags=["parameters"]
profile: str = "fast"  # smoke, fast or full
seed: int = 99         # unused by the page itself; every record has one

# %% tags=["setup"]
from astropy.table import Table

from popcosmos_lib.artefacts import provenance
from popcosmos_lib.workflow import notebook, run

this = run.start("99_colophon", profile=profile, seed=seed)
records = {name: run.record(name, profile) for name in notebook.names() if name != this.name}

# %% [markdown]
# ## Versions and hardware
#
# Of this run; a record whose versions or processor differ comes from another time or machine, and the table below would show it.

# %%
this.report(**provenance.versions(), **provenance.device())

# %% [markdown]
# ## Cost
#
# *Time* is what the notebook takes from nothing: its own run and what the artefacts it found on disk had cost when they were made.

# %%
rows = [(name, round(r["wall_s"] + r["stored_s"]), r["peak_mb"], r["threads"], r["device"]["cpu"]) for name, r in records.items()]
cost = Table(rows=rows, names=["notebook", "time", "memory", "threads", "processor"], units={"time": "s", "memory": "MB"})
cost.pprint(max_lines=-1, max_width=-1)

# %% [markdown]
# ## Ledger
#
# What each notebook made, by the first characters of its digest, and what it read.

# %%
made = [(name, artefact, digest[:12]) for name, r in records.items() for artefact, digest in r["outputs"].items()]
Table(rows=made or None, names=["notebook", "artefact", "sha256"]).pprint(max_lines=-1, max_width=-1)

# %%
used = [(name, artefact, digest[:12]) for name, r in records.items() for artefact, digest in r["inputs"].items()]
Table(rows=used or None, names=["notebook", "input", "sha256"]).pprint(max_lines=-1, max_width=-1)

# %% [markdown]
# ## Consistency
#
# An input must be the very artefact that another notebook made, not an older one; files from outside have no maker here.

# %%
digest_of = {artefact: r["outputs"][artefact] for r in records.values() for artefact in r["outputs"]}
stale = [(name, key) for name, r in records.items() for key, digest in r["inputs"].items() if digest_of.get(key, digest) != digest]
commits = {r["commit"] for r in records.values()}

# %% tags=["nbval-check-output"]
this.report(notebooks=len(records), artefacts=len(digest_of), figures=sum(len(r["figures"]) for r in records.values()), stale=len(stale))

# %%
assert not stale, f"run these again, they read an artefact that has been remade since: {stale}"
this.report(commits=", ".join(sorted(str(commit)[:10] for commit in commits)), dirty=any(r["dirty"] for r in records.values()))

# %%
this.finish()
