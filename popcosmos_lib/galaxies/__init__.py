"""What a galaxy is: its 16 parameters, the cosmology, published relations, priors, and the literature universe.

May import artefacts.
Introduced in notebook 01 (parameters) and notebook 03 (universe).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names stand in __init__.pyi
