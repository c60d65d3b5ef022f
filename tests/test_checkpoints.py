"""Checkpoints: whole or not there, newest first, broken ones passed over by name."""

import errno
import os
from hashlib import sha256

import pytest
import torch

from pisasr.files import temporary_name
from pisasr.training.state import Broken, Checkpoint, Checkpoints, read_checkpoint


def make(step: int, stage: str = "pix") -> Checkpoint:
    return Checkpoint(
        stage, step, {"adapter.a": torch.full((3,), float(step))}, {"guard": {"skipped": step / 3}}
    )


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


def hashed(content: bytes) -> bytes:
    return content + sha256(content).digest()


DAMAGE = {
    "first byte": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "a tensor's byte": lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:],
    "last byte": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "cut": lambda content: content[: len(content) // 2],
    "too long": lambda content: content + b"\0",
    "empty": lambda content: b"",
    "no state": lambda content: hashed(b"{}\n" + content[:-32].partition(b"\n")[2]),
    "no tensors": lambda content: hashed(content[:-32].partition(b"\n")[0]),
    "junk": lambda content: hashed(b"[1, 2"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_one_is_named_and_passed_over(kept, caplog, damage):
    place = kept.folder / "pix-00000006"
    place.write_bytes(DAMAGE[damage](place.read_bytes()))
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


def test_a_full_disk_leaves_the_others_whole(kept, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        kept.save(make(8))
    assert (
        sorted(os.listdir(kept.folder)) == ["pix-00000004", "pix-00000006"]
        and kept.newest("pix").step == 6
    )


def test_what_a_kill_left_behind_is_no_checkpoint_and_goes(kept):
    left = temporary_name(kept.folder / "pix-00000009")
    left.write_bytes(b"half")
    assert kept.newest("pix").step == 6
    kept.save(make(8))
    assert not left.exists()
