"""pyiqa's doorway, by a stand-in everywhere and by the real package where it can be imported."""

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


# --- a stand-in -----------------------------------------------------------------------------------


@pytest.fixture
def standin(monkeypatch, hub, offline):
    """A package that notes what it is asked to create; `fail` makes it raise."""
    pyiqa = types.ModuleType("pyiqa")
    pyiqa.created, pyiqa.fail = [], None

    def create_metric(name, device):
        print("Loading pretrained model")
        pyiqa.created.append(name)
        if pyiqa.fail:
            raise pyiqa.fail
        return lambda *pictures: torch.tensor(
            [[float(sum(picture.mean() for picture in pictures))]]
        )

    pyiqa.create_metric = create_metric
    for name in [name for name in sys.modules if name.split(".")[0] == "pyiqa"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa)
    monkeypatch.setattr(deep, "find_spec", lambda name: object())
    return pyiqa


def put_files(hub: Path, *metrics: str) -> None:
    for url in (url for metric in metrics for url in NETWORKS[metric].urls):
        path = (
            hub
            / ("clip" if url.startswith(deep.CLIP) else "pyiqa")
            / file_name(url).replace("+", "%2B")
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize("metric", [name for name in NETWORKS if name != "fid"])
def test_files_that_lie_where_torch_keeps_them_are_enough(metric, standin, hub, offline, capsys):
    put_files(hub, metric)
    score = load_scorer(metric)
    assert standin.created == [NETWORKS[metric].name]
    assert score(np.full((8, 8, 3), 51, np.uint8), None, None) == pytest.approx(0.2)
    assert not offline and capsys.readouterr().out == ""


def test_an_error_inside_pyiqa_is_one_line(standin, hub):
    put_files(hub, "musiq")
    standin.fail = RuntimeError("size mismatch\n\tfor conv.weight")
    with pytest.raises(
        MetricUnavailable, match="load musiq .RuntimeError: size mismatch for conv"
    ) as failure:
        load_scorer("musiq")
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("metric", NETWORKS)
def test_offline_the_missing_file_is_named_at_once_with_its_place(metric, standin, hub, offline):
    put_files(hub, metric)
    url = NETWORKS[metric].urls[-1]
    (lost,) = hub.glob(f"*/{file_name(url).replace('+', '%2B')}")
    lost.unlink()
    with pytest.raises(MetricUnavailable) as missing:
        deep.load_network(metric, lambda name: pytest.fail("must not be tried"))
    line = str(missing.value)
    assert f"put {url} at {lost}" in line and "\n" not in line
    assert all(other not in line for other in NETWORKS[metric].urls[:-1]) and not offline


def test_a_download_that_fails_is_one_line_that_names_the_file(standin, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    standin.fail = OSError("Name or service\nnot known")
    with pytest.raises(
        MetricUnavailable, match="Name or service not known.*put .*musiq_koniq_ckpt.* at "
    ) as missing:
        load_scorer("musiq")
    assert standin.created == ["musiq"] and "\n" not in str(missing.value)


def test_without_pyiqa_the_line_says_how_to_install_it_and_which_files_it_wants(monkeypatch):
    monkeypatch.setattr(deep, "find_spec", lambda name: None)
    with pytest.raises(MetricUnavailable, match="pip install 'pisasr.pyiqa.'") as missing:
        load_scorer("musiq")
    line = str(missing.value)
    assert all(file_name(url) in line for url in NETWORKS["musiq"].urls) and "\n" not in line


# --- the real package, with random weights --------------------------------------------------------


@pytest.fixture
def pyiqa(offline, hub):
    return pytest.importorskip(
        "pyiqa", reason="pyiqa is not installed (its licence is non-commercial)"
    )


def look_in(hub: Path, monkeypatch) -> None:
    """pyiqa's modules ask for torch's folder once, when they are imported; here that was another
    one.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("pyiqa.") and "DEFAULT_CACHE_DIR" in vars(module):
            monkeypatch.setattr(module, "DEFAULT_CACHE_DIR", str(hub / "pyiqa"))


def save_state(metric: str, state: dict, hub: Path) -> None:
    put_files(hub, metric)
    torch.save(state, hub / "pyiqa" / file_name(NETWORKS[metric].urls[0]))


def test_musiq_loads_from_a_file_alone(pyiqa, hub, offline, monkeypatch, capsys):
    from pyiqa.archs.musiq_arch import MUSIQ

    torch.manual_seed(1)
    direct = MUSIQ(pretrained=False).eval()
    save_state("musiq", direct.state_dict(), hub)
    look_in(hub, monkeypatch)
    picture = random_picture(0)
    score = load_scorer("musiq")
    with torch.inference_mode():
        expected = float(direct(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255))
    assert score(picture, None, None) == pytest.approx(expected, rel=1e-5)
    assert expected != 0
    assert not offline and capsys.readouterr().out == ""


def test_inception_loads_from_a_file_alone(pyiqa, hub, offline, monkeypatch, capsys):
    from pyiqa.archs import inception

    from pisasr.evaluation.fid import load_inception, resize_clean

    torch.manual_seed(2)
    bare = []
    with monkeypatch.context() as patch:
        patch.setattr(
            inception, "load_pretrained_network", lambda network, url: bare.append(network)
        )
        direct = inception.InceptionV3([3]).eval()
    save_state("fid", bare[0].state_dict(), hub)
    look_in(hub, monkeypatch)
    picture = random_picture(3)
    found = load_inception()(picture)
    with torch.inference_mode():
        x = (torch.from_numpy(resize_clean(picture)).permute(2, 0, 1)[None] - 128) / 128
        expected = direct(x, False, False)[0].flatten().numpy()
    assert found.shape == (2048,) and np.abs(found).max() > 0
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6 * float(np.abs(expected).max()))
    assert not offline and capsys.readouterr().out == ""
