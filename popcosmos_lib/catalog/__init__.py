"""Tables in, posteriors out: readers, columns and units, the dry run, chunks of galaxies on many cores.

May import fitting and what is below it.
Introduced in notebook 08.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names stand in __init__.pyi
