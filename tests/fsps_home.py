"""A synthetic ``SPS_HOME`` of black-body stars, on which the real FSPS of fsps 0.4.7 (MIST, MILES, DL07) runs.

Nothing here is FSPS data: only the file names, the number of rows and columns, and the units are those that its Fortran reads. The stars
are black bodies on a mass-luminosity law, so that spectra are smooth and what dust, gas and redshift do to them can be compared with
formulae. About 40 MB, two seconds.
"""

import os

import numpy as np

from popcosmos_lib.synthesis.lines import CALIBRATED

LIGHT, PLANCK, BOLTZMANN, STEFAN, LSUN = 2.99792458e18, 6.62607e-27, 1.380649e-16, 5.670374e-5, 3.839e33  # Angstrom/s, then cgs
METALS = [f"m{z:.2f}" for z in (2.5, 2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25)] + ["p0.00", "p0.25", "p0.50"]
N_BANDS = 159  # top-hat bands "toy_001" ... in allfilters.dat
LINES = {6564.6: 2.86, 4862.7: 1.0, 5008.2: 3.0, 3728.0: 2.0, 1215.67: 20.0}  # vacuum [Angstrom]: luminosity relative to H-beta
METAL_LINES = (5008.2, 3728.0)  # these follow the metallicity of the gas, and the first its ionisation


def band(index):
    """Edges [Angstrom] of the top-hat band ``toy_<index>``, counted from one."""
    centre = np.geomspace(1300, 2e5, N_BANDS)[index - 1]
    return 0.93 * centre, 1.07 * centre


def weights(row):
    """For a worker of ``fsps_backend``: mass that FSPS gives to its ages [log yr], and its magnitudes of toy_040 and toy_070 at 10 pc."""
    from popcosmos_lib.synthesis import fsps_backend

    population, age = fsps_backend.population(), fsps_backend._apply(row)
    population.get_spectrum(tage=age)
    magnitudes = population.get_mags(tage=age, redshift=0.0, bands=["toy_040", "toy_070"])
    return population.ssp_ages, population._ssp_weights.sum(1), magnitudes + 2.5 * np.log10(fsps_backend._MASS)


def poisoned(row, without):
    """Stands in for a task of ``fsps_backend``: the process dies at 1e8 Msun, raises at 1e9 Msun, else magnitudes are the mass."""
    if row[0] == 8.0:
        os._exit(3)
    if row[0] == 9.0:
        raise ArithmeticError("isochrone out of reach")
    return np.full(26, row[0]), 0.6, 0.25


def start_without_fsps(bands):
    """Stands in for the start of a worker, to test workers without the seconds that FSPS takes."""


def start_broken(bands):
    raise OSError("no isochrones")


def _planck(wave, temperature):
    """B_nu [erg/s/cm2/Hz/sr]."""
    x = PLANCK * LIGHT / (wave * BOLTZMANN * temperature)
    return 2 * PLANCK * (LIGHT / wave) ** 3 / 2.99792458e10**2 / np.expm1(np.minimum(x, 600.0))


def _unit(wave, temperature):
    """L_nu of a black body of unit luminosity [1/Hz]."""
    return np.pi * _planck(wave, temperature) / (STEFAN * temperature**4)


def _power(wave, table_wave, light):
    """Integral over frequency of a table once FSPS has interpolated it (in logarithms) to its own wavelengths."""
    inside = wave[(wave >= table_wave[0]) & (wave <= table_wave[-1])]
    return -np.trapezoid(np.exp(np.interp(np.log(inside), np.log(table_wave), np.log(light))), LIGHT / inside)


def _isochrone(log_age, log_z):
    """Rows: log age, initial and actual mass, log L, log T, log g, C/O, phase, log mass loss."""
    turnoff = np.clip(((10**log_age - 3e6) / 1e10) ** -0.4 if log_age > 6.5 else 100.0, 0.2, 100.0)
    mass = np.geomspace(0.081, turnoff, 40)
    log_l = 3.5 * np.log10(mass)
    log_t = 3.7613 + 0.25 * log_l - 0.4 * np.log10(mass) - 0.02 * log_z
    phase = np.zeros_like(mass)
    if turnoff < 8:  # a giant branch at 4000 K
        mass = np.append(mass, turnoff * np.linspace(1.001, 1.03, 10))
        log_l = np.append(log_l, np.linspace(max(log_l[-1], 0.5), max(log_l[-1], 0.5) + 1.5, 10))
        log_t = np.append(log_t, np.full(10, 3.602 - 0.02 * log_z))
        phase = np.append(phase, np.full(10, 2.0))
    log_g = np.log10(mass) + 4 * log_t - log_l - 10.61
    fixed = np.ones_like(mass)
    return np.column_stack([log_age * fixed, mass, mass, log_l, log_t, log_g, 0.4 * fixed, phase, -12 * fixed])


def build(home):
    """Write the tree under ``home`` (a Path) and return it."""

    def put(name, *lines):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")

    def column(name, values, form="{:.6E}"):
        put(name, *(form.format(value) for value in values))

    def same(first, *others):
        for other in others:
            (home / other).symlink_to((home / first).name)

    wave = np.geomspace(91, 1e8, 5994)
    log_t, log_g = np.linspace(3.3, 4.69897, 68), np.linspace(-1.02, 5.5, 19)
    column("SPECTRA/BaSeL3.1/basel_logt.dat", log_t)
    column("SPECTRA/BaSeL3.1/basel_logg.dat", log_g)
    column("SPECTRA/MILES/miles.lambda", wave)
    column("SPECTRA/MILES/miles.res", np.full(5994, 70.0))
    miles = ["0.0008", "0.0035", "0.0097", "0.0190", "0.0300"]
    put("SPECTRA/MILES/zlegend.dat", *miles)
    eddington = (_planck(wave, 10 ** log_t[:, None]) / 4).astype("<f4")
    np.broadcast_to(eddington, (19, 68, 5994)).tofile(home / "SPECTRA/MILES/imiles_z0.0008.spectra.bin")
    same("SPECTRA/MILES/imiles_z0.0008.spectra.bin", *(f"SPECTRA/MILES/imiles_z{z}.spectra.bin" for z in miles[1:]))

    def library(name, rows, columns, temperature, per_wavelength=False):
        """A spectral library whose columns are all the same black body."""
        grid = np.geomspace(91, 1e8, rows)
        light = _unit(grid, temperature) * (LIGHT / grid**2 if per_wavelength else 1.0)
        put(name, *(f"{w:.5E} {columns}*{value:.4E}" for w, value in zip(grid, light, strict=True)))

    hot, cool = "SPECTRA/Hot_spectra/", "SPECTRA/AGB_spectra/"
    wmbasic = ["0.0001", "0.0010", "0.0020", "0.0030", "0.0040", "0.0060", "0.0080", "0.0100", "0.0140", "0.0200", "0.0300", "0.0400"]
    column(hot + "WMBASIC.teff", np.linspace(4.39794, 4.69897, 11))
    put(hot + "WMBASIC_zlegend.dat", *wmbasic)
    library(hot + "WMBASIC_z0.0001.spec", 5508, 33, 40_000.0)
    same(hot + "WMBASIC_z0.0001.spec", *(f"{hot}WMBASIC_z{z}.spec" for z in wmbasic[1:]))
    column(hot + "ipagb.teff", np.linspace(5e4, 1.8e5, 14))
    library(hot + "ipagb_solar.spec", 9281, 14, 1e5)
    same(hot + "ipagb_solar.spec", hot + "ipagb_halo.spec")
    grid = np.geomspace(91, 1e8, 1963)
    row = " ".join(f"{value:.3E}" for value in _unit(grid, 6e4) + 1e-60)
    wolf_rayet = [line for z in (0.001, 0.004, 0.008, 0.02, 0.04) for t in np.linspace(4.5, 5.0, 12) for line in (f"{t:.3f} {z}", row)]
    put(hot + "CMFGEN_WN_Zall.spec", " ".join(f"{w:.5E}" for w in grid), *wolf_rayet)
    same(hot + "CMFGEN_WN_Zall.spec", hot + "CMFGEN_WC_Zall.spec")
    for kind in ("WN", "WC"):
        column(f"{hot}CMFGEN_{kind}.teff", np.linspace(4.5, 5.0, 12))
    orich = (f"1.0 22*{t:.0f}" for t in np.linspace(2450, 3950, 9))
    put(cool + "Orich.teff", "#", "9.99 " + " ".join(f"{z:.2f}" for z in np.linspace(-1.98, 0.2, 22)), *orich)
    put(cool + "Crich.teff", "#", *(f"1.0 {t:.0f}" for t in np.linspace(2000, 3200, 5)))
    column(cool + "Crich_Aringer.teff", np.linspace(2400, 4000, 9))
    library(cool + "Orich.spec", 6146, 9, 3000.0, per_wavelength=True)
    library(cool + "Crich.spec", 6146, 5, 2600.0, per_wavelength=True)
    library(cool + "Crich_Aringer.spec", 9032, 9, 3000.0)

    put("ISOCHRONES/MIST/zlegend.dat", *METALS)
    for name in METALS:
        log_z = float(name[1:]) * (-1 if name[0] == "m" else 1)
        with open(home / f"ISOCHRONES/MIST/isoc_z{name}.dat", "w") as file:
            for age in np.linspace(5.0, 10.3, 107):
                file.write("#\n")
                np.savetxt(file, _isochrone(age, log_z), fmt="%.3f %.7f %.7f %.4f %.4f %.4f %.2f %.1f %.2f")

    micron = np.geomspace(1, 1e4, 1001)
    for k in range(7):
        grey = _unit(micron * 1e4, 25.0 + k) / micron**2 + 1e-5 * _unit(micron * 1e4, 700.0)  # cold grains, and hot ones for IRAC
        put(f"dust/dustem/DL07_MW3.1_{k}0.dat", "#", "#", *(f"{w:.4E} 44*{v:.4E}" for w, v in zip(micron, grey, strict=True)))
    shells = [line for t in np.linspace(2000, 4000, 6) for tau in np.geomspace(0.001, 10, 50) for line in (f"{t} {tau:.5f}", "100*1.0")]
    put("dust/dusty/Orich_dusty.spec", "100", " ".join(f"{w:.4E}" for w in np.geomspace(1e3, 1e7, 100)), *shells)
    same("dust/dusty/Orich_dusty.spec", "dust/dusty/Crich_dusty.spec")
    torus, depths = np.geomspace(100, 1e8, 125), (5, 10, 20, 30, 40, 60, 80, 100, 150)
    shapes = [0.5 * _unit(torus, 1200.0 - 5 * tau) + 0.5 * _unit(torus, 300.0) + 1e-30 for tau in depths]
    table = np.column_stack([torus, *(shape / _power(wave, torus, shape) for shape in shapes)])
    lines = [" ".join(f"{value:.4E}" for value in values) for values in table]
    put("dust/Nenkova08_y010_torusg_n10_q2.0.dat", "#", "#", "#", " ".join(map(str, depths)), *lines)
    witt = [f"{w:.1f} {t:.2f} 6*1.0" for t in np.linspace(0.25, 50, 18) for w in np.geomspace(1000, 30_000, 25)]
    for name in ("h", "c"):
        put(f"dust/alldirty_{name}.dat", "#", "#", "#", *witt)
    put("dust/Gordon03_table4.dat", *(f"{w:.4f} {1 / w:.4f} 1.0" for w in np.geomspace(2.2, 0.116, 30)))

    quiet = [wave for wave in CALIBRATED if min(abs(wave / strong - 1) for strong in LINES) > 1e-4]
    fillers = [*quiet, *np.geomspace(1e4, 1e6, 166 - len(LINES) - len(quiet))]
    light = dict(sorted({**LINES, **dict.fromkeys(fillers, 1e-12)}.items()))
    continuum, strengths = ["#", " ".join(f"{w:.5E}" for w in grid)], ["#", " ".join(f"{w:.5E}" for w in light)]
    below = int((grid < 912).sum())
    for z in np.linspace(-2.0, 0.5, 11):
        for age in np.linspace(1e6, 2e7, 10):
            for u in np.linspace(-4, -1, 7):
                head = f"{z:.3f} {age:.3E} {u:.2f}"
                continuum += [head, f"{below}*0.0 {1963 - below}*5.0E-61"]
                metals = {METAL_LINES[0]: 10 ** (0.5 * z + 0.4 * (u + 2.5)), METAL_LINES[1]: 10 ** (0.5 * z)}
                strengths += [head, " ".join(f"{value * metals.get(w, 1.0) * 4.76e-13 / LSUN:.3E}" for w, value in light.items())]
    for end, text in (("cont", continuum), ("lines", strengths)):
        put(f"nebular/ZAU_ND_mist.{end}", *text)
        same(f"nebular/ZAU_ND_mist.{end}", f"nebular/ZAU_WD_mist.{end}")
    put("data/emlines_info.dat", *(f"{w:.4f},toy" for w in light))
    column("SPECTRA/xrb/xsp.lambda", np.geomspace(1, 1e8, 15_000))
    for z in ("-1.30", "-1.00", "-0.80", "-0.70", "-0.50", "-0.40", "-0.30", "-0.20", "+0.00", "+0.20", "+0.30"):
        put(f"SPECTRA/xrb/xsp_feh{z}.spec", *["15000*1.0E-90"] * 10)

    standard = np.geomspace(91, 1.6e6, 1221)
    vega = _unit(standard, 9600.0) * LIGHT / standard**2
    vega = vega * 3.46e-9 / np.interp(5556.0, standard, vega)
    sun = _unit(standard, 5772.0) * 3.828e33 / (4 * np.pi * 3.0857e19**2)
    put("SPECTRA/A0V_KURUCZ_92.SED", "#", *(f"{w:.6E} {f:.6E}" for w, f in zip(standard, vega, strict=True)))
    put("SPECTRA/SUN_STScI.SED", *(f"{w:.6E} {f:.6E}" for w, f in zip(standard, sun, strict=True)))
    edges = [band(i) for i in range(1, N_BANDS + 1)]
    points = [[*np.linspace(low, high, 15)] for low, high in edges]
    curves = [f"#\n{row[0]:.2f} 0.0\n" + "\n".join(f"{w:.2f} 1.0" for w in row[1:-1]) + f"\n{row[-1]:.2f} 0.0" for row in points]
    put("data/allfilters.dat", *curves)
    put("data/FILTER_LIST", *(f"{i} toy_{i:03d} toy top-hat" for i in range(1, N_BANDS + 1)))
    put("data/magsun.dat", *(f"{i} 5.0 5.0" for i in range(1, N_BANDS + 1)))
    put("data/filter_lambda_eff.dat", *(f"{i} {low:.1f}" for i, (low, _) in enumerate(edges, 1)))
    index = (3900 + 80.0 * np.arange(30))[:, None] + np.array([-15, 15, -45, -20, 20, 45])
    put("data/allindices.dat", *["#"] * 4, *(" ".join(f"{value:.2f}" for value in row) + " 2 toy" for row in index))
    put("data/sfh.dat", "0.0 1.0 0.019", "13.0 1.0 0.019")
    put("data/imf.dat", "0.08 0.5 1.3", "0.5 120.0 2.3")
    (home / "OUTPUTS").mkdir()
    return home
