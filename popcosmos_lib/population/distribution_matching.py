"""Matching a mock to a catalogue: gradient steps on a population's weights, zero points and line strengths.

The loss is ``optimal_transport.Transport`` or ``summary_statistics.Summaries``, plus ``ForwardModel.leak``. The second term penalises
galaxies that a smooth density leaks across the sharp limit of the catalogue; without it, leaking more is the cheapest way to lower the
distance. Base draws are fixed, so the loss is a smooth function of what is learned; there are more of them than galaxies, so that enough
remain after the selection. The weights kept are those that do best on galaxies and base draws not used in the steps. Introduced in
notebook 04.

References
----------
Alsing et al. (2024), arXiv:2402.00935 sect. 4; Thorp et al. (2025), arXiv:2506.12122 sect. 3.5.
"""

import copy
import math

import torch
from tqdm import tqdm

from popcosmos_lib.artefacts.checkpoint import Checkpoint
from popcosmos_lib.galaxies import parameters
from popcosmos_lib.population import optimal_transport
from popcosmos_lib.population.model import inside
from popcosmos_lib.survey.photometry import asinh_magnitude

__all__ = ["match"]

_ROWS = 8192  # mock galaxies evaluated at once: larger chunks fall out of cache
_NEAR = 1.05  # corrections go on changing after the loss has reached the scatter of its sample, of a few per cent
_MATTERS = 0.2  # of the largest first gradient of a line: one with less moves less, where Adam would move it on noise alone
_LEAST = 0.02  # fraction of a start's galaxies that must pass the selection


class _Mock:
    """Galaxies of fixed base draws and fixed noise: ``more`` for every galaxy of a catalogue of ``n``, the first n that pass are taken."""

    def __init__(self, n, more, forward, generator, like):
        self.n, self.size = n, math.ceil(more * n)
        self.base = torch.randn(self.size, 16, generator=generator, device=generator.device).to(like)
        self.draws = forward.draws(self.size, generator)

    def observe(self, population, forward, rows):
        """Galaxies and their photometry; what ``Population.sample`` would replace, a mass out of bounds, counts as not selected."""
        theta = population.from_base(self.base[rows])
        seen = forward(theta, type(self.draws)(*(d[rows] for d in self.draws)))
        return theta, seen._replace(selected=seen.selected & inside(theta.detach()))

    @torch.no_grad()
    def whole(self, population, forward):
        """Parameters and magnitudes of the galaxies taken, fraction that passes, and mean leak."""
        theta, magnitude, missed, passed = [], [], 0.0, 0
        for rows in torch.arange(self.size).split(_ROWS):
            points, seen = self.observe(population, forward, rows)
            theta.append(points[seen.selected])
            magnitude.append(asinh_magnitude(seen.flux[seen.selected]))
            missed += float(forward.leak(seen)) * len(rows)
            passed += int(seen.selected.sum())
        return torch.cat(theta)[: self.n], torch.cat(magnitude)[: self.n], passed / self.size, missed / self.size


def match(
    population, forward, loss, held, *, generator, checkpoint=None, iterations=100, batch=1024, lr=1e-4, charge=0.2, corrections=False,
    lr_zero_point=3e-3, lr_lines=3e-2, more=1.25, every=10, patience=8,
):  # fmt: skip
    """Adjust a population, and optionally its corrections, until its mock photometry matches that of a catalogue.

    Parameters
    ----------
    population, forward : Population, ForwardModel
        Starting point, and the model that holds the starting values of the corrections; neither is changed.
    loss : optimal_transport.Transport or summary_statistics.Summaries
        Loss on the galaxies to learn from.
    held : Tensor of shape (n, 26)
        asinh magnitudes of the held-out galaxies, which decide when to stop.
    generator : torch.Generator
        Source of base draws, batches and directions.
    checkpoint : checkpoint.Checkpoint, optional
        Written at every score; a resumed run ends at the same weights, bit by bit.
    iterations, batch, lr : int, int, float
        Adam steps, galaxies per step (all, if there are fewer) and learning rate of the weights; all rates follow a cosine to zero.
    corrections, lr_zero_point, lr_lines : bool, float, float
        Whether to learn zero points and line strengths too, and their rates (a step of Adam is about as large as its rate).
    charge, more : float, float
        Weight of ``ForwardModel.leak`` in the loss; base draws per galaxy, more than one.
    every, patience : int
        Steps between held-out scores, and the number of scores without improvement after which to stop.

    Returns
    -------
    population : Population
        The one with the best held-out loss; with corrections, the last one within 5 % of the best.
    corrections : tuple of Tensors of shape (26,) and (44,); its zero points and line strengths
    history : dict of str to list
        One entry per score: ``step``; mean ``training`` loss; held-out ``loss``, sliced W2 of ``magnitudes`` and ``colours``; ``mean_z``,
        ``sd_z``, fraction ``selected``, ``mean`` and ``sd`` of the 16 parameters of the mock; the corrections.

    Raises
    ------
    ValueError
        If almost no galaxy passes the selection, or the loss or its gradient is not finite.
    """
    checkpoint = checkpoint or Checkpoint(None, {})
    saved = checkpoint.load()
    begin = saved["begin"] if saved else generator.get_state()
    generator.set_state(begin)  # so that a run that goes on has the base draws of the one that was killed
    rates = [lr, lr_zero_point, lr_lines] if corrections else [lr]
    state = _State(population, forward, loss, held, rates, charge, more, generator)
    first = state.begin(saved, generator)
    losses = []
    for step in tqdm(range(first + 1, iterations + 1), desc="calibration", initial=first, total=iterations, disable=None):
        if state.stale() >= patience:
            break
        losses.append(state.step(step, iterations, batch, generator))
        if step % every == 0 or step == iterations:
            state.record(step, sum(losses) / len(losses))
            losses = []
            checkpoint.save(state.saved() | {"begin": begin, "generator": generator.get_state()})
    checkpoint.clear()
    state.restore(state.best)
    return state.population.eval().requires_grad_(False), tuple(x.detach() for x in state.learned), state.history


class _State:
    """What a calibration by matching changes: the population, the corrections, the optimiser, and the record of how well they do."""

    def __init__(self, population, forward, loss, held, rates, charge, more, generator):
        corrections = len(rates) > 1
        self.loss, self.charge, self.near = loss, charge, _NEAR if corrections else 1.0
        self.population = copy.deepcopy(population).requires_grad_(True)
        self.learned = [x.detach().to(held).clone().requires_grad_(corrections) for x in (forward.log_zero_point, forward.line_scale)]
        self.forward = forward.corrected(*self.learned)
        self.mock, self.other = (_Mock(n, more, self.forward, generator, held) for n in (len(loss.target), len(held)))
        learnt = [list(self.population.net.parameters()), *([x] for x in self.learned)]
        self.groups = [{"params": params, "rate": rate} for params, rate in zip(learnt, rates, strict=False)]
        self.optimiser = torch.optim.Adam(self.groups, lr=rates[0])
        self.ruler, self.judge = optimal_transport.Transport(loss.target).against(held), loss.against(held)
        self.history, self.best = {}, None

    def weights(self):
        """All that is learned, by name."""
        corrections = {name: value.detach() for name, value in zip(("log_zero_point", "line_scale"), self.learned, strict=True)}
        return {"population": self.population.state_dict()} | corrections

    def restore(self, weights):
        self.population.load_state_dict(weights["population"])
        for value, name in zip(self.learned, ("log_zero_point", "line_scale"), strict=True):
            value.data.copy_(weights[name])

    def saved(self):
        return {"weights": self.weights(), "best": self.best, "optimiser": self.optimiser.state_dict(), "history": self.history}

    def begin(self, saved, generator):
        """Score the start, or go on from a checkpoint; returns the step reached."""
        if not saved:
            self.record(0, math.nan)
            return 0
        self.history, self.best = saved["history"], saved["best"]
        self.restore(saved["weights"])
        self.optimiser.load_state_dict(saved["optimiser"])
        generator.set_state(saved["generator"])
        return self.history["step"][-1]

    def stale(self):
        """Records since the best one, or since the last whose loss is less than ``near`` times the smallest."""
        losses = self.history["loss"]
        first = losses.index(min(losses))
        return len(losses) - 1 - max(i for i, loss in enumerate(losses) if i == first or loss < self.near * losses[first])

    def record(self, step, training):
        """Score the held-out galaxies, and keep the weights where they are the best so far."""
        theta, magnitude, selected, missed = self.other.whole(self.population, self.forward)
        if selected < _LEAST:
            raise ValueError(
                f"only {selected:.1%} of the mock galaxies pass {self.forward.selection} at step {step}: start from galaxies that do, "
                "or lower the rate lr"
            )
        apart = self.ruler.parts(magnitude)
        z = parameters.column(theta, "z")
        values = {
            "step": step, "training": training, "loss": float(self.judge(magnitude)) + self.charge * missed,
            "magnitudes": float(apart[0]), "colours": float(apart[1]), "mean_z": float(z.mean()), "sd_z": float(z.std()),
            "selected": selected, "mean": theta.mean(0).tolist(), "sd": theta.std(0).tolist(),
            "log_zero_point": self.learned[0].tolist(), "line_scale": self.learned[1].tolist(),
        }  # fmt: skip
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)
        if self.stale() == 0:
            self.best = copy.deepcopy(self.weights())

    def step(self, step, iterations, batch, generator):
        """One step of Adam down the loss of a batch; returns the loss."""
        self.optimiser.zero_grad(set_to_none=True)
        value = self._backward(min(batch, self.mock.n), generator)
        steep = torch.nn.utils.get_total_norm([x.grad for group in self.groups for x in group["params"] if x.grad is not None])
        if not math.isfinite(value + steep):
            raise ValueError(f"the loss is {value} and its gradient {steep} at step {step}: lower the rate lr")
        if step == 1 and len(self.groups) > 1:
            self.optimiser.param_groups[2]["eps"] = _MATTERS * float(self.learned[1].grad.abs().max())
        for group in self.optimiser.param_groups:
            group["lr"] = group["rate"] * 0.5 * (1 + math.cos(math.pi * (step - 1) / iterations))
        self.optimiser.step()
        self.learned[1].data.clamp_(min=-1.0)  # a line can be absent, not negative
        return value

    def _backward(self, batch, generator):
        """Gradients from a batch of base draws (or all, in fixed order), trimmed to the size of a batch of the catalogue.

        Brightness and leaking move the galaxies alone: zero points and lines would otherwise make up for a population, or a sample, that is
        too bright by chance, since magnitudes scatter by more than one and colours by a few tenths. They learn from the colours.
        """
        mock = self.mock
        count = math.ceil(batch * mock.size / mock.n)
        rows = torch.arange(mock.size)
        if count < mock.size:
            rows = torch.randperm(mock.size, generator=generator, device=generator.device)[:count]
        theta, seen = mock.observe(self.population, self.forward, rows)
        brightness, colours = self.loss.parts(asinh_magnitude(seen.flux[seen.selected][:batch]), generator)
        brightness = brightness + self.charge * self.forward.leak(seen)
        pull = torch.autograd.grad(brightness, theta, retain_graph=True)[0]
        torch.autograd.backward([colours, theta], [None, pull])
        return float((brightness + colours).detach())
