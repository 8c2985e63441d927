"""Densities that are learned from points: the diffusion model, its noise schedules and solvers, and normalising flows.

May import synthesis and what is below it; not sampling, its neighbour.
Introduced in notebook 04.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names stand in __init__.pyi
