"""Parameters to a spectrum to magnitudes: stars, gas, dust, torus, intergalactic medium, filters; FSPS as reference.

May import galaxies and what is below it.
Introduced in notebook 01.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names stand in __init__.pyi
