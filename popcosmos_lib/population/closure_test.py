"""Closure tests: distances between a population and held-out mock galaxies whose true parameters are known.

Each test has a bar and a goal (``BARS``) and a floor, the distance between two samples of one sky. Photometric tests use the galaxies that
have all bands they need; missing bands are never filled in. Introduced in notebook 04.

References
----------
Thorp et al. (2025), arXiv:2506.12122, appendix D (principal components of nine colours and their KS distances); Lopez-Paz & Oquab (2017),
arXiv:1610.06545 (classifier two-sample test).
"""

import math
from typing import NamedTuple

import torch
from astropy.table import Table

from popcosmos_lib.galaxies import parameters
from popcosmos_lib.population import metrics, optimal_transport
from popcosmos_lib.survey.photometry import asinh_magnitude
from popcosmos_lib.synthesis.filters import SHORT

__all__ = [
    "AGREE", "BARS", "BROAD", "CONSTRAINED", "PUBLISHED", "RANGES", "Bar", "Closure", "Constraints", "apart", "broad_colours",
    "constraints", "table", "verdicts", "widths",
]  # fmt: skip

BROAD = ("u", "g", "r", "i", "z", "Y", "J", "H", "Ks", "Ch1")  # the nine adjacent colours are those of Thorp+25 appendix D
RANGES = ((0.0, 0.5), (0.5, 1.0), (1.0, 6.0))  # redshifts in which mass and star-formation rate are tested apart
CONSTRAINED = 0.5  # posterior over prior width below which data, not the prior, decide
AGREE = 0.1  # KS distance of two calibrations, from two priors, up to which the prior no longer speaks
PUBLISHED = ("calibrated", "ensemble")  # populations that other notebooks go on with: every bar is theirs
_COMPONENTS = 6
_BINS = 4  # tomographic: quartiles of observed r - i
_SPLITS = 4  # random halves of the truth behind one floor


class Bar(NamedTuple):
    """Requirement of a closure test.

    Attributes
    ----------
    name : str
    scores : dict of str to str
        Scores that are judged: key in the result of a `Closure` -> label.
    bar, goal : float
        Largest absolute score; NaN where a score is only reported.
    unit : str
    perfect : float
        Score of the truth itself in an infinite sample.
    """

    name: str
    scores: dict
    bar: float
    goal: float
    unit: str
    perfect: float = 0.0


def _by_redshift(key, label):
    spans = {f"{key}_z{i + 1}": f"{label}, ${low:g}<z<{high:g}$" for i, (low, high) in enumerate(RANGES)}
    return {key: label} | spans


_REPORTED = {name: parameters.LABELS[i] for name, i in parameters.INDEX.items() if name not in ("log10M_formed", "z")}
BARS = (
    Bar("colour components", {f"pc{i + 1}": f"colour PC {i + 1}" for i in range(_COMPONENTS)}, 0.03, 0.015, "KS"),
    Bar("sliced W2", {"w2_ratio": "sliced $W_2$ / floor"}, 3.0, 1.5, "floor"),
    Bar("classifier", {"c2st": "classifier, 26 bands"}, 0.60, 0.53, "accuracy", 0.5),
    Bar("mean redshift", {f"bin{i + 1}": rf"mean $z$, bin {i + 1}" for i in range(_BINS)}, 0.015, 0.002, "1 + z"),
    Bar("mass", _by_redshift("mass", "mass"), 0.05, 0.02, "KS"),
    Bar("star-formation rate", _by_redshift("sfr", "SFR"), 0.05, 0.02, "KS"),
    Bar("redshift", {"ks_z": "$n(z)$"}, math.nan, math.nan, "KS"),
    Bar("other parameters", _REPORTED, math.nan, 0.1, "KS"),
)


class Closure:
    """Scores of a population against galaxies of known truth: the half of a mock that calibration never saw.

    Parameters
    ----------
    flux : Tensor of shape (n, 26)
        Observed flux of the selected galaxies [µJy]; NaN marks a missing band.
    theta : Tensor of shape (n, 16), optional
        Their true parameters; without them, as on the real sky, only photometry is scored.

    Attributes
    ----------
    vectors : Tensor of shape (6, 9)
        Principal components of the truth's colours, largest variance first; the largest weight of each is positive.
    variance : Tensor of shape (9,)
        Cumulative fraction of the variance.
    """

    def __init__(self, flux, theta=None):
        self.flux, self.theta = flux, theta
        magnitude = asinh_magnitude(flux)
        colours = _complete(broad_colours(magnitude))
        values, vectors = torch.linalg.eigh(torch.cov(colours.T))
        vectors = vectors.flip(1).T[:_COMPONENTS]
        self.vectors = vectors * torch.gather(vectors, 1, vectors.abs().argmax(1, keepdim=True)).sign()
        self.variance, self._mean = values.flip(0).cumsum(0) / values.sum(), colours.mean(0)
        self.magnitude = _complete(magnitude)
        self.features = optimal_transport.Features(self.magnitude)
        self.cloud, self._floors = self.features(self.magnitude), {}
        colour = _tomographic(magnitude)
        self.edges = colour[colour.isfinite()].quantile(torch.linspace(0, 1, _BINS + 1)[1:-1].to(flux))
        self._samples, self._binned = self._compared(magnitude, theta), self._in_bins(magnitude, theta)

    def components(self, magnitude):
        """Asinh magnitudes (n, 26) projected on the truth's axes: (m, 6) [mag], for the galaxies complete in the ten broad bands."""
        return (_complete(broad_colours(magnitude)) - self._mean.to(magnitude)) @ self.vectors.to(magnitude).T

    @torch.no_grad()
    def __call__(self, flux, theta=None, *, generator=None):
        """Scores of mock galaxies.

        Parameters
        ----------
        flux : Tensor of shape (m, 26)
            Observed flux of the selected mock galaxies [µJy].
        theta : Tensor of shape (m, 16), optional
            Their parameters.
        generator : torch.Generator, optional
            Of the classifier; without it the classifier, most of the cost, is left out.

        Returns
        -------
        dict of str to float
            The scores of ``BARS`` that the inputs allow; ``bin1`` to ``bin4``, errors of the mean redshift over (1 + z), are signed.
            Besides, ``sliced_w2`` [standard deviations of the features], ``mean_z``, the error of all galaxies, and ``worst_bin``. NaN
            where a sample is empty.
        """
        magnitude = asinh_magnitude(flux)
        samples = self._compared(magnitude, None if self.theta is None else theta)
        found = {key: _distance(values, self._samples[key]) for key, values in samples.items()}
        found["sliced_w2"], found["w2_ratio"] = self._sliced(self.features(_complete(magnitude)))
        if "ks_z" in samples:
            pairs = zip(self._in_bins(magnitude, theta), self._binned, strict=True)
            errors = [_error(z, truth) for z, truth in pairs]
            found |= {f"bin{i + 1}": error for i, error in enumerate(errors)}
            found |= {"worst_bin": max(errors, key=abs), "mean_z": _error(samples["ks_z"], self._samples["ks_z"])}
        if generator is not None:
            found["c2st"] = metrics.c2st(_complete(magnitude).cpu(), self.magnitude.cpu(), generator=generator)
        return found

    def floor(self, flux, theta=None, *, generator, classifier=True):
        """Scores of two samples of one sky, at the sizes at hand.

        Parameters
        ----------
        flux, theta : Tensor of shape (m, 26) and (m, 16)
            More galaxies of the same sky, such as the half that calibration used: pooled with the truth and split again, four times.
        generator : torch.Generator
            Of the splits and of the classifier.
        classifier : bool
            Score the classifier too, on the first split.

        Returns
        -------
        dict of str to float
            Mean absolute scores.
        """
        flux = torch.cat([self.flux, flux])
        theta = None if self.theta is None or theta is None else torch.cat([self.theta, theta])
        rows = []
        for i in range(_SPLITS):
            parts = torch.randperm(len(flux), generator=generator).to(flux.device).split([len(self.flux), len(flux) - len(self.flux)])
            first, second = ((flux[part], None if theta is None else theta[part]) for part in parts)
            rows.append(Closure(*first)(*second, generator=generator if classifier and i == 0 else None))
        return {key: _mean([abs(row[key]) for row in rows if key in row]) for key in rows[0]}

    def _compared(self, magnitude, theta):
        """What Kolmogorov-Smirnov distances compare: score -> values, shape (k,)."""
        found = {f"pc{i + 1}": values for i, values in enumerate(self.components(magnitude).T)}
        if theta is None:
            return found
        z = parameters.column(theta, "z")
        for key, values in (("mass", parameters.column(theta, "log10M_formed")), ("sfr", parameters.log_sfr(theta))):
            found |= {key: values}
            found |= {f"{key}_z{i + 1}": values[(z >= low) & (z < high)] for i, (low, high) in enumerate(RANGES)}
        return found | {"ks_z": z} | {name: parameters.column(theta, name) for name in _REPORTED}

    def _in_bins(self, magnitude, theta):
        """Redshifts of the galaxies in each tomographic bin: a list of Tensors, empty where theta is unknown."""
        colour = _tomographic(magnitude)
        bins = torch.bucketize(colour, self.edges.to(colour)).where(colour.isfinite(), -1)
        return [] if theta is None else [parameters.column(theta, "z")[bins == b] for b in range(_BINS)]

    def _sliced(self, cloud):
        """Sliced W2 from the truth, and its ratio to that of two halves of the truth, all at one sample size."""
        size = min(len(cloud), len(self.cloud) // 2)
        splits = torch.Generator().manual_seed(0)  # the same ones every time, so that two scores can be compared
        halves, chosen = ([torch.randperm(len(x), generator=splits).to(x.device) for _ in range(_SPLITS)] for x in (self.cloud, cloud))
        first, second = ([self.cloud[rows[part]] for rows in halves] for part in (slice(size), slice(size, 2 * size)))
        if size not in self._floors:
            self._floors[size] = _mean(map(optimal_transport.sliced_wasserstein, first, second))
        found = _mean(map(optimal_transport.sliced_wasserstein, (cloud[rows[:size]] for rows in chosen), first))
        return found, found / self._floors[size]


def broad_colours(magnitude):
    """The nine adjacent colours of ``BROAD`` [mag], (n, 9), from magnitudes (n, 26)."""
    return -magnitude[:, [SHORT.index(band) for band in BROAD]].diff(dim=1)


def _tomographic(magnitude):
    return magnitude[:, SHORT.index("r")] - magnitude[:, SHORT.index("i")]


def _complete(rows):
    return rows[rows.isfinite().all(1)]


def _mean(values):
    values = [float(value) for value in values]
    return math.fsum(values) / len(values)


def _distance(values, truth):
    return metrics.ks(values, truth) if len(values) and len(truth) else math.nan


def _error(z, truth):
    return float((z.mean() - truth.mean()) / (1 + truth.mean()))


def verdicts(scores, slack=1.0):
    """Whether a population reaches the goal, the bar or neither, for each of ``BARS``.

    Parameters
    ----------
    scores : dict of str to float
        From a `Closure`.
    slack : float
        Factor on the distance of every bar from the perfect score: 1 for the ``full`` profile, more for smaller trainings.

    Returns
    -------
    dict of str to str
        Bar -> ``"goal"``, ``"bar"`` (slack included) or ``"missed"``, by the worst of the scores that it judges; bars whose scores were not
        taken are left out.
    """
    return {
        bar.name: _verdict([scores[key] for key in bar.scores], bar, slack)
        for bar in BARS
        if not math.isnan(bar.bar) and bar.scores.keys() <= scores.keys()
    }


def _verdict(values, bar, slack=1.0):
    limits = {"goal": bar.goal, "bar": bar.perfect + slack * (bar.bar - bar.perfect)}
    reached = [name for name, limit in limits.items() if all(abs(value) <= limit for value in values)]  # NaN reaches nothing
    return reached[0] if reached else "missed"


def table(scores, judged=None):
    """Scores of several populations side by side.

    Parameters
    ----------
    scores : dict of str to dict
        Population -> scores from a `Closure`; ``floor``, from `Closure.floor`, may be among them.
    judged : str, optional
        The population whose verdicts are given; the last one by default.

    Returns
    -------
    Table
        A row for each score: ``test``, ``unit``, ``bar``, ``goal``, a column for each population and ``verdict``: goal, bar, missed, or
        nothing where there is no bar. NaN where a score was not taken.
    """
    judged = judged or list(scores)[-1]
    rows = [
        [label, bar.unit, bar.bar, bar.goal]
        + [row.get(key, math.nan) for row in scores.values()]
        + ["" if math.isnan(bar.bar) or key not in scores[judged] else _verdict([scores[judged][key]], bar)]
        for bar in BARS
        for key, label in bar.scores.items()
    ]
    found = Table(rows=rows, names=["test", "unit", "bar", "goal", *scores, "verdict"])
    for name in ("bar", "goal", *scores):
        found[name].info.format = ".3f"
    return found


def widths(draws):
    """Information of photometry on each parameter: ratio of posterior to prior width.

    The prior is the population of the galaxies themselves, which their pooled posteriors sample once the calibration has converged.

    Parameters
    ----------
    draws : Tensor of shape (n, k, 16)
        Equally weighted draws from each galaxy's posterior, k >= 2; draws that repeat one another make widths too small.

    Returns
    -------
    Tensor of shape (16,)
        Root of mean variance within galaxies over variance of all draws: 1 where it adds nothing, below ``CONSTRAINED`` if decisive.

    Raises
    ------
    ValueError
        If there is one draw per galaxy, which has no width.
    """
    if draws.ndim != 3 or draws.shape[1] < 2:
        raise ValueError(f"draws of shape (n, k >= 2, 16) are needed to measure a width; got {tuple(draws.shape)}")
    return (draws.var(1).mean(0) / draws.flatten(0, 1).var(0)).sqrt()


def apart(x, y):
    """KS distance of two samples of galaxies, (n, 16) and (m, 16), in each parameter: (16,)."""
    return torch.tensor([metrics.ks(a, b) for a, b in zip(x.T, y.T, strict=True)])


class Constraints(NamedTuple):
    """What photometry says about each of the 16 parameters.

    Attributes
    ----------
    width, apart : Tensor of shape (16,)
        Results of `widths` and `apart`.
    decided : Tensor of shape (16,), bool
        Width below ``CONSTRAINED`` and no further apart than ``AGREE``: data, not the prior, decide.
    """

    width: torch.Tensor
    apart: torch.Tensor
    decided: torch.Tensor


def constraints(draws, first, second):
    """Which parameters photometry decides: posteriors are narrow, and calibrations from two priors agree.

    Parameters
    ----------
    draws : Tensor of shape (n, k, 16)
        Of each galaxy's posterior, as for `widths`.
    first, second : Tensor of shape (m, 16)
        Galaxies of two populations, calibrated from two priors.

    Returns
    -------
    Constraints
    """
    width, distance = widths(draws), apart(first, second)
    return Constraints(width, distance, (width < CONSTRAINED) & (distance <= AGREE))
