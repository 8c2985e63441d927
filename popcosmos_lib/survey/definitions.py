"""Surveys by name or by a file of one's own: bands, depths and cuts.

A definition is YAML; ``survey/surveys.yaml`` explains the fields and has the built-in ones. ``cosmos2020`` is none of them: its errors
follow the distribution that notebook 03 learned from a catalogue. Used by ``mocks`` and notebook 06.
"""

import re
from importlib import resources
from pathlib import Path

import torch
import yaml

from popcosmos_lib.survey import observation
from popcosmos_lib.synthesis import filters

__all__ = ["BUILT_IN", "FixedDepth", "gaussian", "load"]

_TEXT = (resources.files("popcosmos_lib.survey") / "surveys.yaml").read_text()
_DEFINITIONS = yaml.safe_load(_TEXT)
BUILT_IN = ["cosmos2020", *_DEFINITIONS]
_FIELDS = {"bands": True, "depths": True, "cuts": True, "floor": False, "source": False}  # field: must it be there


def gaussian(shape, generator):
    """Unit-normal noise, the counterpart of ``survey.student_t``."""
    return torch.randn(shape, generator=generator, device=generator.device)


class FixedDepth:
    """Flux errors of a survey of one depth per band: background and a fractional floor in quadrature.

    Parameters
    ----------
    sigma : Tensor of shape (n_band,)
        Error of a faint source [µJy].
    floor : Tensor of shape (n_band,)
        Fractional error of a bright one.
    """

    width = 0  # random numbers per galaxy

    def __init__(self, sigma, floor):
        self.background, self.floor = sigma, floor

    def sample(self, flux, generator=None, draws=None):
        """Error [µJy] of galaxies of given noiseless flux, (n, n_band) both; nothing about it is random."""
        return torch.hypot(self.background.to(flux).expand_as(flux), self.floor.to(flux) * flux)


def load(name="cosmos2020", profile="published"):
    """A survey by its name or from a file.

    Parameters
    ----------
    name : str or Path
        One of ``BUILT_IN``, or the path of a YAML file with the fields explained in ``survey/surveys.yaml``.
    profile : str
        As for ``survey.load``; it matters to ``cosmos2020`` only.

    Returns
    -------
    survey.Survey

    Raises
    ------
    ValueError
        If there is no such survey, or the definition is not one; the message says which field is wrong.
    store.Missing
        If ``cosmos2020`` is asked for before notebook 03 has been run.
    """
    name = str(name)
    if name == "cosmos2020":
        return observation.load(profile)
    if name in _DEFINITIONS:
        return _survey(_DEFINITIONS[name], name, Path())
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise ValueError(f"unknown survey {name!r}: use one of {', '.join(BUILT_IN)}, or the path of a YAML file with its bands and depths")
    try:
        definition = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from None
    return _survey(definition, path.name, path.parent)


def _survey(definition, name, folder):
    """The survey of a definition, once every field has been checked."""

    def wrong(text):
        return ValueError(f"survey {name}: {text}")

    if not isinstance(definition, dict) or not definition.keys() <= _FIELDS.keys():
        unknown = f"; got {', '.join(map(str, definition))}" if isinstance(definition, dict) else ""
        raise wrong(f"the fields are {', '.join(_FIELDS)}{unknown}")
    absent = [field for field, required in _FIELDS.items() if required and field not in definition]
    if absent:
        raise wrong(f"there is no field {absent[0]!r}")
    bands, depths, cuts, floor = (definition.get(field, 0) for field in ("bands", "depths", "cuts", "floor"))
    if not isinstance(bands, dict) or not bands or not all(re.fullmatch(r"[A-Za-z]\w*", str(band)) for band in bands):
        raise wrong(f"bands are pairs of a short name that begins with a letter and a curve, such as {{r: sdss_r0}}; got {bands!r}")
    if not isinstance(depths, dict) or depths.keys() != bands.keys():
        raise wrong(f"depths need one entry for each band, {', '.join(bands)}; got {depths!r}")
    for band, depth in depths.items():
        if not isinstance(depth, list) or len(depth) != 2 or not all(_number(x) for x in depth) or not depth[1] > 0:
            raise wrong(f"the depth of {band} is [AB magnitude, its significance in sigma], such as [25.0, 5]; got {depth!r}")
    floors = floor if isinstance(floor, dict) else dict.fromkeys(bands, floor)
    if floors.keys() != bands.keys() or not all(_number(x) and 0 <= x < 1 for x in floors.values()):
        raise wrong(f"floor is a fraction between 0 and 1, or one for each band, {', '.join(bands)}; got {floor!r}")
    curves = {band: filters.beside(curve, folder) for band, curve in bands.items()}
    try:
        filters.load(list(curves.values()))
        observation.select(torch.zeros(1, len(bands)), str(cuts), bands)
    except ValueError as error:
        raise wrong(error) from None
    magnitude, significance = torch.tensor([depths[band] for band in bands], dtype=torch.float64).T
    sigma = filters.flux_from_magnitude(magnitude) / significance
    uncertainty = FixedDepth(sigma, torch.tensor([floors[band] for band in bands], dtype=torch.float64))
    return observation.Survey(uncertainty, bands=curves, cuts=str(cuts), noise=gaussian)


def _number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)
