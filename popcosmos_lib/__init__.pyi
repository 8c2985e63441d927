from . import catalog as catalog
from . import population as population
from . import survey as survey
from .density import diffusion as diffusion
from .emulation import emulator as emulator
from .emulation import release as release
from .fitting import inference as inference
from .galaxies import parameters as parameters
from .galaxies import universe as universe
from .synthesis import filters as filters
from .synthesis import sps as sps

__version__: str
