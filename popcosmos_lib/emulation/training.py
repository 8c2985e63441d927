"""The optimiser loop of both emulators: Adam over one cycle of the learning rate, with growing batches. Introduced in notebook 02.

References
----------
Alsing et al. (2020), arXiv:1911.11778, sect. 3 (batches that grow); Smith & Topin (2017), arXiv:1708.07120 (one cycle).
"""

import torch
from tqdm import tqdm

__all__ = ["optimise"]

_ENTRIES = 40  # in the learning curve


def optimise(network, loss, score, *, steps, batch, rate, label):
    """Train a network in place.

    Parameters
    ----------
    network : nn.Module
    loss : callable
        ``loss(step, size)`` returns the loss of a batch of ``size`` galaxies, a differentiable Tensor of shape ().
    score : callable
        ``score()`` returns a dict of floats for the learning curve, measured on held-out galaxies.
    steps : int
        Number of optimiser steps.
    batch : (int, int)
        First and last batch size; geometric in between.
    rate : float
        Peak learning rate.
    label : str
        Name of the progress bar.

    Returns
    -------
    list of dict
        ``step``, ``loss`` (mean since the last entry) and what ``score`` returns.
    """
    optimiser = torch.optim.Adam(network.parameters(), rate)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    history, losses = [], []
    for step in tqdm(range(steps), disable=None, desc=label):
        value = loss(step, round(batch[0] * (batch[1] / batch[0]) ** (step / steps)))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        cycle.step()
        losses.append(value.detach())
        if (step + 1) % max(1, steps // _ENTRIES) == 0:
            history.append({"step": step + 1, "loss": float(torch.stack(losses).mean())} | score())
            losses.clear()
    return history
