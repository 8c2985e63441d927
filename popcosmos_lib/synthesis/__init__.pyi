from . import filters as filters
from . import sps as sps
