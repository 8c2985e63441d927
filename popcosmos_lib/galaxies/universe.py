"""A galaxy population assembled from published relations: the truth behind the built-in mock.

Each relation is a function with its citation, so that a notebook can plot it beside a calibrated model; `sample`
draws the 16 parameters of `parameters` from all of them together. Masses named ``log_mass`` are *surviving* stellar
masses, as in the literature; the first column of ``theta`` is the mass formed. Introduced in notebook 03.

The construction follows the spirit of Prospector-beta (Wang et al. 2023) with the star-forming sequence, dust and gas
added. It is a plausible sky, not a fit to COSMOS: notebook 03 prints how close its counts come.
"""

import math
from functools import cache

import numpy as np
import torch

from popcosmos_lib.galaxies import cosmology, parameters
from popcosmos_lib.galaxies.mass_limits import hermite_limit, mass_completeness, mass_limit, mass_mask

__all__ = [
    "SQUARE_DEGREE", "agn_fraction", "attenuation", "attenuation_slope", "cosmic_star_formation", "gas_metallicity", "hermite_limit",
    "ionisation", "mass_completeness", "mass_function", "mass_limit", "mass_mask", "number_density", "quiescent_fraction", "sample",
    "star_forming_sequence", "stellar_metallicity", "surviving_fraction", "surviving_mass",
]  # fmt: skip

SQUARE_DEGREE = (math.pi / 180.0) ** 2  # steradian
_QUIESCENT_SSFR, _QUIESCENT_SPREAD = -11.8, 0.36  # log10 [1/yr]; Tanaka (2015) as coded in steppz
_SEQUENCE_SPREAD = 0.3  # dex about the star-forming sequence (Speagle+14)
_SOLAR_OXYGEN = 8.69  # 12 + log(O/H) of the Sun, Asplund+09
# share of the tilt each star-formation bin receives when a history is made to match its recent rate: none for the
# youngest two, all of it for the oldest, so that a quiescent galaxy fades over ~1 Gyr instead of stopping at 100 Myr
_TILT = (0.0, 0.0, 0.3, 0.6, 0.9, 1.0, 1.0)


def _quadratic(z, values):
    """The parabola through ``values`` at the anchors z = 0.2, 1.6 and 3.0 of Leja+20."""
    a, b, c = np.polyfit([0.2, 1.6, 3.0], values, 2)
    return (a * z + b) * z + c


def mass_function(log_mass: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Number density of galaxies per dex of stellar mass.

    Parameters
    ----------
    log_mass, z : Tensor of shape (...)
        Surviving stellar mass [log10 Msun]; redshift.

    Returns
    -------
    Tensor of shape (...)
        log10 phi [Mpc^-3 dex^-1].

    References
    ----------
    Leja et al. (2020), arXiv:1910.04168 (double Schechter, 0.2 < z < 3). Below 0.2 the shape is held. Above 3 both
    normalisations fall by 0.66 dex and the low-mass slope steepens by 0.23 per unit redshift: our fit, tied to Leja+20
    at z = 3, to the mass functions of Weibel et al. (2024) at z = 4, 5, 6 (0.1 dex rms between 10^8 and 10^11 Msun).
    """
    inner, beyond = z.clamp(0.2, 3.0), (z - 3.0).clamp_min(0.0)
    first = _quadratic(inner, [-2.44, -3.08, -4.14]) - 0.66 * beyond
    second = _quadratic(inner, [-2.89, -3.29, -3.51]) - 0.66 * beyond
    x = log_mass - _quadratic(inner, [10.79, 10.88, 10.84])
    power = 10 ** (first + x * (-0.28 + 1)) + 10 ** (second + x * (-1.48 - 0.23 * beyond + 1))
    return torch.log10(math.log(10) * power) - 10**x / math.log(10)


@cache
def _mass_redshift_table(n_z=600, n_mass=240):
    """Cells uniform in z and in height above the mass limit: cumulative galaxies per square degree, and the total."""
    z = (torch.arange(n_z, dtype=torch.float64) + 0.5) * (6.0 / n_z)
    height = (torch.arange(n_mass, dtype=torch.float64) + 0.5) / n_mass
    floor = mass_limit(z)[:, None]
    span = 12.6 - floor  # above 10^12.6 Msun the mass function is below 1e-40 per Mpc^3
    density = 10 ** mass_function(floor + height * span, z[:, None]) * span / n_mass
    volume = cosmology.comoving_volume(z)[:, None] / (4 * math.pi) * SQUARE_DEGREE * (6.0 / n_z)
    cumulative = (density * volume).flatten().cumsum(0)
    return cumulative / cumulative[-1], float(cumulative[-1])


def number_density() -> float:
    """Galaxies per square degree above `mass_limit` over 0 < z < 6: what one draw of `sample` stands for."""
    return _mass_redshift_table()[1]


def quiescent_fraction(log_mass: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Fraction of quiescent galaxies.

    Parameters
    ----------
    log_mass, z : Tensor of shape (...)
        Surviving stellar mass [log10 Msun]; redshift, held at 0.3 and 5.

    Returns
    -------
    Tensor of shape (...)
        Fraction, 0 to 1.

    References
    ----------
    Our logistic fit to the COSMOS-Web fractions of Koprowski et al. (2026), 9.25 < log M < 11.25, 0.5 < z < 5
    (rms 0.03).
    """
    z = z.clamp(0.3, 5.0)
    knee = 10.64 - 0.197 * torch.log1p(z)
    return (0.86 * torch.exp(-0.482 * z) * torch.sigmoid(3.32 * (log_mass - knee)) + 0.308 * torch.exp(-2.065 * z)).clamp_max(1.0)


def star_forming_sequence(log_mass: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Ridge of the star-forming sequence.

    Parameters
    ----------
    log_mass, z : Tensor of shape (...)
        Surviving stellar mass [log10 Msun]; redshift.

    Returns
    -------
    Tensor of shape (...)
        log10 SFR [Msun/yr].

    References
    ----------
    Leja et al. (2022), arXiv:2110.04314, ridge-line broken power law, 0.2 < z < 3 (held below). Below 10^9.5 Msun, where
    that sample ends, it is continued with slope 0.95 (nearly constant sSFR, as Koprowski et al. 2026 measure). Above z = 3
    the ridge of z = 3 is raised by the evolution of Speagle et al. (2014) between z = 3 and z at the same mass.
    """
    inner = z.clamp(0.2, 3.0)
    high = 0.03746 + 0.3448 * inner - 0.1156 * inner**2
    low = 0.9605 + 0.04990 * inner - 0.05984 * inner**2
    level = 0.2516 + 1.118 * inner - 0.2006 * inner**2
    x = log_mass.clamp_min(9.5) - (10.22 + 0.3826 * inner - 0.04491 * inner**2)
    younger = cosmology.age(z.clamp_min(3.0)) - cosmology.age(torch.full_like(z, 3.0))  # Gyr, <= 0
    ridge = level + torch.where(x > 0, high, low) * x - 0.95 * (9.5 - log_mass).clamp_min(0.0)
    return ridge - younger * (0.026 * log_mass - 0.11)


def cosmic_star_formation(z: torch.Tensor) -> torch.Tensor:
    """Cosmic star-formation rate density [Msun/yr/Mpc^3], Salpeter masses (Madau & Dickinson 2014 eq. 15)."""
    return 0.015 * (1 + z) ** 2.7 / (1 + ((1 + z) / 2.9) ** 5.6)


def surviving_fraction(age: torch.Tensor) -> torch.Tensor:
    """Mass of stars and remnants left after ``age`` [Gyr], per mass formed (Behroozi, Wechsler & Conroy 2013 eq. 14, Chabrier)."""
    return 1 - 0.05 * torch.log1p(age * 1e3 / 1.4)


def _returned(z):
    """log10 of the surviving over the formed mass at 40 % of the age of the universe: within 0.03 dex of what a drawn history gives."""
    return surviving_fraction(0.4 * cosmology.age(z)).log10()


def surviving_mass(theta: torch.Tensor) -> torch.Tensor:
    """Surviving stellar mass by the convention of this universe.

    Parameters
    ----------
    theta : Tensor of shape (n, 16)
        SPS parameters; the mass formed is their first column.

    Returns
    -------
    Tensor of shape (n,)
        log10 mass [Msun], 0.2 dex or so below the mass formed; the abscissa of every relation in this module.
    """
    return parameters.column(theta, "log10M_formed") + _returned(parameters.column(theta, "z"))


def stellar_metallicity(log_mass: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scatter of the stellar metallicity at a surviving mass [log10 Msun].

    Returns
    -------
    mean, sigma : Tensor of shape (...)
        log10 Z/Zsun and half of P84 - P16 [dex]. Gallazzi et al. (2005), z ~ 0, as fitted in the authors' steppz code
        (which doubles the width for use as a prior; a universe has the width that was measured). Held at all redshifts.
    """
    mean = -0.2593 + 0.3839 * torch.tanh(2.0229 * log_mass - 20.373)
    return mean, 0.5 * (0.6884 - 0.3712 * torch.tanh(2.4763 * log_mass - 25.741))


def gas_metallicity(log_mass: torch.Tensor, log_sfr: torch.Tensor) -> torch.Tensor:
    """Gas-phase metallicity of the fundamental relation, log10 Zgas/Zsun.

    Parameters
    ----------
    log_mass, log_sfr : Tensor of shape (...)
        Surviving stellar mass [log10 Msun] and SFR [log10 Msun/yr].

    References
    ----------
    Curti et al. (2020), arXiv:1910.00597, eq. 5 and table 6; oxygen relative to 8.69 (Asplund+09).
    """
    turnover = 10.11 + 0.56 * log_sfr
    return 8.779 - 0.31 / 2.1 * torch.log10(1 + 10 ** (-2.1 * (log_mass - turnover))) - _SOLAR_OXYGEN


def ionisation(log_ssfr: torch.Tensor) -> torch.Tensor:
    """Ionisation parameter of star-forming gas, log10 U, from log10 sSFR [1/yr].

    The trend, not the numbers, is that of Kaasinen et al. (2018): U follows sSFR at all redshifts. Slope 0.3 through
    log U = -3.1 at sSFR = 1e-10/yr joins local galaxies to those of z ~ 2 (log U about -2.7 at 10^-8.6/yr).
    """
    return (-3.1 + 0.3 * (log_ssfr + 10.0)).clamp(-3.6, -2.0)


def attenuation(log_mass: torch.Tensor) -> torch.Tensor:
    """Diffuse optical depth at 5500 A of a star-forming galaxy of surviving mass [log10 Msun].

    Garn & Best (2010) eq. for A(Halpha) against mass, 8.5 < log M < 11.5 and held outside, found to hold to z ~ 1.5;
    lines suffer birth cloud and diffuse dust alike, so half of it is diffuse, and 0.82 turns 6563 A into 5500 A.
    """
    x = (log_mass - 10.0).clamp(-1.15, 1.5)  # the cubic has its minimum at -1.15: below it the dust is held
    halpha = 0.91 + 0.77 * x + 0.11 * x**2 - 0.09 * x**3
    return halpha / 0.82 / 1.086 / 2


def attenuation_slope(tau2: torch.Tensor) -> torch.Tensor:
    """Slope of the diffuse curve relative to Calzetti, from its depth (Chevallard et al. 2013 eq. 10; Calzetti has 0.75)."""
    return 0.75 - 2.8 / (1 + 3 * tau2.clamp_min(0.0).sqrt())


def agn_fraction(log_mass: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Fraction of galaxies with a bright torus, f_AGN above ~3 %.

    A smooth bump at 10^10.3 Msun and z = 1.5 with the level that makes ~40 % of a Ch1 < 26 sample bright, as
    Thorp+25 sect. 4.5 infer; the shape is ours after their figures 20 and 22.
    """
    return 0.62 * torch.exp(-0.5 * ((log_mass - 10.3) / 1.5) ** 2 - 0.5 * ((z - 1.5) / 2.5) ** 2)


@cache
def _age_table():
    """Ages [Gyr, rising] and the redshifts they belong to, for the inverse of `cosmology.age`."""
    z = torch.linspace(cosmology.Z_MAX, 0.0, 4001, dtype=torch.float64)
    return cosmology.age(z), z


def _star_formation_ratios(z, log_ssfr, generator):
    """Six SFR ratios: the cosmic history, a Student-t walk about it, then a tilt that sets the last 100 Myr to ``log_ssfr``."""
    edges = parameters.age_edges(z)
    middle = (edges[:, -1:] - 0.5 * (edges[:, 1:] + edges[:, :-1])).clamp_min(0.0)  # cosmic time at mid bin [Gyr]
    ages, redshifts = (table.to(z) for table in _age_table())
    expected = cosmic_star_formation(redshifts[torch.searchsorted(ages, middle).clamp_max(len(ages) - 1)]).log10()
    u = torch.rand(len(z), 6, generator=generator, device=z.device).clamp(1e-6, 1 - 1e-6)
    walk = 0.3 * (2 * u - 1) / (2 * u * (1 - u)).sqrt()  # Student-t with nu = 2, scale 0.3 (Leja+19)
    ratios = -expected.diff(dim=-1) + walk.clamp(-5.0, 5.0)
    mass = torch.cat([torch.zeros_like(ratios[:, :1]), -ratios.cumsum(-1)], -1) * math.log(10) + edges.diff(dim=-1).log()
    young, old, tilt = mass[:, :2].logsumexp(-1), mass[:, 2:], torch.tensor(_TILT).to(z)
    recent = (10 ** (log_ssfr + 8)).clamp(1e-9, 0.9)
    wanted = young + torch.log1p(-recent) - recent.log()  # log mass that the old bins must add up to
    shift = torch.zeros_like(z)
    for _ in range(12):  # Newton on a convex, monotonic function of the shift: slope between 0.3 and 1
        tilted = old + shift[:, None] * tilt[2:]
        total = tilted.logsumexp(-1)
        shift = shift + (wanted - total) / ((tilted - total[:, None]).exp() * tilt[2:]).sum(-1)
    return (ratios - (shift / math.log(10))[:, None] * tilt.diff()).clamp(-4.99, 4.99)


def _truncated_normal(mean, sigma, name, generator):
    """Normal draws cut to the open bounds of parameter ``name``."""
    low, high = (parameters.BOUNDS[parameters.INDEX[name]].to(mean)[i] for i in (0, 1))
    cdf_low, cdf_high = torch.special.ndtr((low - mean) / sigma), torch.special.ndtr((high - mean) / sigma)
    u = torch.rand(mean.shape, generator=generator, device=mean.device)
    draw = mean + sigma * torch.special.ndtri((cdf_low + u * (cdf_high - cdf_low)).clamp(1e-7, 1 - 1e-7))
    margin = 1e-3 * (high - low)
    return torch.minimum(torch.maximum(draw, low + margin), high - margin)


def sample(n: int, generator: torch.Generator) -> torch.Tensor:
    """Draw galaxies of the literature universe, each standing for the same volume of sky.

    Parameters
    ----------
    n : int
        Galaxies to draw.
    generator : torch.Generator
        Source of randomness; its device is the device of the result.

    Returns
    -------
    theta : Tensor of shape (n, 16)
        SPS parameters in the order of ``parameters.NAMES``, float32, strictly inside ``parameters.BOUNDS``. ``n / number_density()``
        is the area they cover [deg^2].
    """
    device = generator.device
    uniform = lambda *shape: torch.rand(*shape, generator=generator, device=device)  # noqa: E731
    normal = lambda: torch.randn(n, generator=generator, device=device)  # noqa: E731
    table = _mass_redshift_table()[0].to(device)
    cell = torch.searchsorted(table, torch.rand(n, generator=generator, device=device, dtype=torch.float64)).clamp_max(len(table) - 1)
    z = ((cell // 240 + uniform(n)) * (6.0 / 600)).clamp(1e-3, 5.999)
    floor = mass_limit(z)
    log_mass = floor + (cell % 240 + uniform(n)) / 240 * (12.6 - floor)

    formed = log_mass - _returned(z)
    quiescent = uniform(n) < quiescent_fraction(log_mass, z)
    forming = star_forming_sequence(log_mass, z) + _SEQUENCE_SPREAD * normal()
    log_sfr = torch.where(quiescent, log_mass + _QUIESCENT_SSFR + _QUIESCENT_SPREAD * normal(), forming)
    ratios = _star_formation_ratios(z, log_sfr - formed, generator)

    stars = _truncated_normal(*stellar_metallicity(log_mass), "log10Z", generator)
    gas = _truncated_normal(gas_metallicity(log_mass, log_sfr), torch.full_like(z, 0.1), "log10Zgas", generator)
    log_u = _truncated_normal(ionisation(log_sfr - log_mass), torch.full_like(z, 0.2), "log10Ugas", generator)
    # quiescent galaxies keep a third of the dust (A_V ~ 0.2 at 10^10.5 Msun, Salim+18); lognormal scatter 0.25 dex
    tau2 = attenuation(log_mass) * torch.where(quiescent, 0.33, 1.0) * 10 ** (0.25 * normal())
    tau2 = tau2.clamp(1e-3, 3.99)
    slope = _truncated_normal(attenuation_slope(tau2), torch.full_like(z, 0.2), "dust_index", generator)
    cloud = _truncated_normal(torch.ones_like(z), torch.full_like(z, 0.3), "dust1_fraction", generator)
    active = uniform(n) < agn_fraction(log_mass, z)
    torus = torch.where(active, math.log(0.12), math.log(5e-4))
    torus = _truncated_normal(torus, torch.where(active, 0.7, 1.3), "lnfAGN", generator)
    low, high = parameters.BOUNDS[parameters.INDEX["lntauAGN"]].tolist()
    depth = low + (high - low) * uniform(n).clamp(1e-3, 1 - 1e-3)
    theta = [formed.clamp(7.0, 12.99), stars, *ratios.T, tau2, slope, cloud, torus, depth, gas, log_u, z]
    return torch.stack(theta, -1).float()
