"""pop-cosmos, rebuilt: the small library behind the notebooks."""

__version__ = "0.1.0"
