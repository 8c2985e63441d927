# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Redshift distributions of any survey from one population, with error bars
#
# The population calibrated on 26-band photometry, without a single redshift, predicts n(z) of its own survey and, through other filters,
# depths and cuts, of others: KiDS-like, LSST-like, or yours in one YAML file, in four tomographic bins each. Its errors are set
# beside the cosmic variance of the field that it was learned from.
#
# | reads | writes | paper |
# |---|---|---|
# | `mock`, `uncertainty` (03), `emulator` (02) | `nz`, `mock_survey` | Alsing+24 §5.2, fig. 7 |
# | `population_start`, `population`, `population_ensemble` (04) | `figures/redshift_distributions` | Thorp+25 §5.1, fig. 10 |
# | | `figures/redshift_surveys` | Leistedt+26 for KiDS |

# %% tags=["parameters"]
profile: str = "fast"      # smoke, fast or full
seed: int = 6              # random seed
weights: str = "published"  # emulator of notebook 02: published or trained
calibrated: str = "published"  # population and flux errors of notebooks 03 and 04: published (of the full profile) or trained
n_galaxies: int = 20_000   # galaxies drawn from each model
survey: str = "kids"       # kids, lsst-y1, or the path of a YAML file with a survey of your own; a mock of it is written
n_mock: int = 5_000        # galaxies of that mock
field_area: float = 1.27   # of the field whose cosmic variance is shown: COSMOS [deg2]
max_error: float = 0.015   # largest |error of the mean redshift| / (1 + z) of r < 25, of all galaxies and in each tomographic bin
max_survey_error: float = 0.05  # the same of the KiDS-like and the LSST-like survey
zcosmos: str = ""          # zCOSMOS-bright table, by its path or its place under POPCOSMOS_DATA, for a look at the real sky; empty for none
templates: str = ""        # COSMOS2020 table with template redshifts (lp_zBEST), for the same; empty for none

# %% tags=["setup"]
import numpy as np
import torch
from astropy.table import Table, vstack

from popcosmos_lib import catalog, population
from popcosmos_lib import survey as surveying
from popcosmos_lib.artefacts import data
from popcosmos_lib.figures import redshifts as draw
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.population import mocks
from popcosmos_lib.survey import cosmic_variance, tomography
from popcosmos_lib.synthesis import filters
from popcosmos_lib.workflow import run

this = run.start("06_redshifts", profile=profile, seed=seed)
mock, area = this.read("mock"), this.read("mock").meta["area_deg2"]
inputs = [mock, this.read("emulator", weights), this.read("population_start")]
inputs += [this.read(name, calibrated) for name in ("uncertainty", "population", "population_ensemble")]

# %% [markdown]
# ## Galaxies: the held-out sky, and the models
#
# The sky is the half of the mock that the calibration did not see. The models are the calibrated population, the one it started from, and
# the members of the ensemble, calibrated on resampled data with other seeds: their scatter is the error bar of the population.

# %%
models = {name: population.Population.from_state(inputs[i].data) for name, i in (("start", 2), ("model", 4))}
models |= {f"member {i}": member for i, member in enumerate(population.Ensemble.from_state(inputs[5].data).members)}
members = [name for name in models if name.startswith("member")]
theta = {name: model.sample(n_galaxies, this.generator(name)) for name, model in models.items()}
table = mock.data[~mock.data["train"]]
universe = torch.stack([torch.as_tensor(table[name].data) for name in parameters.NAMES], -1).float()
observed = torch.stack([torch.as_tensor(table[f"flux_{band}"].data) for band in filters.SHORT], -1).float()

# %% [markdown]
# ## Its own survey, r < 25, and a cut that reaches beyond it, Ch1 < 26
#
# What is modelled is p(θ | r < 25), and nearly all of those galaxies have Ch1 < 26. The Ch1 < 26 sky has several times as many, fainter in
# r: what the model says of it is an **extrapolation**, shown in counts, so that what is missing shows. Notebook 11 tries to go further.

# %%
whose = {"profile": this.whose(calibrated), "emulator": this.whose(weights), "device": "cpu"}
own = mocks.load(**whose)
photometry = {"truth": observed} | {name: own.photometry(rows, this.generator(f"{name} own")).flux for name, rows in theta.items()}
parents = {"truth": universe} | theta
first, beyond = "r < 25", "Ch1 < 26: extrapolation"
cuts = {first: dict.fromkeys(parents, "r<25"), beyond: dict.fromkeys(parents, "r<25 and Ch1<26") | {"truth": "Ch1<26"}}
samples = {title: {} for title in cuts}
for title, name in ((title, name) for title in cuts for name in parents):
    seen = surveying.select(photometry[name], cuts[title][name])
    samples[title][name] = tomography.galaxies(parents[name][seen], photometry[name][seen], filters.SHORT)

# %% [markdown]
# ## Surveys that it was not trained on
#
# The same galaxies through other filters. The truth is the mock universe through direct synthesis; the models use an emulator where one
# has the survey's bands (one for KiDS and LSST is shipped; notebook 02 trains others, `-p survey=euclid`, for `weights=trained` here), and
# otherwise direct synthesis too. Galaxies of the mock universe at r > 25 take part: what the model cannot know of shows.
#
# A survey of your own needs bands, depths and cuts, as in `resources/surveys.yaml`:
#
# ```yaml
# bands:  {g: decam_g, r: decam_r, i: decam_i, z: decam_z}
# depths: {g: [25.4, 5], r: [25.1, 5], i: [24.5, 5], z: [23.7, 5]}
# cuts:   i<23.5
# ```
#
# `python -m popcosmos_lib run notebooks/06_redshifts.py -p survey=mine.yaml` adds a row to the figure and writes the artefact
# `mock_survey`.

# %%
skies = {name: mocks.load(name, **whose) for name in dict.fromkeys(["kids", "lsst-y1", survey])}
names = {"kids": "KiDS-like", "lsst-y1": "LSST-Y1-like"}
titles = {name: f"{names.get(name, sky.meta['survey'])}, {sky.selection}".replace("<", " < ") for name, sky in skies.items()}
bright = surveying.select(observed, "r<26")  # a magnitude beyond the model, and beyond what these surveys select
parents["truth"], faint = universe[bright], ~surveying.select(observed[bright], "r<25")
lost = {}
for name, sky in skies.items():
    exact = mocks.Mock(None, sky.sky, sky.synthesiser, selection=sky.selection)
    seen = {"truth": exact.photometry(parents["truth"], this.generator(f"truth {name}"))}
    seen |= {who: sky.photometry(rows, this.generator(f"{who} {name}")) for who, rows in theta.items()}
    lost[name] = faint[seen["truth"].selected].float().mean().item()
    samples[titles[name]] = {
        who: tomography.galaxies(parents[who][s.selected], s.flux[s.selected], sky.sky.bands) for who, s in seen.items()
    }


# %%
def written():
    made = vstack(list(skies[survey].tables(n_mock, this.generator("mock"))), metadata_conflicts="silent")
    return made, made.meta


chosen = {"survey": skies[survey].meta["survey"], "definition": skies[survey].meta.get("definition", ""), "n_mock": n_mock}
catalogue = this.artefact("mock_survey", written, kind="parquet", parameters=chosen, inputs=inputs)

# %% [markdown]
# ## Tomographic bins, histograms and mean redshifts
#
# Bins are quartiles of the sky's observed r − i (without r or i, of the two bands in the middle of the survey). A galaxy of a model falls
# in a bin by its own observed colour, as a real one would; no photometric redshift takes part.

# %%
z_edges = np.linspace(0, 6, 61)


def compute():
    found = {"edges": z_edges}
    for title, which in samples.items():
        colours = tomography.edges(which["truth"])
        for name, sample in which.items():
            found |= {f"{title}/{name}/{key}": value for key, value in tomography.binned(sample, colours, z_edges)._asdict().items()}
    return found


nz = this.artefact("nz", compute, kind="npz", version=2, parameters={"n_galaxies": n_galaxies} | chosen, inputs=inputs).data
binned = {title: {name: tomography.Binned(*(nz[f"{title}/{name}/{k}"] for k in tomography.Binned._fields)) for name in which}
          for title, which in samples.items()}  # fmt: skip

# %% [markdown]
# ## Three error bars
#
# **Ensemble**: the scatter of the calibrations. **Sampling**: finite numbers of galaxies, of the sky and of the model. **Cosmic variance**:
# one field is not the mean universe. Its relative error in a redshift bin is that of dark matter in the volume, from linear theory, times
# the bias of the galaxies at their masses (Moster+11). The mock is not clustered, so nothing here scatters by it; a real calibration
# field would.

# %%
middle = 0.5 * (z_edges[1:] + z_edges[:-1])
truths = {title: which["truth"] for title, which in samples.items()}
relative = {title: cosmic_variance.galaxies(truth.z, truth.log_mass, z_edges, field_area) for title, truth in truths.items()}
spread = {title: np.std([which[name].density for name in members], 0, ddof=1) for title, which in binned.items()}
errors = {}
for title, which in binned.items():
    (sky, sky_error, _), (model, model_error, _), (start, *_) = (which[name].moments for name in ("truth", "model", "start"))
    each = np.array([which[name].moments[0] for name in members])
    cosmic = cosmic_variance.of_mean(which["truth"].density, middle, relative[title])
    found = {"model": model - sky, "start": start - sky, "mean of members": each.mean(0) - sky}
    found |= {"ensemble": each.std(0, ddof=1), "sampling": np.hypot(sky_error, model_error)}
    errors[title] = {name: value / (1 + sky) for name, value in (found | {"cosmic": cosmic}).items()}

# %%
worst = {title: float(np.abs(error["model"]).max()) for title, error in errors.items()}
worst_survey = max(worst[titles[name]] for name in names)
within = {}
for title, which in binned.items():
    sigma = np.sqrt(spread[title][0] ** 2 + which["truth"].sampling[0] ** 2 + which["model"].sampling[0] ** 2)
    full = which["truth"].density[0] > 0.01
    within[title] = float((np.abs(which["model"].density[0] - which["truth"].density[0]) < 2 * sigma)[full].mean())
areas = sorted([field_area, area, 10.0, 100.0])
sample, sky_nz = samples[first]["truth"], binned[first]["truth"].density[0]
by_area = [cosmic_variance.of_mean(sky_nz, middle, cosmic_variance.galaxies(sample.z, sample.log_mass, z_edges, size)) for size in areas]
passed = {title: surveying.select(observed, which["model"]) for title, which in cuts.items()}
reached = passed[beyond].sum().item() / len(samples[beyond]["truth"].z)
again = own.photometry(universe[passed[first]], this.generator("again")).selected.numpy()
thinned = (sample.z[again].mean() - sample.z.mean()) / (1 + sample.z.mean())

# %% tags=["nbval-check-output"]
this.report(
    sky_galaxies=f"about {round(len(sample.z), -2)}",
    surveys="; ".join(samples),
    ensemble=f"{len(members)} members",
    mean_redshifts_of_r25=f"within {max_error}, of all and in each bin: {worst[first] <= max_error}",
    mean_redshifts_of_the_other_two_surveys=f"within {max_survey_error}: {worst_survey <= max_survey_error}",
    mock_of_the_survey=f"{len(catalogue.data)} galaxies of {catalogue.meta['survey']}, {catalogue.meta['selection']}",
)

# %%
for title, error in errors.items():
    print(f"{title}: {len(samples[title]['truth'].z)} sky galaxies; columns: all, then bins 1 to 4; errors of <z> over 1 + z")
    print("  <z> of the sky   ", "  ".join(f"{value:7.3f}" for value in binned[title]["truth"].moments[0]))
    for name in ("model", "mean of members", "start", "ensemble", "sampling", "cosmic"):
        print(f"  {name:17s}", "  ".join(f"{value:+7.4f}" for value in error[name]))
    print(f"  n(z) of the sky within twice ensemble and sampling error: {within[title]:.0%} of the redshift bins")
print("beyond the model, r > 25:", ", ".join(f"{share:.2%} of {titles[name]}" for name, share in lost.items()))
print(f"{reached:.1%} of the Ch1 < 26 sky has r < 25: the rest is beyond the model")
in_words = ", ".join(f"{sd / (1 + sample.z.mean()):.4f} in {size:.3g} deg2" for size, sd in zip(areas, by_area, strict=True))
print("cosmic variance of <z> at r < 25, over 1 + z:", in_words)
print(f"the sky's own galaxies through the forward model: {again.mean():.1%} pass r < 25 again, <z> off by {thinned:+.4f} (1 + z)")

# %%
assert abs(errors[first]["model"][0]) <= max_error, "the mean redshift of the calibrated survey is off: photometry alone did not pin it"
assert worst[first] <= max_error, "a tomographic bin has a wrong mean redshift: colours and redshifts are joined wrongly in the model"
assert worst_survey <= max_survey_error, "other filters and depths show galaxies that the model has not learned, or its emulator is off"
assert binned[titles["kids"]]["truth"].moments[0, 0] < sample.z.mean(), "a shallower survey must be nearer"
assert binned[titles["kids"]]["model"].moments[0, 0] < binned[first]["model"].moments[0, 0], "and the model must know it"
assert np.all(np.diff(by_area) < 0), "a larger field must have less cosmic variance"

# %% tags=["figure"]
shown = {
    title: {name: which[name].density for name in ("truth", "model", "start")} | {"spread": spread[title], "cosmic": relative[title]}
    for title, which in binned.items()
}
share = {name: binned[beyond][name].moments[2] / binned[beyond][name].moments[2, 0] for name in ("truth", "model", "start")}
for name, row in (("model", "model"), ("start", "start"), ("model", "spread")):
    shown[beyond][row] = (reached * share[name] / share["truth"])[:, None] * shown[beyond][row]  # counts for each galaxy of the sky
bins = dict.fromkeys((first, beyond), "r-i") | {titles[name]: "-".join(tomography.pair(sky.sky.bands)) for name, sky in skies.items()}
field = f"{field_area:g} deg$^2$"
mine, others = ({title: shown[title] for title in rows} for rows in ((first, beyond), titles.values()))
this.savefig(draw.distributions(z_edges, mine, bins, errors, field), "redshift_distributions")

# %% [markdown]
# **Read it.** Left, all galaxies; middle, quartiles of r − i; right, the error of the mean redshift: thick bars are the ensemble, thin ones
# sampling, green boxes what the cosmic variance of one COSMOS field would add. Squares: the model before calibration. In the lower row the
# model stands for its share of the sky: it follows the near galaxies and has none of those fainter than r = 25, most of them far.
# The blue bins are the hard ones: they mix near galaxies with far ones of the same colour, and a small error of the mixture moves the mean.

# %% tags=["figure"]
this.savefig(draw.distributions(z_edges, others, bins, errors, field), "redshift_surveys")

# %% [markdown]
# **Read it.** A prediction for filters and depths that the calibration never used. Lensing with the first year of LSST asks for mean
# redshifts to 0.002 (1 + z) in each bin; the green boxes say that a single field of this size cannot test that, whatever its redshifts.
#
# ## The real sky, if it is at hand
#
# `-p zcosmos=data/zcosmos/zcosmos_bright20k_photzi25.fits` sets the secure redshifts of zCOSMOS-bright (I < 22.5) beside the galaxies
# of the mock sky and of the model at i < 22.5: where the two latter agree and the first differs, the literature universe is wrong.
# One field has walls and voids; beyond z = 1 secure redshifts are also fewer because spectra fail there.
# `-p templates=COSMOS2020_FARMER_R1_v2.2_p3.fits` adds the template redshifts of COSMOS2020 at r < 25, known for their spikes.

# %%
panels, narrow = {}, np.linspace(0, 1.6, 33)
if zcosmos:
    spectra = Table.read(this.file(data.shared(zcosmos)))
    z, confidence = (np.asarray(spectra[name], float) for name in ("zspec", "cc"))
    z = z[(np.isin(np.floor(confidence), [3, 4]) | np.isin(confidence, [2.5, 9.5])) & (z > 0.02)]
    kept = {"sky": surveying.select(observed, "r<25 and i<22.5"), "model": surveying.select(photometry["model"], "r<25 and i<22.5")}
    sky = tomography.galaxies(universe[kept["sky"]], observed[kept["sky"]], filters.SHORT)
    model = parameters.column(theta["model"][kept["model"]], "z").numpy()
    cosmic = cosmic_variance.galaxies(sky.z, sky.log_mass, narrow, 1.7)  # zCOSMOS-bright covers 1.7 deg2
    panels["$i < 22.5$"] = ("zCOSMOS-bright, secure", narrow, z, sky.z, model, cosmic)
    for name, values in {"zCOSMOS": z, "mock sky": sky.z, "model": model}.items():
        print(f"i < 22.5, {name}: {len(values)} galaxies, <z> = {values.mean():.3f}")

# %%
if templates:
    real = catalog.read(this.file(data.shared(templates)))
    z = np.ma.filled(np.ma.asarray(real.table["lp_zBEST"]).astype(float), np.nan)
    z = z[(real.clean & surveying.select(real.flux, "r<25")).numpy() & (z > 0)]
    fine = np.linspace(0, 6, 121)
    cosmic = cosmic_variance.galaxies(sample.z, sample.log_mass, fine, field_area)
    panels["$r < 25$"] = ("COSMOS2020, LePhare", fine, z, sample.z, samples[first]["model"].z, cosmic)

# %%
if panels:
    draw.real_sky(panels)  # shown here, published nowhere

# %% [markdown]
# ## What differs from the paper
# - Alsing+24 and Thorp+25 compare n(z) with template photometric redshifts of the same sky; here the truth is known, and the sky is not
#   clustered, so cosmic variance is drawn, not suffered.
# - They take the bias of galaxies above 10^8.5 Msun; here each galaxy has that of its own mass. The variance of dark matter is computed
#   for any field and agrees with the fits of Moster+11 for their five fields to 5 %.
# - A model galaxy has to pass the cut a second time although p(θ | r < 25) is of galaxies that did: that removes what the smooth density
#   leaks across the limit, and costs the galaxies within their noise of it, with the small shift printed above.
# - The KiDS-like survey has SDSS curves for u, g, r, i; both surveys have one depth per band, and neither shear weights nor blending.

# %% tags=["nbval-check-output"]
this.finish()
