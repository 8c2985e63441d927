from . import inference as inference
