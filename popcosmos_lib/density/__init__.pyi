from . import diffusion as diffusion
