"""pop-cosmos rebuilt: one room (package) a stage, from ``galaxies`` to ``catalog``; ``docs/architecture.md`` has the map.

Nothing is loaded before it is used: ``from popcosmos_lib import inference`` finds ``fitting.inference``, and so on for what users import.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names stand in __init__.pyi
