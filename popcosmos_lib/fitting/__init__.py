"""Posteriors of single galaxies: proposal, exact and ensemble engines, goodness of fit, simulation-based tests, photo-z.

May import population and what is below it.
Introduced in notebook 07.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names stand in __init__.pyi
