"""A population by expectation-maximisation on the posteriors of its galaxies.

Each iteration draws every galaxy's posterior under the current population, then refits the population to the pooled draws. What is modelled
is p(theta | selected), so a galaxy's likelihood is that of data that passed the selection, L / P(selected | theta).

Proposals come from an amortised posterior (a flow given the photometry, trained on mocks of the current population) and, for a share,
from the population itself; exact importance weights correct them. Every galaxy carries particles from one iteration to the next: each may
jump to a proposal (iterated sampling importance resampling) and then walks by preconditioned Crank-Nicolson steps in the coordinates that
the amortised posterior whitens. The density is smoothed by noise that shrinks: unsmoothed it learns where the particles are, and the
next particles return there. Introduced in notebook 04.

References
----------
Bornschein & Bengio (2015), arXiv:1406.2751 (reweighted wake-sleep); Andrieu, Lee & Vihola (2018), arXiv:1312.6432 (i-SIR); Cotter et al.
(2013), arXiv:1202.0709 (Crank-Nicolson steps); Thorp et al. (2025), arXiv:2506.12122 sect. 3.6 (Student-t likelihood).
"""

import math
from typing import NamedTuple

import torch
from tqdm import tqdm, trange

from popcosmos_lib import flows, likelihood, parameters, survey
from popcosmos_lib.checkpoint import Checkpoint
from popcosmos_lib.forward import Photometry

__all__ = ["Posteriors", "posteriors"]

_ROWS = 8192  # points evaluated at once on a CPU: larger chunks fall out of cache
_POPULATION = 0.1  # share of the proposals that come from the population instead of the amortised posterior
_ACCEPTED = 0.25  # acceptance that the length of the walk aims at
_FARTHEST = 8.0  # standard deviations at which features of the photometry are held
_RAREST = 100  # mock galaxies drawn for each one that passes, before giving up
_KEPT = 2  # iterations whose draws are pooled


class Posteriors(NamedTuple):
    """Draws of every galaxy's posterior under the population that they make up.

    Attributes
    ----------
    theta : Tensor of shape (n, k, 16)
        Equally weighted draws, of the last iterations.
    history : dict of str to list
        One entry an iteration. Before the density is refitted: ``iteration``; ``evidence``, mean over held-out galaxies of ln of the mean
        importance weight of the proposals [nat, flux in µJy], a low estimate of ln p(data | selected); ``ess``, median effective number
        of proposals; ``moved``, share of particles that jumped to a proposal; ``accepted``, mean acceptance of the walk; ``mean`` and
        ``sd`` of the draws, lists of 16, and those of the star-formation rate, ``log_sfr`` and ``log_sfr_sd``. After it:
        ``fitted`` and ``held_out``, its -ln density of the draws of galaxies that it was and was not fitted to [nat per unit of
        standardised phi].
    flow : flows.Flow
        Density of the last refit, on the standardised latent (phi - shift) / scale.
    shift, scale : Tensor of shape (16,)
    """

    theta: torch.Tensor
    history: dict
    flow: flows.Flow
    shift: torch.Tensor
    scale: torch.Tensor


def posteriors(
    flux,
    flux_err,
    *,
    forward,
    start,
    generator,
    checkpoint=None,
    floor=0.02,
    iterations=4,
    proposals=16,
    particles=4,
    moves=16,
    n_mocks=20_000,
    start_steps=(400, 2000),
    refit_steps=(200, 400),
    smoothing=(0.1, 0.03),
    held_out=0.1,
    width=96,
    depth=6,
):
    """Draw the posterior of every galaxy of a catalogue under the population that the catalogue itself implies.

    Parameters
    ----------
    flux, flux_err : Tensor of shape (n, 26)
        Photometry and errors of galaxies that passed the selection [µJy]; a band where either is not finite is left out. A galaxy without
        any band draws from the population.
    forward : population.ForwardModel
        Parameters to photometry, with the corrections it holds; its selection is the catalogue's.
    start : Tensor of shape (m, 16) or (n, k, 16), or object with ``sample(n, generator)``
        Galaxies that pass the selection, from which the first density is learned. It must be wide enough to cover the truth. Draws of each
        galaxy's posterior under another prior, k of them, are where its particles start too.
    generator : torch.Generator
        Source of all randomness.
    checkpoint : checkpoint.Checkpoint, optional
        Written after every iteration; a run that was killed goes on from it and ends at the same result.
    floor : float or Tensor of shape (26,)
        Fractional error of the model flux; the emulator's error is added.
    iterations : int
    proposals, particles, moves : int
        Per galaxy and iteration: proposals (a multiple of the particles), particles, and steps of their walk.
    n_mocks : int
        Mock galaxies an iteration, on which the amortised posterior is trained.
    start_steps, refit_steps : (int, int)
        Adam steps of the density and of the amortised posterior, at the start and in each iteration.
    smoothing : (float, float)
        Noise added to the draws that the density learns from, first and last, in units of the start's standard deviation.
    held_out : float
        Share of the galaxies that no density is fitted to; they score it, and have posteriors like all others. Without any the scores
        are NaN.
    width, depth : int
        Of both flows.

    Returns
    -------
    Posteriors

    Raises
    ------
    ValueError
        If the proposals cannot be shared out among the particles, or the start is not finite or does not pass the selection.
    """
    if proposals % particles:
        raise ValueError(f"the proposals must be a multiple of the particles; got {proposals} and {particles}")
    checkpoint = checkpoint or Checkpoint(None, {})
    catalogue = _Catalogue(flux, flux_err, forward, floor)
    points = start if torch.is_tensor(start) else start.sample(n_mocks, generator)
    own, phi = points.dim() == 3, parameters.to_latent(points.to(flux)).reshape(-1, 16)
    if not phi.isfinite().all():
        raise ValueError("the start must be finite: drop failed fits first")
    state = _State(catalogue, phi.mean(0), phi.std(0), generator, particles, {"width": width, "depth": depth})
    found = checkpoint.load()
    if found is None:
        x = (phi - state.shift) / state.scale
        if own:
            state.place(x.view(points.shape))
        state.refit(x, start_steps[0], smoothing[0])
        state.amortise(n_mocks, start_steps[1])
        checkpoint.save(state.saved())
    else:
        state.restore(found)
    for i in trange(len(state.history["iteration"]), iterations, desc="expectation-maximisation", disable=None):
        noise = smoothing[0] * (smoothing[1] / smoothing[0]) ** (i / max(1, iterations - 1))
        state.expect(proposals, moves, held_out)
        state.maximise(refit_steps[0], noise, held_out)
        if i + 1 < iterations:
            state.amortise(n_mocks, refit_steps[1])
        checkpoint.save(state.saved())
    theta = parameters.to_theta(torch.cat(state.pools, 1) * state.scale + state.shift)
    return Posteriors(theta, state.history, state.density, state.shift, state.scale)


class _Catalogue:
    """Photometry as a likelihood and as features for a network."""

    def __init__(self, flux, flux_err, forward, floor):
        self.there = torch.isfinite(flux) & torch.isfinite(flux_err)
        self.flux, self.flux_err = torch.where(self.there, flux, torch.nan), torch.where(self.there, flux_err, torch.nan)
        self.forward, self.floor = forward, likelihood.fractional_error(floor, forward.emulator).to(flux)
        self.softening = self.flux_err.nanmedian(0).values.nan_to_num(1.0)
        raw = self._raw(self.flux, self.flux_err)
        self.mean = raw.nanmean(0).nan_to_num(0.0)
        self.scale = (raw - self.mean).square().nanmean(0).sqrt().nan_to_num(1.0).clamp_min(1e-3)
        self.context = self.features(self.flux, self.flux_err)
        # the truncation is felt by galaxies whose flux in the selection band is known
        self.truncated = self.there[:, forward.reference]

    def _raw(self, flux, flux_err):
        return torch.cat([torch.asinh(flux / (2 * self.softening)), flux_err.log()], -1)

    def features(self, flux, flux_err):
        """asinh fluxes and ln errors, standardised and zero where missing, and which bands are missing: (n, 78)."""
        standard = ((self._raw(flux, flux_err) - self.mean) / self.scale).clamp(-_FARTHEST, _FARTHEST)
        return torch.cat([standard.nan_to_num(0.0), (~flux.isfinite()).to(flux)], -1)

    def log_likelihood(self, phi, rows):
        """ln L / P(selected | theta) of points phi (g, k, 16) for the galaxies ``rows`` (g,); (g, k), -inf outside the mass bounds."""
        theta = parameters.to_theta(phi)
        model = self.forward.flux(theta.flatten(0, 1))
        seen = model * self.forward.survey.zero_point.to(model)
        width = torch.sqrt(self.flux_err[rows, None] ** 2 + (self.floor * seen.view(*phi.shape[:2], -1)) ** 2).flatten(0, 1)
        log_p = self.forward.log_selected(Photometry(seen, width, model, None)).view(phi.shape[:2])
        magnitude = likelihood.ZERO_POINT - 2.5 * seen.log10().view(*phi.shape[:2], -1)
        log_l = likelihood.log_likelihood(magnitude, self.flux[rows, None], self.flux_err[rows, None], self.floor)
        log_l = log_l - torch.where(self.truncated[rows, None], log_p, 0.0)
        mass, (lower, upper) = parameters.column(theta, "log10M_formed"), parameters.BOUNDS[0].tolist()
        return torch.where((mass >= lower) & (mass <= upper), log_l, -torch.inf).nan_to_num(-torch.inf, -torch.inf, -torch.inf)


class _State:
    """What an iteration changes: density, amortised posterior, particles, pooled draws."""

    def __init__(self, catalogue, shift, scale, generator, particles, size):
        self.catalogue, self.shift, self.scale, self.generator = catalogue, shift, scale, generator
        like = catalogue.flux
        self.density = flows.Flow(generator=generator, **size).to(like)
        self.amortised = flows.Flow(context=catalogue.context.shape[1], generator=generator, **size).to(like)
        n = len(like)
        self.order = torch.randperm(n, generator=generator, device=generator.device).to(
            like.device
        )  # the first galaxies of it are held out
        self.x, self.log_l = torch.zeros(n, particles, 16).to(like), torch.full((n, particles), -torch.inf).to(like)
        self.length = torch.full((n,), 0.3).to(like)  # of the walk, 0 to 1
        self.pools = []
        names = "iteration evidence ess moved accepted mean sd log_sfr log_sfr_sd fitted held_out"
        self.history = {name: [] for name in names.split()}

    _TENSORS = ("order", "x", "log_l", "length", "shift", "scale")

    def saved(self):
        return {name: getattr(self, name) for name in self._TENSORS} | {
            "density": self.density.state_dict(), "amortised": self.amortised.state_dict(), "pools": self.pools,
            "history": self.history, "generator": self.generator.get_state(),
        }  # fmt: skip

    def restore(self, found):
        for name in self._TENSORS:
            setattr(self, name, found[name].to(getattr(self, name)))
        self.density.load_state_dict(found["density"])
        self.amortised.load_state_dict(found["amortised"])
        self.pools, self.history = [pool.to(self.x) for pool in found["pools"]], found["history"]
        self.generator.set_state(found["generator"])

    def _normal(self, *shape):
        return torch.randn(*shape, generator=self.generator, device=self.generator.device).to(self.x)

    def _uniform(self, *shape):
        return torch.rand(*shape, generator=self.generator, device=self.generator.device).to(self.x)

    def _parts(self, held_out):
        """Galaxies held out, and the others."""
        cut = round(held_out * len(self.order))
        return self.order[:cut], self.order[cut:]

    @torch.no_grad()
    def place(self, x):
        """Start the particles of every galaxy at points x (n, k, 16), in turn where they are fewer."""
        self.x = x[:, torch.arange(self.x.shape[1], device=x.device) % x.shape[1]].clone()
        rows = torch.arange(len(x), device=x.device).split(max(1, self._chunk() // self.x.shape[1]))
        self.log_l = torch.cat([self.catalogue.log_likelihood(self.x[r] * self.scale + self.shift, r) for r in rows])

    def refit(self, x, steps, noise):
        """Fit the density to points x (n, 16), with noise added to each batch."""

        def batch(generator):
            chosen = x[torch.randint(len(x), (1024,), generator=generator, device=generator.device).to(x.device)]
            return chosen + noise * self._normal(*chosen.shape), None

        flows.train(self.density, batch, generator=self.generator, steps=steps, label="density")

    def maximise(self, steps, noise, held_out):
        """Refit the density to the pooled draws, and score it."""
        held, fitted = self._parts(held_out)
        self.refit(torch.cat([pool[fitted].flatten(0, 1) for pool in self.pools]), steps, noise)
        for name, rows in (("fitted", fitted[: max(len(held), 1)]), ("held_out", held)):
            with torch.no_grad():
                points = self.pools[-1][rows].flatten(0, 1).split(_ROWS)
                self.history[name].append(-float(torch.cat([self.density.log_prob(part) for part in points]).mean()))

    @torch.no_grad()
    def _mocks(self, n):
        """Mock galaxies of the density: standardised latents, mean flux, errors, and errors with the model's own in quadrature."""
        forward, parts, missing, tried = self.catalogue.forward, [], n, 0
        while missing > 0:
            x = self.density.sample(min(self._chunk(), missing + missing // 4 + 64), self.generator)[0]
            tried += len(x)
            if tried > _RAREST * n:
                raise ValueError("hardly any galaxy of the start passes the selection of the forward model: give galaxies that do")
            draws = forward.draws(len(x), self.generator)
            seen = forward(parameters.to_theta(x * self.scale + self.shift), draws)
            mean = seen.flux - seen.flux_err * draws.noise.to(x)
            parts.append([values[seen.selected][:missing] for values in (x, mean, seen.flux_err)])
            missing -= len(parts[-1][0])
        x, mean, error = (torch.cat(column) for column in zip(*parts, strict=True))
        return x, mean, error, torch.sqrt(error**2 + (self.catalogue.floor * mean) ** 2)

    def amortise(self, n_mocks, steps):
        """Train the amortised posterior on fresh mocks of the density; their noise, and what is missing, are drawn anew in each batch."""
        catalogue, mocks = self.catalogue, self._mocks(n_mocks)

        def batch(generator):
            where = {"generator": generator, "device": generator.device}
            rows = torch.randint(n_mocks, (512,), **where).to(self.x.device)
            x, mean, error, width = (values[rows] for values in mocks)
            flux = mean + width * catalogue.forward.survey.noise(mean.shape, generator).to(mean)
            passed = survey.select(flux, catalogue.forward.selection)
            there = catalogue.there[torch.randint(len(catalogue.there), (512,), **where).to(self.x.device)]
            context = catalogue.features(torch.where(there, flux, torch.nan), torch.where(there, error, torch.nan))
            return x[passed], context[passed]

        flows.train(self.amortised, batch, generator=self.generator, steps=steps, label="amortised posterior")

    @torch.no_grad()
    def expect(self, proposals, moves, held_out):
        """Move every galaxy's particles, pool them, and note how it went."""
        rows = torch.arange(len(self.x), device=self.x.device).split(max(1, self._chunk() // proposals))
        parts = [self._expect(r, proposals, moves) for r in tqdm(rows, desc="posteriors", disable=None, leave=False)]
        draws, evidence, ess, moved, accepted = (torch.cat(columns) for columns in zip(*parts, strict=True))
        self.pools = [*self.pools, draws][-_KEPT:]
        theta = parameters.to_theta(draws * self.scale + self.shift).flatten(0, 1)
        log_sfr = parameters.log_sfr(theta)
        note = {
            "iteration": len(self.history["iteration"]) + 1, "evidence": float(evidence[self._parts(held_out)[0]].mean()),
            "ess": float(ess.median()), "moved": float(moved.mean()), "accepted": float(accepted.mean()), "mean": theta.mean(0).tolist(),
            "sd": theta.std(0).tolist(), "log_sfr": float(log_sfr.mean()), "log_sfr_sd": float(log_sfr.std()),
        }  # fmt: skip
        for name, value in note.items():
            self.history[name].append(value)

    def _chunk(self):
        return _ROWS if self.x.device.type == "cpu" else 64 * _ROWS

    def _target(self, x, rows):
        """ln likelihood, and ln density of the population, of points x (g, k, 16)."""
        return self.catalogue.log_likelihood(x * self.scale + self.shift, rows), self.density.log_prob(x)

    def _expect(self, rows, proposals, moves):
        context = self.catalogue.context[rows][:, None]
        if not self.log_l[rows].isfinite().any():  # the first iteration: nothing to keep
            self.x[rows] = self.amortised.sample(self.x.shape[1], self.generator, context[:, 0])[0]
            self.log_l[rows] = self._target(self.x[rows], rows)[0]
        evidence, ess, moved = self._jump(rows, context, proposals)
        draws, accepted = [self.x[rows]], 0.0
        for _ in range(2):
            accepted = accepted + 0.5 * self._walk(rows, context, moves // 2)
            draws.append(self.x[rows])
        return torch.cat(draws[1:], 1), evidence, ess, moved, accepted

    def _propose(self, rows, context, proposals):
        x, log_q = self.amortised.sample(proposals, self.generator, context[:, 0])
        own = self._uniform(*log_q.shape) < _POPULATION
        x[own] = self.density.sample(int(own.sum()), self.generator)[0]
        log_q[own] = self.amortised.log_prob(x[own], context.expand(-1, proposals, -1)[own])
        return x, log_q

    def _jump(self, rows, context, proposals):
        """i-SIR: each particle chooses, by weight, between itself and its share of the proposals."""
        x, log_q = self._propose(rows, context, proposals)
        log_l, log_p = self._target(x, rows)
        current = self.x[rows]
        weight = log_l + log_p - _mixed(log_q, log_p)
        log_p = self.density.log_prob(current)
        own = self.log_l[rows] + log_p - _mixed(self.amortised.log_prob(current, context), log_p)
        k = current.shape[1]
        choice = torch.cat([own[..., None], weight.unflatten(1, (k, -1))], -1)
        gumbel = -torch.log(-torch.log(self._uniform(*choice.shape).clamp(1e-7, 1 - 1e-7)))
        chosen = (choice + gumbel).argmax(-1)  # (g, k)
        candidates = torch.cat([current[:, :, None], x.unflatten(1, (k, -1))], 2)
        self.x[rows] = candidates.gather(2, chosen[..., None, None].expand(-1, -1, 1, 16))[:, :, 0]
        likelihoods = torch.cat([self.log_l[rows][..., None], log_l.unflatten(1, (k, -1))], -1)
        self.log_l[rows] = likelihoods.gather(2, chosen[..., None])[..., 0]
        ess = torch.exp(2 * weight.logsumexp(-1) - (2 * weight).logsumexp(-1)).nan_to_num(0.0)
        evidence = (weight.logsumexp(-1) - math.log(proposals)).clamp_min(-1e4)
        return evidence, ess, (chosen > 0).to(x).mean(-1)

    def _walk(self, rows, context, moves):
        """Crank-Nicolson steps in the base space of the amortised posterior, which they leave invariant; the rest is accepted or not."""
        x, log_l = self.x[rows], self.log_l[rows]
        u, log_det = self.amortised.to_base(x, context)
        value = log_l + self.density.log_prob(x) - flows.log_normal(u) - log_det
        accepted = 0.0
        for _ in range(moves):
            length = (self.length[rows] * 4 ** (2 * self._uniform(len(rows)) - 1)).clamp_max(1.0)[:, None, None]
            new_u = (1 - length**2).sqrt() * u + length * self._normal(*u.shape)
            new_x, log_det = self.amortised.from_base(new_u, context)
            new_l, log_p = self._target(new_x, rows)
            new_value = (new_l + log_p - flows.log_normal(new_u) - log_det).nan_to_num(-torch.inf, -torch.inf, -torch.inf)
            taken = self._uniform(*log_l.shape).log() < new_value - value
            u, x = torch.where(taken[..., None], new_u, u), torch.where(taken[..., None], new_x, x)
            log_l, value = torch.where(taken, new_l, log_l), torch.where(taken, new_value, value)
            rate = taken.to(x).mean(-1)
            accepted = accepted + rate / moves
            self.length[rows] = (self.length[rows] * torch.exp(0.3 * (rate - _ACCEPTED))).clamp(0.01, 1.0)
        self.x[rows], self.log_l[rows] = x, log_l
        return accepted


def _mixed(log_q, log_p):
    """ln density of the proposals: amortised posterior and population in their shares."""
    return torch.logaddexp(log_q + math.log(1 - _POPULATION), log_p + math.log(_POPULATION))
