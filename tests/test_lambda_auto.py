"""`infer --lambda_auto`: of all candidates the picture that the rule means, the same bytes as from
the grid, and why.

NIQE's parameters may be absent, so most tests put another measure in its place; PSNR to the input
is the real one.
"""

import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from pisasr import errors
from pisasr.commands import infer as command
from pisasr.commands.main import main
from pisasr.evaluation import scoring
from pisasr.evaluation.rules import choose, parse_rule

PAIRS = [(pix, sem) for pix in (0.0, 0.5, 1.0, 1.5) for sem in (0.0, 1.0)]
GRID = ["--lambda_grid", "0:1.5:0.5", "0,1"]
SMALL = {"upscale": 2, "process_size": 16}


def photo(width: int = 14, height: int = 11, mode: str = "RGB") -> Image.Image:
    """A picture with something going on in it."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = (tiny.wave((height, width, channels), 1.0, 80) + 128).to(torch.uint8).numpy()
    return Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)


def nearness(sr: np.ndarray, hq: None, lq: np.ndarray) -> float:
    """In NIQE's place: less is further from the input, so that a limit on psnr_lq has its price.

    Checks what comes, too: the picture and its input, as three 8-bit channels, and no true picture.
    """
    assert hq is None and {x.dtype for x in (sr, lq)} == {np.dtype(np.uint8)}
    assert sr.ndim == lq.ndim == 3 and sr.shape == (2 * lq.shape[0], 2 * lq.shape[1], 3)
    return -float(np.abs(sr[::2, ::2].astype(int) - lq).mean())


@pytest.fixture
def measures(monkeypatch):
    """What scores here: name -> function. Change it in place."""
    table = {"niqe": nearness, **scoring.load_scorers(["psnr_lq"])[0]}
    monkeypatch.setattr(
        scoring, "load_scorers", lambda names, weights: ({name: table[name] for name in names}, {})
    )
    return table


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    return tmp_path


@pytest.fixture
def infer(base_folder):
    """The command on the tiny model; its inputs are those of the folder `in`."""
    common = [
        "-i",
        "in",
        "--pretrained_model",
        base_folder,
        "--device",
        "cpu",
        "--process_size",
        16,
        "--upscale",
        2,
    ]
    return lambda *words: main(["infer", *map(str, [*common, *words])])


def rows(folder: str = "auto") -> list[dict]:
    return [json.loads(line) for line in Path(folder, "report.jsonl").read_text().splitlines()]


def grid_picture(pair: tuple[float, float]) -> Path:
    return Path("grid/a/pix{:g}_sem{:g}.png".format(*pair))


def grid_scores(measures) -> dict[tuple[float, float], dict[str, float]]:
    """Every metric of every picture that --lambda_grid has written, from the files."""
    lq = np.asarray(Image.open("in/a.png").convert("RGB"))
    pictures = {pair: np.asarray(Image.open(grid_picture(pair)).convert("RGB")) for pair in PAIRS}
    return {
        pair: {name: score(sr, None, lq) for name, score in measures.items()}
        for pair, sr in pictures.items()
    }


# --- the choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA"])
def test_the_result_is_the_best_picture_of_the_grid_to_the_byte(
    here, infer, measures, capsys, mode
):
    photo(mode=mode).save("in/a.png")
    assert infer("-o", "grid", *GRID) == 0
    table = grid_scores(measures)
    middle = float(np.median([row["psnr_lq"] for row in table.values()]))
    allowed = [pair for pair in PAIRS if table[pair]["psnr_lq"] >= middle]
    best = min(allowed, key=lambda pair: table[pair]["niqe"])
    assert best != min(PAIRS, key=lambda pair: table[pair]["niqe"])  # the limit matters

    capsys.readouterr()
    assert infer("-o", "auto", *GRID, "--lambda_auto", f"niqe where psnr_lq >= {middle!r}") == 0
    assert sorted(path.name for path in Path("auto").iterdir()) == ["a.png", "report.jsonl"]
    assert Path("auto/a.png").read_bytes() == grid_picture(best).read_bytes()
    (row,) = rows()
    assert (row["lambda_pix"], row["lambda_sem"]) == best
    said = "lambda_pix {:g}, lambda_sem {:g}: niqe {niqe:.4f}, psnr_lq {psnr_lq:.2f}".format(
        *best, **table[best]
    )
    assert row["reason"] == said and said in capsys.readouterr().out


def test_where_no_pair_keeps_the_limit_the_nearest_is_written_and_told(here, infer, measures):
    photo().save("in/a.png")
    assert infer("-o", "grid", *GRID) == 0
    table = grid_scores(measures)
    assert infer("-o", "auto", *GRID, "--lambda_auto", "niqe where psnr_lq >= 79") == 0
    nearest = max(PAIRS, key=lambda pair: table[pair]["psnr_lq"])
    assert Path("auto/a.png").read_bytes() == grid_picture(nearest).read_bytes()
    (row,) = rows()
    assert (
        row["reason"].startswith("no pair has psnr_lq >= 79; nearest: lambda_pix ")
        and row["status"] == "ok"
    )
    assert (row["lambda_pix"], row["lambda_sem"]) == nearest


def test_the_real_niqe_chooses_too(here, infer):
    found, missing = scoring.load_scorers(["niqe", "psnr_lq"])
    if missing:
        pytest.skip(missing["niqe"])
    photo(110, 100).save("in/a.png")
    assert infer("-o", "grid", *GRID) == 0
    assert infer("-o", "auto", *GRID, "--lambda_auto", "niqe where psnr_lq >= 15") == 0
    choice = choose(parse_rule("niqe where psnr_lq >= 15"), grid_scores(found))
    assert Path("auto/a.png").read_bytes() == grid_picture(choice.pair).read_bytes()


def test_each_picture_has_a_choice_of_its_own_and_one_without_scores_ends_no_batch(
    here, infer, measures, capsys
):
    for name, size in (("a", (14, 11)), ("b", (9, 9)), ("c", (20, 12))):
        photo(*size).save(f"in/{name}.png")
    measures["niqe"] = lambda sr, hq, lq: (
        np.nan if len(lq) == 9 else float(sr.mean() if len(lq) == 11 else -sr.mean())
    )
    assert infer("-o", "auto", *GRID, "--lambda_auto", "niqe") == errors.SOME_FAILED
    first, second, third = rows()
    assert (
        second["status"] == "failed"
        and "niqe has no number" in second["reason"]
        and "lambda_pix" not in second
    )
    assert (first["lambda_pix"], first["lambda_sem"]) != (third["lambda_pix"], third["lambda_sem"])
    assert capsys.readouterr().err.count("\n") == 1


def test_candidates_are_few_in_memory_and_49_by_default(here, monkeypatch, measures):
    made, seen, alive = [], [], []

    def look(image, **options):
        return image

    def mix(looked, *pair, **options):
        alive.append(sum(reference() is not None for reference in made))
        seen.append(pair)
        picture = Image.new("RGB", (28, 22))
        made.append(weakref.ref(picture))
        return picture

    pipe = SimpleNamespace(look=look, mix=mix)
    monkeypatch.setattr(command, "load_pipeline", lambda args: pipe)
    photo().save("in/a.png")
    falling = iter(range(100, 0, -1))  # each is better than those before it
    measures["niqe"] = lambda sr, hq, lq: float(next(falling))
    assert main("infer -i in -o auto --lambda_auto niqe".split()) == 0
    quarters = [number / 4 for number in range(7)]
    assert seen == [(pix, sem) for pix in quarters for sem in quarters] and max(alive) <= 3
    assert (rows()[0]["lambda_pix"], rows()[0]["lambda_sem"]) == (1.5, 1.5)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["psnr"], "psnr_lq, niqe"),
        (["niqe where ssim >= 0.7"], "ssim needs a true picture"),
        (["fid"], "fid needs a true picture"),
        (["nique"], "did you mean niqe?"),
        (["niqe where psnr_lq > 30"], "'niqe where psnr_lq >= 30'"),
        (["niqe", "--default"], "--default"),
        (["niqe", "--lambda_pix", "1"], "--lambda_pix"),
        (["niqe", "--lambda_sem", "0.5"], "--lambda_sem"),
    ],
)
def test_wrong_usage_is_told_at_once(here, monkeypatch, capsys, words, said):
    monkeypatch.setattr(command, "load_pipeline", lambda args: pytest.fail("the model was loaded"))
    photo().save("in/a.png")
    with pytest.raises(SystemExit) as caught:
        main(["infer", "-i", "in", "-o", "auto", "--lambda_auto", *words])
    told = capsys.readouterr().err
    assert caught.value.code == errors.WRONG_USAGE and not Path("auto").exists()
    assert "--lambda_auto" in told.splitlines()[-1] and said in told.splitlines()[-1]


def test_a_metric_that_cannot_be_had_ends_the_command_before_a_picture(here, monkeypatch, capsys):
    asked = []

    def load(names, weights=None):
        asked.append((names, weights))
        return {}, {"niqe": "niqe_pris_params.npz not found: give --weights FOLDER"}

    monkeypatch.setattr(scoring, "load_scorers", load)
    monkeypatch.setattr(command, "load_pipeline", lambda args: pytest.fail("the model was loaded"))
    photo().save("in/a.png")
    words = ["--lambda_auto", "niqe where psnr_lq >= 30", "--weights", "files"]
    assert main(["infer", "-i", "in", "-o", "auto", *words]) == errors.NOTHING_STARTED
    told = capsys.readouterr().err
    assert (
        told.count("\n") == 1
        and "niqe_pris_params.npz not found" in told
        and not Path("auto").exists()
    )
    monkeypatch.setenv("PISASR_WEIGHTS", "others")
    assert main(["infer", "-i", "in", "-o", "auto", *words[:2]]) == errors.NOTHING_STARTED
    assert asked == [(["niqe", "psnr_lq"], Path("files")), (["niqe", "psnr_lq"], Path("others"))]
