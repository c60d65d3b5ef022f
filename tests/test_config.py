"""Configurations: every file loads, every typo is named, the command line has the last word."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pisasr.config import (
    ConfigError,
    DataConfig,
    RunConfig,
    TrainConfig,
    load_config,
    load_recipe,
    to_yaml,
)
from pisasr.data.degradation import DegradationRecipe

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
NEEDED = ["data.photos=[photos]", "run.output=runs/a"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_loads_and_survives_being_written(path, tmp_path):
    config = load_config(path, NEEDED)
    written = tmp_path / "resolved.yaml"
    written.write_text(to_yaml(config))
    assert load_config(written) == config


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "degradation").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_recipe_loads(path):
    assert load_recipe(path) != DegradationRecipe()


def test_the_papers_recipe_is_what_the_defaults_say():
    config = load_config(CONFIGS / "pisasr.yaml", [*NEEDED, "run.mixed_precision=null"])
    assert config == TrainConfig(data=DataConfig(photos=["photos"]), run=RunConfig(output="runs/a"))
    assert (config.pix.steps, config.sem.steps, config.pix.batch_size) == (4000, 8500, 16)
    assert (config.sem.weight_l2, config.sem.weight_lpips, config.sem.weight_csd) == (1, 2, 1)
    assert config.pix.losses == {"l2": 1} and config.sem.losses == {"l2": 1, "lpips": 2, "csd": 1}


def test_a_key_of_two_names_in_one_word_is_told_from_a_section(tmp_path):
    (tmp_path / "a.yaml").write_text("pix.steps: 3\n")
    with pytest.raises(ConfigError, match="wanted 'steps' in a section, pix: {steps: VALUE}"):
        load_config(tmp_path / "a.yaml", NEEDED)


def test_the_command_line_has_the_last_word():
    assert load_config(CONFIGS / "pisasr.yaml", [*NEEDED, "sem.lr=1e-5"]).sem.lr == 1e-5


def test_a_recipe_may_be_named_on_the_command_line(tmp_path, monkeypatch):
    """From where the command runs, and in place of the file's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("prob_first: 0.25\n")
    config = load_config(CONFIGS / "small.yaml", [*NEEDED, "degradation=mine.yaml"])
    assert config.degradation == replace(DegradationRecipe(), prob_first=0.25)
    with pytest.raises(ConfigError, match="absent.yaml"):
        load_config(CONFIGS / "small.yaml", [*NEEDED, "degradation=absent.yaml"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.sead=1", "did you mean 'run.seed'"),
        ("sem.weight_lpip=1", "did you mean 'sem.weight_lpips'"),
        ("pix.steps=many", "pix.steps"),
        ("pix.lr_schedule=linear", "'constant' or 'cosine'"),
        ("perceptual.net=vgg19", "'vgg', 'alex' or 'squeeze'"),
        ("csd.t_min=600", "t_min < t_max"),
        ("pix.batch_size=0", "pix.batch_size is 0"),
        ("pix.batch_size=1000000000", "wanted less than or equal to 65536"),
        ("pix.lr=nan", "pix.lr is 'nan'; wanted a finite number"),
        ("model.rank_pix=0", "model.rank_pix is 0"),
        ("run.accumulation=0", "run.accumulation is 0"),
        ("data.null_text_ratio=7", "data.null_text_ratio is 7; wanted less than or equal to 1"),
        ("data.photos=[a", "not readable as YAML"),
        ("run.accumulation=5", "multiple of run.accumulation"),
        ("seed", "section.key=value"),
        ("data.crop_px=98", "multiple of 8"),
        ("pix.weight_l2=0", "pix has no loss"),
        ("sem.beyond.shift=512", "below data.crop_px=512"),
        ("sem.shift=16", "did you mean 'sem.beyond.shift'"),
        ("degradation.scale=0", "degradation.scale is 0; wanted greater than or equal to 1"),
        ("degradation.first.blur.sgima=[1,2]", "did you mean 'degradation.first.blur.sigma'"),
        (
            "degradation.first.blur.sigma=7",
            "degradation.first.blur.sigma is 7; wanted a valid list",
        ),
        ("pix=3", "pix is 3; wanted a section"),
        ("data.mix={a: 0}", "a weight above 0"),
        ("run.seed=many", "run.seed is 'many'; wanted a valid integer"),
        ("run.output=${nothing}", "run.output"),
        ("pix.steps=yes", "pix.steps is True; wanted a number"),
        ("pix.lr=true", "pix.lr is True; wanted a number"),
        (
            "run.seed=99999999999999999999",
            "run.seed is 99999999999999999999; wanted less than 9223372036854775808",
        ),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(CONFIGS / "pisasr.yaml", [*NEEDED, override])
    assert "\n" not in str(caught.value)


def leaves(node, path=()):
    for key, value in node.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


@pytest.mark.parametrize("path", list(leaves(asdict(DegradationRecipe()))), ids=".".join)
def test_what_no_recipe_can_have_is_refused_in_one_line(path, tmp_path):
    for value in ("-1", "a", "[2, 1]", "[.nan, 1]"):
        for key in reversed(path):
            value = f"{{{key}: {value}}}"
        (tmp_path / "recipe.yaml").write_text(value)
        with pytest.raises(ConfigError) as caught:
            load_recipe(tmp_path / "recipe.yaml")
        assert "\n" not in str(caught.value) and path[0] in str(caught.value)


def test_no_is_a_precision_although_yaml_reads_it_as_false():
    assert (
        load_config(
            CONFIGS / "pisasr.yaml", [*NEEDED, "run.mixed_precision=no"]
        ).run.mixed_precision
        == "no"
    )


def test_what_is_missing_is_named():
    with pytest.raises(ConfigError, match="data.photos is not set"):
        load_config(CONFIGS / "pisasr.yaml", ["run.output=a"])


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match="nowhere.yaml is no file"):
        load_config("nowhere.yaml")


def test_one_folder_needs_no_brackets(tmp_path):
    config = load_config(
        CONFIGS / "smoke.yaml", ["data.photos=a folder", "run.output=b", "tracking.trackers=wandb"]
    )
    assert config.data.photos == ["a folder"] and config.tracking.trackers == ["wandb"]
    file = tmp_path / "one.yaml"
    file.write_text("data: {photos: x}\nrun: {output: y}\n")
    assert load_config(file).data.photos == ["x"]


def test_no_steps_at_all_are_no_training():
    with pytest.raises(ConfigError, match="nothing to train"):
        load_config(CONFIGS / "pisasr.yaml", [*NEEDED, "pix.steps=0", "sem.steps=0"])
