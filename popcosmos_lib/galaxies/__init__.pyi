from . import parameters as parameters
from . import universe as universe
