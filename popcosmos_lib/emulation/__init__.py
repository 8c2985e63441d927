"""The synthesis emulated: photometry and spectra, training, and the papers' public networks, read without running code.

May import density, sampling and what is below them.
Introduced in notebook 02.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names stand in __init__.pyi
