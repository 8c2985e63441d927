"""Files that outlive a run: stored artefacts and their keys, checkpoints, provenance, downloads, shipped weights.

Imports no other room: every other one may import it.
Introduced in notebook 00; listed in notebook 99.
"""
