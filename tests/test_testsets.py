"""Which pictures are scored, and that nobody scores others by mistake."""

import json
import os
import shutil
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pisasr.errors import PisasrError
from pisasr.evaluation import testsets
from pisasr.evaluation.testsets import (
    TestSet,
    digest_picture,
    known_sets,
    load_sets,
    verify_known,
    verify_manifest,
)

REALSR = Path(os.environ.get("PISASR_REALSR", Path(__file__).parents[2] / "shared" / "realsr"))
needs_realsr = pytest.mark.skipif(
    not REALSR.is_dir(), reason="no RealSR beside this checkout, nor in PISASR_REALSR"
)


def fill(folder: Path, *names: str, seed: int = 0, side: int = 8) -> Path:
    """Pictures of noise, another one under each name."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        noise = np.random.default_rng([seed, index]).integers(
            0, 256, (side, side, 3), dtype=np.uint8
        )
        Image.fromarray(noise).save(folder / name)
    return folder


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refusal(function, *arguments) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(PisasrError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sets_are_read_with_paths_from_the_files_own_folder(tmp_path):
    for place in (
        "RealSR/hr",
        "RealSR/lr",
        "lq250",
        "out/a/RealSR",
        "out/a/LQ",
        "out/b",
    ):
        (tmp_path / place).mkdir(parents=True)
    sets = load_sets(
        write(
            tmp_path / "sets.yaml",
            """
            sr: {a: "out/a/{set}"}
            sets:
              RealSR: {hr: RealSR/hr, lr: RealSR/lr, sr: {b: out/b}}
              LQ: {lr: lq250}
            """,
        )
    )
    assert sets == [
        TestSet(
            "RealSR",
            {"a": tmp_path / "out/a/RealSR", "b": tmp_path / "out/b"},
            tmp_path / "RealSR/hr",
            tmp_path / "RealSR/lr",
        ),
        TestSet("LQ", {"a": tmp_path / "out/a/LQ"}, None, tmp_path / "lq250"),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "names no test set"),
        ("- a\n", "the file is ['a']"),
        ("set: {}\n", "no setting 'set'; did you mean 'sets'"),
        ("sets: {m: {lq: here, sr: {a: here}}}\n", "sets.m has no setting 'lq'; did you mean 'lr'"),
        ("sets: {m: {lr: here}}\n", "sets.m has no pictures to score"),
        ("sets: {m: {sr: {a: gone}}}\n", "sets.m.sr.a is 'gone'"),
        ("sr: {a: 'gone/{set}'}\nsets: {m: {lr: here}}\n", "sr.a for m is 'gone/m'"),
        ("sets: {m: {hr: gone, sr: {a: here}}}\n", "sets.m.hr is 'gone'"),
        ("sets: {m: {sr: [here]}}\n", "sets.m.sr is ['here']"),
        ("sets: {m: {sr: {a: 3}}}\n", "sets.m.sr.a is 3; wanted the path"),
        ("sets: {m: here}\n", "sets.m is 'here'"),
        ("sets: {m: {hr: , sr: {a: here}}}\n", "sets.m.hr is None; wanted the path"),
        ("sets: {m: {sr: {a: here}, sr: {a: here}}}\n", "not readable as YAML"),
        ("sets: {m\n", "not readable as YAML"),
    ],
)
def test_a_file_of_sets_is_refused_in_one_line_that_names_file_and_key(tmp_path, text, complaint):
    (tmp_path / "here").mkdir()
    line = refusal(load_sets, write(tmp_path / "sets.yaml", text))
    assert complaint in line and str(tmp_path / "sets.yaml") in line


def test_a_file_of_sets_that_is_not_there(tmp_path):
    assert "nowhere.yaml is not readable" in refusal(load_sets, tmp_path / "nowhere.yaml")


def test_without_omegaconf_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "omegaconf", None)
    assert "install pisasr[eval]" in refusal(load_sets, write(tmp_path / "s.yaml", "sets: {}\n"))


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """hr and lr of a known set of three pictures, Tiny."""
    hr, lr = (
        fill(tmp_path / "hr", "a.png", "b.png", "c.png"),
        fill(tmp_path / "lr", "a.png", "b.png", "c.png", seed=1),
    )
    digests = {
        name: {folder.name: digest_picture(folder / f"{name}.png") for folder in (hr, lr)}
        for name in "abc"
    }
    known = {
        "Tiny": {"count": 3, "made": "as made here", "digests": digests},
        "DRealSR": {"count": 93},
    }
    monkeypatch.setattr(testsets, "known_sets", lambda: known)
    return hr, lr


def test_the_known_pictures_are_verified_whatever_their_files_are_called(tiny):
    hr, lr = tiny
    assert verify_known("tiny", hr, lr) == "verified: the 3 pictures of Tiny as made here"
    assert (
        verify_known("Tiny", None, lr) == "verified: the 3 pictures of Tiny as made here (lr alone)"
    )
    (hr / "a.png").rename(hr / "a_HR.png")
    Image.open(lr / "b.png").save(lr / "b_LR4.bmp")
    (lr / "b.png").unlink()
    assert verify_known("Tiny", hr, lr).startswith("verified")


def test_other_pictures_under_a_known_name_are_named(tiny):
    hr, lr = tiny
    fill(hr, "b.png", seed=5)
    (hr / "c.png").unlink()
    fill(hr, "d.png", seed=6)
    (lr / "a.png").write_bytes(b"no picture")
    line = refusal(verify_known, "Tiny", hr, lr)
    assert line.startswith("Tiny is not the known set: ")
    for fault in (
        f"{hr / 'b.png'} differs",
        "d.png is no picture of it",
        f"c is missing from {hr}",
        f"{lr / 'a.png'} differs",
    ):
        assert fault in line
    assert "a.png differs" not in line.split(str(lr))[0]


def test_swapped_names_are_refused(tiny):
    hr, lr = tiny
    for a, b in (("a.png", "x"), ("b.png", "a.png"), ("x", "b.png")):
        (lr / a).rename(lr / b)
    line = refusal(verify_known, "Tiny", hr, lr)
    assert f"{lr / 'a.png'} differs" in line and f"{lr / 'b.png'} differs" in line


def test_known_pictures_under_foreign_names_are_refused(tiny):
    hr, lr = tiny
    (hr / "a.png").rename(hr / "1.png")
    line = refusal(verify_known, "Tiny", hr, lr)
    assert f"{hr / '1.png'} is no picture of it" in line and f"a is missing from {hr}" in line


def test_a_picture_twice_is_refused(tiny):
    hr, lr = tiny
    shutil.copy(hr / "a.png", hr / "z.png")
    assert "z.png is no picture of it" in refusal(verify_known, "Tiny", hr, lr)


def test_many_faults_are_counted(tiny):
    hr, _ = tiny
    fill(hr, *(f"{k}.png" for k in range(9)), seed=7)
    assert "4.png is no picture of it, and 4 more;" in refusal(verify_known, "Tiny", hr, None)


def test_a_known_set_without_hashes_is_not_called_verified(tiny):
    hr, lr = tiny
    assert verify_known("DRealSR", hr, lr) == (
        "not verified: no hashes of DRealSR are known here; 3 pictures came, 93 are wanted"
    )
    assert verify_known("Tiny", None, None).startswith("not verified")
    assert verify_known("mine", hr, lr) is None


def test_counts_of_the_fields_sets():
    counts = {name: known["count"] for name, known in known_sets().items()}
    assert counts == {
        "DIV2K-Val": 3000,
        "RealSR": 100,
        "DRealSR": 93,
        "RealLR200": 200,
        "RealLQ250": 250,
    }
    assert len(known_sets()["RealSR"]["digests"]) == 100


@needs_realsr
def test_realsr_is_the_known_realsr():
    assert verify_known("RealSR", REALSR / "hr", REALSR / "lr") == (
        "verified: the 100 pictures of RealSR as StableSR cropped them"
    )
    assert "Canon_001_LR4.png differs" in refusal(verify_known, "RealSR", REALSR / "osediff", None)


@pytest.fixture
def degraded(tmp_path) -> tuple[Path, Path]:
    """lr with a manifest as scripts/degrade.py writes it, and hr, two pictures each."""
    lr, hr = (
        fill(tmp_path / "lr", "a.png", "b.png"),
        fill(tmp_path / "hr", "a.png", "b.png", seed=1),
    )

    def entry(path):
        return {"size": "8x8", "sha256": sha256(path.read_bytes()).hexdigest()}

    pictures = [
        {"name": name, "lq": entry(lr / name), "hq": entry(hr / name)}
        for name in ("a.png", "b.png")
    ]
    write(
        lr / "manifest.json",
        json.dumps({"seed": 7, "crop": None, "recipe": {}, "versions": {}, "pictures": pictures}),
    )
    return lr, hr


def test_a_degraded_set_is_verified_against_its_manifest(degraded):
    lr, hr = degraded
    assert (
        verify_manifest(lr, hr)
        == verify_manifest(lr, None)
        == "verified against manifest.json: seed 7, 2 pictures"
    )
    fill(lr, "a.png", seed=9)
    fill(lr, "c.png", seed=9)
    (hr / "b.png").unlink()
    line = refusal(verify_manifest, lr, hr)
    for fault in (
        "a.png: not the picture",
        "c.png: not in the manifest",
        f"{hr / 'b.png'}: missing",
    ):
        assert fault in line


def test_a_manifest_that_knows_no_true_pictures_says_so(degraded):
    lr, hr = degraded
    manifest = json.loads((lr / "manifest.json").read_text())
    for entry in manifest["pictures"]:
        del entry["hq"]
    write(lr / "manifest.json", json.dumps(manifest))
    assert verify_manifest(lr, hr).endswith("2 pictures; it says nothing of the true pictures")


def test_true_pictures_below_the_inputs_are_no_inputs(degraded):
    lr, hr = degraded
    hr = hr.rename(lr / "hr")
    assert verify_manifest(lr, hr).startswith("verified")


def test_only_a_manifest_of_degrade_is_asked(degraded):
    lr, _ = degraded
    for content in ('{"pictures": []}', "[]", '{"files": ["a"]}'):
        assert verify_manifest(write(lr / "manifest.json", content).parent, None) is None
    (lr / "manifest.json").unlink()
    assert verify_manifest(lr, None) is None


@pytest.mark.parametrize(
    "content", ['{"seed": 7, "recip', '{"seed": 7, "recipe": {}, "pictures": [{"name": "a.png"}]}']
)
def test_a_broken_manifest_is_no_verification(degraded, content):
    lr, _ = degraded
    write(lr / "manifest.json", content)
    assert "make the folder anew" in refusal(verify_manifest, lr, None)
