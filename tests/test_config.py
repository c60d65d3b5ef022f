"""Configurations: every file loads, every typo is named, the command line has the last word."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pisasr.data.degradation import DegradationRecipe
from pisasr.training.config import (
    ConfigError,
    DataConfig,
    RunConfig,
    StageConfig,
    TrainConfig,
    load_config,
    load_recipe,
    to_yaml,
)

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
    assert config.pix.weights == {"l2": 1}
    assert config.sem.weights == {"l2": 1, "lpips": 2, "csd": 1}


def test_there_are_few_settings():
    sections = {field.annotation for field in TrainConfig.model_fields.values()}
    sections -= {DegradationRecipe, StageConfig}  # pix has no key that sem has not
    keys = [key for section in sections for key in section.model_fields]
    assert len(keys) <= 45


def test_the_command_line_has_the_last_word():
    assert load_config(CONFIGS / "pisasr.yaml", [*NEEDED, "sem.lr=1e-5"]).sem.lr == 1e-5


def test_a_recipe_may_be_named_and_is_laid_over_the_published_one(tmp_path, monkeypatch):
    """In YAML from the file's folder, on the command line from where the command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("prob_first: 0.25\n")
    config = load_config(CONFIGS / "smoke.yaml", [*NEEDED, "degradation=mine.yaml"])
    assert config.degradation == replace(DegradationRecipe(), prob_first=0.25)
    (tmp_path / "own.yaml").write_text("degradation: mine.yaml\n")
    overrides = [*NEEDED, "degradation.scale=2", "degradation.second.blur.prob=0.25"]
    recipe = load_config(tmp_path / "own.yaml", overrides).degradation
    assert (recipe.scale, recipe.prob_first, recipe.second.blur.prob) == (2, 0.25, 0.25)
    assert recipe.second.blur.sigma == DegradationRecipe().second.blur.sigma
    with pytest.raises(ConfigError, match="absent.yaml"):
        load_config(CONFIGS / "smoke.yaml", [*NEEDED, "degradation=absent.yaml"])


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("run.sead=1", "did you mean 'run.seed'"),
        ("sem.weight_lpip=1", "did you mean 'sem.weight_lpips'"),
        ("degradation.first.blur.sgima=[1,2]", "did you mean 'degradation.first.blur.sigma'"),
        ("pix.steps=many", "pix.steps"),
        ("pix.lr_schedule=linear", "pix.lr_schedule.*'cosine'"),
        ("sem.lpips_net=vgg19", "sem.lpips_net.*'squeeze'"),
        ("csd.t_min=600", "csd.t_min"),
        ("pix.batch_size=0", "pix.batch_size"),
        ("pix.lr=.nan", "pix.lr.*finite"),
        ("model.rank_pix=0", "model.rank_pix"),
        ("data.null_text_ratio=7", "data.null_text_ratio"),
        ("data.photos=[a", "not YAML"),
        ("run.accumulation=5", "multiple of run.accumulation"),
        ("sem.weight_critic=1;run.accumulation=2", "weight_critic needs run.accumulation=1"),
        ("seed", "section.key=value"),
        ("seed=1", "no setting 'seed'"),
        ("data.crop_px=98", "multiple of 8"),
        ("pix.weight_l2=0", "pix has no loss"),
        ("degradation.scale=0", "degradation.scale"),
        ("degradation.first.blur.sigma=7", "degradation.first.blur.sigma"),
        ("degradation=7", "degradation"),
        ("pix=3", "pix"),
        ("data.mix={a: 0}", "data.mix"),
        ("run.seed=99999999999999999999", "run.seed"),
        ("validation.every=5", "validation.pairs"),
        ("validation.count=0", "validation.count"),
        ("pix.steps=0", "^$"),
        ("sem.start_from=-pix", "^$"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(override, names):
    """Where it is wrong: the last two are fine."""
    given = [*NEEDED, *override.split(";")]
    if names == "^$":
        load_config(CONFIGS / "pisasr.yaml", given)
        return
    with pytest.raises(ConfigError, match=names) as caught:
        load_config(CONFIGS / "pisasr.yaml", given)
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
    with pytest.raises(ConfigError, match="data.photos"):
        load_config(CONFIGS / "pisasr.yaml", ["run.output=a"])


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match="nowhere.yaml is no file"):
        load_config("nowhere.yaml")


def test_one_folder_needs_no_brackets(tmp_path):
    config = load_config(
        CONFIGS / "smoke.yaml", ["data.photos=a folder", "run.output=b", "run.trackers=wandb"]
    )
    assert config.data.photos == ["a folder"] and config.run.trackers == ["wandb"]
    file = tmp_path / "one.yaml"
    file.write_text("data: {photos: x}\nrun: {output: y}\n")
    assert load_config(file).data.photos == ["x"]


def test_no_steps_at_all_are_no_training():
    with pytest.raises(ConfigError, match="nothing to train"):
        load_config(CONFIGS / "pisasr.yaml", [*NEEDED, "pix.steps=0", "sem.steps=0"])
