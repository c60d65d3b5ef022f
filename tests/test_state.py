"""Checkpoints and journals: whole or not at all, the newest few, cut where training resumes."""

import json

import pytest
import tiny
import torch

from pisasr.method.adapters import attach, parameters_of, train_only
from pisasr.training.state import Checkpoints, append_row, load_state, truncate


def make_learner(seed):
    torch.manual_seed(seed)
    unet = tiny.make_unet()
    attach(unet, "pix", 2, 8.0)
    train_only(unet, "pix")
    optimizer = torch.optim.AdamW(parameters_of(unet, "pix").values(), lr=0.1)
    return unet, optimizer


def move(unet, optimizer):
    for index, parameter in enumerate(parameters_of(unet, "pix").values()):
        parameter.grad = tiny.wave(parameter.shape, index)
    optimizer.step()


@pytest.fixture
def learner():
    unet, optimizer = make_learner(0)
    move(unet, optimizer)
    return unet, optimizer


def test_a_checkpoint_brings_back_adapter_and_optimizer(learner, tmp_path):
    Checkpoints(tmp_path / "new", 2).save("pix", 7, *learner, scaler=None)
    other = make_learner(1)
    assert load_state(Checkpoints(tmp_path / "new", 2).newest("pix"), *other, scaler=None) == 7
    for unet, optimizer in (learner, other):
        move(unet, optimizer)
    one, two = (parameters_of(unet, "pix") for unet, _ in (learner, other))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_newest_few_of_each_stage_stay(learner, tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.newest("pix") is None
    for step in (8, 9, 10):
        checkpoints.save("pix", step, *learner, scaler=None)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["pix-00000009", "pix-00000010"]
    assert checkpoints.newest("pix")["step"] == 10 and checkpoints.newest("sem") is None


def test_a_damaged_one_is_named_and_an_older_one_taken(learner, tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, 2)
    for step in (1, 2):
        checkpoints.save("pix", step, *learner, scaler=None)
    newest = tmp_path / "pix-00000002"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert checkpoints.newest("pix")["step"] == 1 and "pix-00000002" in caplog.text


def test_a_full_disk_leaves_the_checkpoints_that_are_there(learner, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save("pix", 1, *learner, scaler=None)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save("pix", 2, *learner, scaler=None)
    assert [file.name for file in tmp_path.iterdir()] == ["pix-00000001"]


def test_a_journal_is_cut_after_the_step_that_training_resumes_from(tmp_path):
    file = tmp_path / "log.jsonl"
    truncate(file, "pix", 0)
    for stage in ("pix", "sem"):
        for step in (1, 2):
            append_row(file, {"stage": stage, "step": step, "l2": float("nan")})
    with file.open("ab") as journal:
        journal.write(b'{"stage": "se')
    for stage, step, left in (("sem", 2, 4), ("sem", 1, 3), ("sem", 0, 2), ("pix", 1, 1)):
        truncate(file, stage, step)
        assert len(file.read_text().splitlines()) == left
    assert json.loads(file.read_text()) == {"stage": "pix", "step": 1, "l2": None}
