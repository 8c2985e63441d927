from . import emulator as emulator
from . import release as release
