# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # pop-cosmos in one page: a density of 16 galaxy parameters, calibrated on 26-band photometry
#
# A galaxy is 16 numbers. A diffusion model is a density over them; synthesis, an uncertainty model and a selection turn its draws into a
# catalogue; the density is moved until that catalogue and the observed one agree.
#
# | reads | writes | paper |
# |---|---|---|
# | nothing | `figures/pipeline` | Alsing+24 fig. 2 |

# %% tags=["parameters"]
profile: str = "fast"   # smoke, fast or full
seed: int = 0           # random seed
n_galaxies: int = 2000  # galaxies of the consistency check

# %% tags=["setup"]
import torch
from IPython.display import Markdown

from popcosmos_lib.figures import validation
from popcosmos_lib.galaxies import parameters, universe
from popcosmos_lib.workflow import pages, run

this = run.start("00_overview", profile=profile, seed=seed)

# %% tags=["figure"]
this.savefig(validation.pipeline(), "pipeline")

# %% [markdown]
# **Read it.** Along the top, what nature and the telescope do; numbers are the notebooks that build each step. The middle row runs
# backwards: the density moves until it is the sum of the posteriors of all observed galaxies (the default), or, by gradients through every
# step, until the two clouds of photometry lie on each other (the papers' way). The bottom row is what the density is for.
#
# ## The 16 parameters
#
# The density lives on a latent copy of them: each one's probit inside its bounds, and instead of the mass the magnitude
# $N = \mu(z) - 2.5\,\log_{10} M$, so that changing it is an exact rescaling of all fluxes.

# %%
units = [unit or "1" for unit in parameters.UNITS]
rows = zip(parameters.NAMES, parameters.LABELS, parameters.BOUNDS.tolist(), units, strict=True)
lines = [f"| `{name}` | {label} | {lower:.3g} to {upper:.3g} | {unit} |" for name, label, (lower, upper), unit in rows]
Markdown("\n".join(["| parameter | symbol | range | unit |", "|---|---|---|---|", *lines]))

# %% [markdown]
# ## A check of the two spaces
#
# Galaxies of the literature universe go to the latent space and back, and their star-formation histories add up to the mass formed.

# %%
theta = universe.sample(n_galaxies, generator=this.generator()).double()
phi = parameters.to_latent(theta)
lost = (parameters.to_theta(phi) - theta).abs().max()
history = parameters.mass_fractions(theta).sum(-1)

# %% tags=["nbval-check-output"]
this.report(
    parameters=len(parameters.NAMES),
    galaxies=len(theta),
    round_trip=f"better than 1e-4: {bool(lost < 1e-4)}",
    histories_add_up=bool(torch.allclose(history, torch.ones_like(history))),
)

# %%
assert lost < 1e-4, "the latent space must hold every galaxy of the universe without loss"
assert torch.allclose(history, torch.ones_like(history)), "the seven bins of a star-formation history must hold all the mass formed"

# %% [markdown]
# ## Every figure and the notebook that makes it

# %%
Markdown(pages.TABLES["figures"]())

# %% [markdown]
# ## What each notebook costs
#
# From the records of the last published run.

# %%
Markdown(pages.TABLES["runtimes"]())

# %% [markdown]
# ## What differs from the paper
# Alsing+24 fig. 2 draws the same loop for FSPS, the COSMOS2020 catalogue and a Sinkhorn distance. Here the stellar populations are
# BC03-MILES, the comparison is by posteriors unless a distance is asked for (notebook 04), the default sky is a mock of known truth, and
# real photometry is one parameter away (notebook 08).

# %% tags=["nbval-check-output"]
this.finish()
