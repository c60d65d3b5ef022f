"""pyiqa's doorway, by a stand-in everywhere and by the real package where it can be imported."""

import shutil
import socket
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from pisasr.evaluation import deep
from pisasr.evaluation.deep import NETWORKS, load_scorer
from pisasr.evaluation.lookup import MetricUnavailable


def random_picture(seed: int, height: int = 64, width: int = 72) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def file_name(url: str) -> str:
    return url.rsplit("/", 1)[1]


@pytest.fixture
def offline(monkeypatch) -> list:
    """No network: what is asked of it is an error, and noted."""
    asked = []

    def refuse(*args, **options):
        asked.append(args)
        raise OSError("the network was asked")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return asked


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """torch's hub folder, empty."""
    usual = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub"
    torch.hub.set_dir(usual)


# --- a stand-in -------------------------------------------------------------------------------------------------------


@pytest.fixture
def standin(monkeypatch, hub, offline):
    """A package that notes what it is asked to create, from which files; `fail` makes it raise."""
    pyiqa, download = (types.ModuleType(name) for name in ("pyiqa", "pyiqa.utils.download_util"))
    pyiqa.created, pyiqa.fail, pyiqa.download = {}, None, download
    download.DEFAULT_CACHE_DIR = str(hub / "pyiqa")

    def create_metric(name, device):
        print("Loading pretrained model")
        folder = Path(torch.hub.get_dir())
        assert download.DEFAULT_CACHE_DIR == str(folder / "pyiqa")
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        pyiqa.created[name] = files
        if pyiqa.fail:
            raise pyiqa.fail
        return lambda *pictures: torch.tensor([[float(sum(picture.mean() for picture in pictures))]])

    pyiqa.create_metric = create_metric
    for name in [name for name in sys.modules if name.split(".")[0] == "pyiqa"]:
        monkeypatch.delitem(sys.modules, name)
    for module in (pyiqa, download):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(deep, "find_spec", lambda name: object())
    monkeypatch.setattr(deep, "_check_clip", lambda url, path: None)
    return pyiqa


def put_files(folder: Path, *metrics: str) -> Path:
    folder.mkdir(exist_ok=True)
    for url in (url for metric in metrics for url in NETWORKS[metric].urls):
        (folder / file_name(url)).write_bytes(file_name(url).encode())
    return folder


@pytest.mark.parametrize("metric", [name for name in NETWORKS if name != "fid"])
def test_files_are_served_from_a_hub_that_lasts_as_long_as_the_loading(metric, standin, hub, tmp_path, offline, capsys):
    usual = torch.hub.get_dir()
    score = load_scorer(metric, put_files(tmp_path / "weights", metric))
    names = {deep.IQA_HUB: "pyiqa", deep.CLIP: "clip"}
    expected = {
        f"{next(folder for place, folder in names.items() if url.startswith(place))}/{file_name(url)}": file_name(url)
        for url in NETWORKS[metric].urls
    }
    [(name, files)] = standin.created.items()
    assert name == NETWORKS[metric].name
    assert {path.replace("%2B", "+"): text.decode() for path, text in files.items()} == expected
    assert torch.hub.get_dir() == usual
    assert standin.download.DEFAULT_CACHE_DIR == str(hub / "pyiqa")
    assert score(np.full((8, 8, 3), 51, np.uint8), None, None) == pytest.approx(0.2)
    assert not offline and capsys.readouterr().out == ""


def test_files_that_were_fetched_before_are_found_where_torch_keeps_them(standin, hub):
    for url in NETWORKS["clipiqa+"].urls:
        path = hub / ("clip" if url.startswith(deep.CLIP) else "pyiqa") / file_name(url).replace("+", "%2B")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    load_scorer("clipiqa+")
    assert sorted(standin.created["clipiqa+"]) == ["clip/RN50.pt", "pyiqa/CLIP-IQA%2B_learned_prompts-603f3273.pth"]


def test_an_error_inside_pyiqa_is_one_line_and_leaves_nothing_changed(standin, hub, tmp_path):
    usual = torch.hub.get_dir()
    standin.fail = RuntimeError("size mismatch\n\tfor conv.weight")
    with pytest.raises(
        MetricUnavailable, match="could not load musiq .RuntimeError: size mismatch for conv"
    ) as failure:
        load_scorer("musiq", put_files(tmp_path / "weights", "musiq"))
    assert "\n" not in str(failure.value)
    assert torch.hub.get_dir() == usual
    assert standin.download.DEFAULT_CACHE_DIR == str(hub / "pyiqa")


@pytest.mark.parametrize("metric", NETWORKS)
def test_offline_the_missing_file_is_named_at_once(metric, standin, tmp_path, offline):
    weights = put_files(tmp_path / "weights", metric)
    url = NETWORKS[metric].urls[-1]
    (weights / file_name(url)).unlink()
    with pytest.raises(MetricUnavailable) as missing:
        deep.load_network(metric, weights, lambda name: pytest.fail("must not be tried"))
    line = str(missing.value)
    assert url in line and f"{file_name(url)} not found" in line and "--weights" in line and "\n" not in line
    assert all(other not in line for other in NETWORKS[metric].urls[:-1]) and not offline


def test_pyiqa_may_fetch_what_is_missing_into_its_usual_folder(standin, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    seen = []
    deep.load_network("musiq", tmp_path, lambda name: seen.append(torch.hub.get_dir()))
    assert seen == [torch.hub.get_dir()]


def test_a_download_that_fails_is_one_line_that_names_the_file(standin, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    standin.fail = OSError("Name or service\nnot known")
    with pytest.raises(MetricUnavailable, match="Name or service not known.*musiq_koniq_ckpt.*--weights") as missing:
        load_scorer("musiq", tmp_path)
    assert "\n" not in str(missing.value)


def test_without_pyiqa_the_line_says_how_to_install_it_and_which_files_it_wants(monkeypatch):
    monkeypatch.setattr(deep, "find_spec", lambda name: None)
    with pytest.raises(MetricUnavailable, match="pip install 'pisasr.pyiqa.'") as missing:
        load_scorer("musiq")
    line = str(missing.value)
    assert all(file_name(url) in line for url in NETWORKS["musiq"].urls) and "\n" not in line


def test_another_clip_file_is_refused_and_left_as_it_is(tmp_path, monkeypatch):
    """pyiqa would write over it: what it gets is a link to the file."""
    weights = put_files(tmp_path, "clipiqa")
    monkeypatch.setattr(deep, "find_spec", lambda name: object())
    with pytest.raises(MetricUnavailable, match="RN50.pt is not the file at .*SHA256") as refusal:
        deep.load_network("clipiqa", weights, lambda name: pytest.fail("must not be tried"))
    assert "\n" not in str(refusal.value)
    assert (weights / "RN50.pt").read_bytes() == b"RN50.pt"


# --- the real package, with random weights ----------------------------------------------------------------------------


@pytest.fixture
def pyiqa(offline, hub):
    return pytest.importorskip("pyiqa", reason="pyiqa is not installed (its licence is non-commercial)")


@pytest.fixture
def weights(tmp_path):
    """A folder for files of up to half a gigabyte, which pytest would keep."""
    folder = tmp_path / "weights"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def save_state(metric: str, state: dict, folder: Path) -> None:
    torch.save(state, folder / file_name(NETWORKS[metric].urls[0]))


def test_musiq_loads_from_a_file_alone(pyiqa, weights, offline, capsys):
    from pyiqa.archs.musiq_arch import MUSIQ

    torch.manual_seed(1)
    direct = MUSIQ(pretrained=False).eval()
    save_state("musiq", direct.state_dict(), weights)
    usual, picture = torch.hub.get_dir(), random_picture(0)
    score = load_scorer("musiq", weights)
    assert torch.hub.get_dir() == usual and not Path(usual).exists()
    with torch.inference_mode():
        expected = float(direct(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255))
    assert score(picture, None, None) == pytest.approx(expected, rel=1e-5)
    assert expected != 0
    assert not offline and capsys.readouterr().out == ""


def test_inception_loads_from_a_file_alone(pyiqa, weights, offline, monkeypatch, capsys):
    from pyiqa.archs import inception

    from pisasr.evaluation.fid import load_inception, resize_clean

    torch.manual_seed(2)
    bare = []
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_pretrained_network", lambda network, url: bare.append(network))
        direct = inception.InceptionV3([3]).eval()
    save_state("fid", bare[0].state_dict(), weights)
    picture = random_picture(3)
    found = load_inception(weights)(picture)
    with torch.inference_mode():
        x = (torch.from_numpy(resize_clean(picture)).permute(2, 0, 1)[None] - 128) / 128
        expected = direct(x, False, False)[0].flatten().numpy()
    assert found.shape == (2048,) and np.abs(found).max() > 0
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6 * float(np.abs(expected).max()))
    assert not offline and capsys.readouterr().out == ""
