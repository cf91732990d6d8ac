"""The typed config: what it copies from the library, what it hashes, what it takes for one run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from wtacrs import ESTIMATORS, PRESETS
from wtacrs import config as library
from wtacrs.sampling.centre import CENTRES
from wtacrs_experiments.config import (
    CONF,
    ROOT,
    PlanConfig,
    RunConfig,
    as_record,
    build,
    compose,
    known,
)
from wtacrs_experiments.config.arguments import check_arguments, grid
from wtacrs_experiments.config.build import defaults
from wtacrs_experiments.config.command import command
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.plan.grid import settings
from wtacrs_experiments.records.record import config_hash, record_path
from wtacrs_experiments.run import metrics

OF_RUNS = ("ablation", "centred", "variance")
RUNS = [path for name in OF_RUNS for path in (ROOT / "results" / name).glob("*.json")]
PLANS = [*(ROOT / "results" / "plan").glob("*-*-*.json")]  # an index has one dash


def test_the_copy_of_what_the_library_offers_is_true():
    assert set(known.ESTIMATORS) == {"full", *ESTIMATORS}
    assert set(known.CENTRES) == set(CENTRES)
    assert known.GRAD_NORMS == library.GRAD_NORM_SOURCES
    for name in ("LOSSLESS", "GELU", "ATTENTION", "RECOMPUTE", "ATTENTION_OUTPUT"):
        assert getattr(known, name) == getattr(library, name)
    assert known.PRESETS.keys() == PRESETS.keys()
    for name, preset in PRESETS.items():
        keys = {key: value for key, value in vars(preset).items() if key != "sampling"}
        assert known.PRESETS[name] == {**keys, "sample_linears": preset.sampling is not None}
    assert tuple(metrics.CLASSIFICATION) == known.CLASSIFICATION
    assert tuple(metrics.REGRESSION) == known.REGRESSION


def test_estimators_that_cannot_centre():
    for name in known.ESTIMATORS[1:]:
        unbiased = getattr(ESTIMATORS[name], "unbiased", True)
        given = [f"estimator={name}", "estimator.center=classes"]
        if unbiased:
            assert compose(RunConfig, given).estimator.center == "classes"
        else:
            with pytest.raises(UserError, match="drops rows"):
                compose(RunConfig, given)


def as_today(config):
    """A record's config as it would be given now: bf16 was autocast, presets had fewer kinds."""
    config = json.loads(json.dumps(config))
    if config["training"]["precision"] == "bf16":
        config["training"]["precision"] = "bf16-autocast"
    memory = config.get("memory", {})
    if memory.get("lossless"):
        memory["lossless"] = [*known.LOSSLESS]
    config["estimator"].setdefault("center", "none")  # from before there was a choice
    return config


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_committed_runs_keep_their_names(path):
    config = build(RunConfig, as_today(json.loads(path.read_text())["config"]))
    assert record_path(as_record(config)).name == path.name


def test_committed_plans_keep_their_names():
    for path in PLANS:
        given = json.loads(path.read_text())["config"]
        if len(given["memory"]["lossless"]) == 4:  # from before the presets had a kind more
            given["memory"]["lossless"] = [*known.LOSSLESS]
        config = as_record(build(PlanConfig, given))
        of_the_file = {k: v for k, v in config.items() if k not in ("fits", "output")}
        assert path.stem.endswith(config_hash(of_the_file)), path


def test_precisions_are_three_runs():
    names = {
        precision: config_hash(as_record(compose(RunConfig, [f"training.precision={precision}"])))
        for precision in known.PRECISIONS
    }
    assert len(set(names.values())) == 3
    before = as_record(compose(RunConfig, ["training.precision=bf16-autocast"]))
    before["training"]["precision"] = "bf16"
    del before["mode"]
    assert config_hash(before) == names["bf16-autocast"]


def test_presets_of_the_first_records_are_those_of_today():
    kinds = {
        "first": "memory.lossless=[norm,dropout,relu]",
        "gated": "memory.lossless=[norm,dropout,relu,gate]",
        "today": "memory.lossless=[norm,dropout,relu,gate,loss]",
        "few": "memory.lossless=[norm,dropout]",
    }
    given = ["experiment=table1_laptop", "memory=leanest", "estimator=pps"]
    configs = {key: as_record(compose(RunConfig, [*given, one])) for key, one in kinds.items()}
    names = {key: config_hash(config) for key, config in configs.items()}
    assert len(set(names.values())) == 4
    assert names["today"] == config_hash(as_record(compose(RunConfig, given))) == "d6994a00"
    before = configs["first"]
    before["training"]["precision"] = "bf16"
    del before["mode"]
    assert config_hash(before) == names["today"]


def test_runs_of_table_1_keep_their_names():
    given = ["experiment=table1_laptop", "task=cola", "results_dir=results/table1"]
    names = {
        ("estimator=full",): "cola-mpnet_base-full-full-b1-s0-465609e1.json",
        ("estimator=wtacrs", "budget=0.3"): "cola-mpnet_base-full-wtacrs-b0.3-s0-c779771c.json",
        ("estimator=pps", "budget=0.1"): "cola-mpnet_base-full-pps-b0.1-s0-36b8a36a.json",
    }
    for method, name in names.items():
        config = compose(RunConfig, [*given, *method, "seed=0"])
        assert record_path(as_record(config)) == Path("results/table1", name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["training.epochs=3"], ["training.epochs=3.0"]),
        (["budget=1"], ["budget=1.0"]),
        (["tuning=lora", "tuning.alpha=32"], ["tuning=lora", "tuning.alpha=32.0"]),
        (["estimator=pps"], ["estimator=pps", "estimator.center=lowrank"]),
        (["estimator=full", "budget=0.1"], ["memory=plain", "budget=0.3"]),
        (["memory=lean"], ["memory=lean", "memory.recompute=attention"]),
        (["memory=lean"], ["memory=lean", "memory.attention_output=kept"]),
        (["memory=linear"], ["memory=linear", "memory.attention_output=recomputed"]),
        (["measure=memory"], ["measure=memory", "mode=measure"]),
        (["task=cola"], ["task=cola", "task.text_to_text.words=[bad,good]"]),
    ],
    ids=str,
)
def test_one_run(one, other):
    keys = [config_hash(as_record(compose(RunConfig, given))) for given in (one, other)]
    assert keys[0] == keys[1]


def test_estimator_that_has_nothing_to_do_is_told(capsys):
    assert compose(RunConfig, ["memory=checkpoint", "estimator=crs"]).estimator.name == "full"
    told = "memory=checkpoint samples no linear layer: the estimator is full\n"
    assert capsys.readouterr().out == told
    compose(RunConfig, ["memory=lean", "estimator=crs"])
    compose(RunConfig, ["estimator=full"])
    assert capsys.readouterr().out == ""


def test_words_are_of_a_run_that_writes_them():
    given = ["model=t5_small", "task=cola"]
    one = as_record(compose(RunConfig, given))
    other = as_record(compose(RunConfig, [*given, "task.text_to_text.words=[bad,good]"]))
    assert config_hash(one) != config_hash(other)


def test_record_has_the_keys_of_its_choice_alone():
    record = as_record(compose(RunConfig, ["model=minilm"]))
    assert record["tuning"] == {"name": "full"}
    assert record["measure"] == {"warmup_steps": 5, "memory": True}
    assert set(record["model"]) == {"name", "source", "path", "config"}
    assert json.loads(json.dumps(record)) == record
    assert type(record["training"]["epochs"]) is int


def test_what_is_recorded_is_the_config():
    for given in ([], ["task=stsb"], ["tuning=lora"], ["measure=variance", "estimator=pps"]):
        config = compose(RunConfig, given)
        assert build(RunConfig, as_record(config)) == config
        assert replace(config) == config


def test_configs_are_frozen():
    config = compose(RunConfig, [])
    with pytest.raises(AttributeError):
        config.budget = 0.5
    with pytest.raises(AttributeError):
        config.training.epochs = 1


def test_yaml_files_hold_only_what_differs():
    of = defaults(RunConfig)
    for path in CONF.glob("*/*.yaml"):
        group = path.parent.name
        if group in of:
            content = OmegaConf.to_container(OmegaConf.load(path))
            same = {k for k, v in content.items() if k != "name" and of[group].get(k, ...) == v}
            assert not same, path


def test_a_yaml_file_is_checked_as_an_argument_is():
    content = as_record(compose(RunConfig, []))
    content["training"]["progress"] = "no"
    with pytest.raises(UserError, match=r"training.progress='no' must be true or false"):
        build(RunConfig, content)
    content["training"] = {"epoch": 3}
    with pytest.raises(UserError, match=r"training.epoch is no key of .*; did you mean epochs"):
        build(RunConfig, content)
    del content["training"], content["model"]["path"]
    with pytest.raises(UserError, match=r"model\.path must be given"):
        build(RunConfig, content)


def test_grid():
    points = [point for _, point in grid(["budget=0.1,0.3", "seed=range(0,3)", "memory=lean"])]
    assert len(points) == 6
    assert points[1] == ["budget=0.1", "seed=1", "memory=lean"]
    assert [*settings(["memory=glob(lea*)"])] == ["memory=lean", "memory=leanest"]
    assert [*settings(["memory=plain,linear", "budget=0.1,0.3"])] == [
        "memory=plain budget=1.0",
        "memory=linear budget=0.1",
        "memory=linear budget=0.3",
    ]


def test_key_of_a_mapping_needs_no_plus():
    size = "model.config.hidden_size=8"
    assert check_arguments(RunConfig, [size, f"+{size}"], sweeps=False) == [f"++{size}"] * 2
    for new in ("tuning.targets.gpt2=[c_attn]", "tuning.targets={gpt2: [c_attn]}"):
        given = compose(RunConfig, ["model=minilm", "tuning=lora", new])
        assert given.tuning.targets["gpt2"] == ("c_attn",)


def test_modes():
    assert command(["budget=0.3", "-m"]) == ("train", ["-m", "budget=0.3"])
    assert command(["mode=plan", "fits=24GiB"]) == ("plan", ["fits=24GiB"])
    measures = ["task=cola", "mode=measure", "measure=memory"]
    assert command(["mode=measure", "task=cola"]) == ("measure", measures)
    assert compose(RunConfig, measures).measure.alone
    assert command(["--cfg", "job"]) == ("train", ["--cfg", "job"])


def test_a_folder_of_ones_own_has_choices(tmp_path):
    (folder := tmp_path / "task").mkdir()
    (folder / "mine.yaml").touch()
    given = ["--config-dir", str(tmp_path), "task=mine"]
    assert command(given) == ("train", given)
    with pytest.raises(UserError, match="there is no 'task/mine'"):
        command(given[2:])
