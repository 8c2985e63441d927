# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Where the sample is complete, and where the model may be used
#
# The most frequent mass at each redshift marks where a flux-limited sample begins to lose galaxies. At Ch1 < 26 our mock sky gives the
# published limit of Thorp+25; at r < 25 the calibrated model gives that of the sky, and nothing is known below it.
#
# | reads | writes | paper |
# |---|---|---|
# | `mock` (03), `population`, `population_ensemble` (04) | `figures/completeness_limits` | Thorp+25 figs 8, 27, sect. 4.6, app. E |

# %% tags=["parameters"]
profile: str = "fast"           # smoke, fast or full
seed: int = 10                  # random seed
calibrated: str = "published"   # population of notebook 04: published (of the full profile) or trained
n_galaxies: int = 30_000        # galaxies drawn from the calibrated model, and from each member of its ensemble
n_bins: int = 16                # redshift bins of equal number
max_offset: float = 0.3         # largest |our Ch1 limit - that of Thorp+25|, 0.4 < z < 4 [dex]
max_model_offset: float = 0.25  # largest |limit of the model - limit of the mock| at r < 25, 0.2 < z < 2 [dex]

# %% tags=["setup"]
import torch

from popcosmos_lib import population
from popcosmos_lib.figures import relations as draw
from popcosmos_lib.galaxies import parameters, relations, universe
from popcosmos_lib.workflow import run

this = run.start("10_completeness", profile=profile, seed=seed)
table = this.read("mock").data
theta = torch.stack([torch.as_tensor(table[name].data) for name in parameters.NAMES], -1)
models = {"model": population.Population.from_state(this.read("population", calibrated).data)}
members = population.Ensemble.from_state(this.read("population_ensemble", calibrated).data).members
models |= {f"member {i + 1}": member for i, member in enumerate(members)}

# %% [markdown]
# ## Modal mass in redshift bins of equal number
#
# Above the mode the counts follow the falling mass function; below it, the flux limit. The 99.5th percentile of the mass is the upper end.

# %%
samples = {"Ch1": theta[torch.as_tensor(table["select_ch1"].data)], "r": theta[torch.as_tensor(table["select_r25"].data)]}
samples |= {name: one.sample(n_galaxies, this.generator(name)) for name, one in models.items()}
mass = {name: universe.surviving_mass(rows) for name, rows in samples.items()}
modes = {name: relations.modal_mass(mass[name], rows[:, -1], n_bins) for name, rows in samples.items()}

# %% [markdown]
# ## Smooth limits
#
# Two cubic Hermite segments over 0 < z < 6, fitted by least squares (seven numbers), as in appendix E of Thorp+25.

# %%
fits = {name: relations.fit_limit(points[:, 0], points[:, 1]) for name, points in modes.items()}
z = torch.linspace(0.05, 6, 240, dtype=torch.float64)
curve = {name: universe.hermite_limit(z, **fit) for name, fit in fits.items()}
upper = universe.hermite_limit(z, **relations.fit_limit(modes["Ch1"][:, 0], modes["Ch1"][:, 2]))
published, weaver = universe.mass_completeness(z), torch.log10(7.83e7 * (1 + z) ** 2 - 3.23e7 * (1 + z))
wide, near = (z > 0.4) & (z < 4), (z > 0.2) & (z < 2)
offset = (curve["Ch1"] - published)[wide]
model_offset = (curve["model"] - curve["r"])[near]
spread = torch.stack([curve[name] for name in list(models)[1:]]).std(0)

# %% [markdown]
# ## Domain of validity
#
# Galaxies between the two limits are what the sample constrains. The model also has galaxies below: they follow from how smooth the density
# was made, not from data.

# %%
inside = {
    name: ((m > universe.hermite_limit(rows[:, -1].double(), **fits["r"])) & (m < universe.mass_mask(rows[:, -1]))).float().mean().item()
    for (name, rows), m in zip(samples.items(), mass.values(), strict=True)
}

# %% tags=["nbval-check-output"]
this.report(
    bins=n_bins,
    ensemble=f"{len(members)} members",
    Ch1_limit=f"within {max_offset} dex of Thorp+25 for 0.4 < z < 4: {offset.abs().max() <= max_offset}",
    r_limit_of_the_model=f"within {max_model_offset} dex of the sky for 0.2 < z < 2: {model_offset.abs().max() <= max_model_offset}",
)

# %%
at = [1.0, 2.0, 4.0]
for name in ("Ch1", "r", "model"):
    values = universe.hermite_limit(torch.tensor(at, dtype=torch.float64), **fits[name])
    this.report(**{f"{name}_limit_at_z_1_2_4": " ".join(f"{value:.2f}" for value in values)})
this.report(
    Ch1_minus_Thorp25=f"mean {offset.mean():+.3f}, largest {offset.abs().max():.3f} dex",
    model_minus_sky=f"mean {model_offset.mean():+.3f}, largest {model_offset.abs().max():.3f} dex",
    ensemble=f"scatter of the model's limit: mean {spread[near].mean():.3f}, largest {spread[near].max():.3f} dex, 0.2 < z < 2",
    inside_the_r_domain=", ".join(f"{name} {value:.1%}" for name, value in inside.items()),
    Ch1_spline=", ".join(f"{key} {torch.tensor(value).numpy().round(3)}" for key, value in fits["Ch1"].items()),
)

# %%
assert offset.abs().max() <= max_offset, "the mock's Ch1 limit is not that of COSMOS2020: its light-to-mass ratios or depth are off"
assert model_offset.abs().max() <= max_model_offset, "the calibrated model puts the r < 25 limit elsewhere than the sky does"
assert (curve["r"] > curve["Ch1"])[near].float().mean() > 0.9, "3.6 µm to 26 mag must reach lower masses than r to 25 mag"

# %% tags=["figure"]
one, two, three = "C1", "C0", "C2"
reach = z < modes["r"][-1, 0]  # no galaxies beyond: the spline is not constrained there
panels = [
    {"title": "Ch1 < 26", "z": samples["Ch1"][:, -1].numpy(), "log_mass": mass["Ch1"].numpy(),
     "modes": [("mock: mode, 99.5 %", modes["Ch1"], "o", one)],
     "curves": [("spline fit", z, curve["Ch1"], one, "-"), ("Thorp+25", z, published, two, "--"), ("Weaver+23", z, weaver, three, ":"),
                (None, z, upper, one, "-"), (None, z, universe.mass_mask(z), two, "--")]},
    {"title": "r < 25", "z": samples["r"][:, -1].numpy(), "log_mass": mass["r"].numpy(),
     "modes": [("mock: mode, 99.5 %", modes["r"], "o", two), ("calibrated model", modes["model"], "D", one)],
     "curves": [("mock, spline fit", z[reach], curve["r"][reach], two, "-"),
                ("model, its ensemble", z[reach], curve["model"][reach], one, "--")],
     "band": (z[reach], (curve["model"] - spread)[reach], (curve["model"] + spread)[reach], one)},
]  # fmt: skip
this.savefig(draw.limits(panels), "completeness_limits")

# %% [markdown]
# **Read it.** Filled symbols: modal masses; open ones: 99.5th percentiles; grey: the mock's galaxies. On the left the mock's limit runs
# with the published ones. On the right the limit at r < 25 is higher and steeper, since r leaves the optical of distant galaxies; a
# mass function drawn from the r < 25 model means something only above it.
#
# ## What differs from the paper
# Thorp+25 take 100 bins of 20,000 galaxies of a calibrated Ch1 < 26 model; here the Ch1 limit comes from the mock sky, in fewer and
# smaller bins whose counts are smoothed by 0.2 dex, and the calibrated model is that of r < 25. Below z = 0.2 one bin spans too much
# redshift for a limit.

# %% tags=["nbval-check-output"]
this.finish()
