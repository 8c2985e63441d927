"""Checkpoints: read back by the same settings only, harmless when damaged."""

import torch

from popcosmos_lib.artefacts.checkpoint import Checkpoint


def test_the_same_settings_read_what_was_saved_and_others_do_not(tmp_path):
    generator = torch.Generator().manual_seed(1)
    path = tmp_path / "deep" / "run.pt"
    kept = Checkpoint(path, {"steps": 3})
    assert kept.load() is None
    kept.save({"step": 2, "weights": {"a": torch.ones(2)}, "generator": generator.get_state(), "history": [1.0, 2.0]})
    found = Checkpoint(path, {"steps": 3}).load()
    assert found["step"] == 2 and found["history"] == [1.0, 2.0] and bool((found["weights"]["a"] == 1).all())
    again = torch.Generator()
    again.set_state(found["generator"])
    assert torch.equal(torch.rand(3, generator=again), torch.rand(3, generator=generator))
    assert Checkpoint(path, {"steps": 4}).load() is None
    kept.clear()
    assert kept.load() is None and list(path.parent.iterdir()) == []


def test_a_truncated_file_is_named_and_not_used(tmp_path, capsys):
    kept = Checkpoint(tmp_path / "run.pt", {})
    kept.save({"step": 1})
    (tmp_path / "run.pt").write_bytes((tmp_path / "run.pt").read_bytes()[:50])
    assert kept.load() is None and "run.pt cannot be read" in capsys.readouterr().out


def test_without_a_path_nothing_is_kept():
    kept = Checkpoint(None, {})
    kept.save({"step": 1})
    assert kept.load() is None
    kept.clear()
