"""Checkpoints: whole or not there, newest first, broken ones passed over by name."""

import errno
import json
import os

import pytest
import torch

from pisasr.training import checkpoints
from pisasr.training.checkpoints import MANIFEST, STATE, TENSORS, Broken, Checkpoint, Checkpoints, read_checkpoint


def make(step: int, stage: str = "pix") -> Checkpoint:
    return Checkpoint(stage, step, {"adapter.a": torch.full((3,), float(step))}, {"guard": {"skipped": step / 3}})


@pytest.fixture
def kept(tmp_path):
    store = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (2, 4, 6):
        store.save(make(step))
    return store


def test_what_is_saved_comes_back_to_the_bit(kept):
    found = kept.newest("pix")
    assert (found.stage, found.step, found.state) == ("pix", 6, {"guard": {"skipped": 2.0}})
    assert torch.equal(found.tensors["adapter.a"], torch.full((3,), 6.0))
    assert kept.newest("sem") is None


def test_older_ones_go_and_other_stages_stay(kept):
    kept.save(make(1, "sem"))
    assert sorted(os.listdir(kept.folder)) == ["pix-00000004", "pix-00000006", "sem-00000001"]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "no manifest", "junk manifest", "empty folder"])
def test_a_broken_one_is_named_and_passed_over(kept, caplog, damage):
    place = kept.folder / "pix-00000006"
    file = place / {"no manifest": MANIFEST, "junk manifest": MANIFEST}.get(damage, TENSORS)
    content = file.read_bytes()
    if damage == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "junk manifest":
        file.write_bytes(b"[1, 2")
    else:
        file.unlink()
    if damage == "empty folder":
        (place / STATE).unlink(), (place / MANIFEST).unlink()
    with pytest.raises(Broken):
        read_checkpoint(place)
    assert kept.newest("pix").step == 4
    assert "pix-00000006 is broken" in caplog.text
    kept.save(make(6))  # its step comes again
    assert kept.newest("pix").step == 6


def test_one_that_lacks_what_a_run_needs_is_passed_over(kept, caplog):
    kept.save(Checkpoint("pix", 8, {"adapter.a": torch.zeros(3)}, {}))
    assert kept.newest("pix").step == 8
    assert Checkpoints(kept.folder, 2, wanted=("guard",)).newest("pix").step == 6
    assert "says nothing of guard" in caplog.text


@pytest.mark.parametrize("number", range(3))
def test_a_full_disk_leaves_the_others_whole(kept, monkeypatch, number):
    write, calls = checkpoints.write_through, []

    def full(path, content):
        calls.append(path)
        if len(calls) == number + 1:
            path.write_bytes(content[:1])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(checkpoints, "write_through", full)
    with pytest.raises(OSError, match="No space"):
        kept.save(make(8))
    assert sorted(os.listdir(kept.folder)) == ["pix-00000004", "pix-00000006"] and kept.newest("pix").step == 6


def test_what_a_kill_left_behind_is_no_checkpoint_and_goes(kept):
    left = kept.folder / f"{checkpoints.UNFINISHED}pix-00000009"
    left.mkdir()
    (left / TENSORS).write_bytes(b"half")
    assert kept.newest("pix").step == 6
    kept.save(make(8))
    assert not left.exists()


def test_the_manifest_tells_sizes_and_hashes(kept):
    place = kept.folder / "pix-00000006"
    manifest = json.loads((place / MANIFEST).read_text())
    assert {name: row["bytes"] for name, row in manifest.items()} == {n: (place / n).stat().st_size for n in manifest}
