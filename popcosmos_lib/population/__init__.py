"""The density of galaxies p(theta): calibration by three objectives, mock catalogues, closure tests.

May import survey and what is below it.
Introduced in notebook 04 (calibration) and notebook 05 (closure).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names stand in __init__.pyi
