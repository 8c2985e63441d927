"""What a survey makes of a galaxy: flux errors, noise, zero points, selection, likelihood, tomographic bins.

May import emulation and what is below it.
Introduced in notebook 03.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names stand in __init__.pyi
