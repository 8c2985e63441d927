"""A repository root of its own for tests that write: small, empty, with one notebook where a test asks for it."""

import textwrap

import pytest

TINY = """\
# %% [markdown]
# # Tiny

# %% tags=["parameters"]
profile: str = "fast"  # smoke, fast or full
seed: int = 3  # random seed
n: int = 5  # numbers drawn
scale: float = 1.0  # spread [mag]
shout: bool = False  # print in capitals

# %% tags=["setup"]
import matplotlib.pyplot as plt
import torch

from popcosmos_lib import figures
from popcosmos_lib.workflow import run

this = run.start("01_tiny", profile=profile, seed=seed)

# %%
made = this.artefact("tiny", lambda: {"x": scale * torch.rand(n, generator=this.generator())}, parameters={"n": n, "scale": scale})

# %% tags=["nbval-check-output"]
this.report(n=len(made.data["x"]), word="BIG" if shout else "big")

# %%
fig, ax = plt.subplots(figsize=(figures.SINGLE, 2))
ax.plot(made.data["x"])
this.savefig(fig, "tiny")

# %%
this.finish()
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty repository root; the environment that the driver changes is restored afterwards."""
    monkeypatch.setenv("POPCOSMOS_HOME", str(tmp_path))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONHASHSEED", "MPLBACKEND"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "figures").mkdir()
    (tmp_path / "profiles.yaml").write_text("smoke: {}\nfull: {}\n")
    (tmp_path / "figures" / "figures.yaml").write_text("{}\n")
    return tmp_path


@pytest.fixture
def tiny(home):
    """A root with the smallest notebook that draws, stores, reports and plots."""
    (home / "notebooks" / "01_tiny.py").write_text(textwrap.dedent(TINY))
    (home / "profiles.yaml").write_text("smoke:\n  01_tiny: {n: 2, scale: 2}\nfull: {}\n")
    (home / "figures" / "figures.yaml").write_text(
        "tiny: {notebook: 01_tiny, paper: Alsing+24, number: 1, width: single, status: analogue, caption: A line., alt: A line.}\n"
    )
    return home
