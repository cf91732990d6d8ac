"""Runs with Ladder Side-Tuning: records, presets, resumption."""

import pytest

from tests.experiments.run.test_lst import T5_SIZES
from tests.experiments.run.test_text2text import t5_tokenizer, tiny_t5
from wtacrs_experiments.run import measure
from wtacrs_experiments.run.runner import run


def test_run(make_config):
    record = run(make_config("tuning=lst", "estimator=full", "training.max_steps=4"))
    assert record.status == "completed"
    assert record.metrics["per_epoch"][-1].keys() >= {"accuracy", "loss"}
    assert record.memory["gradient_bytes"] < 0.15 * record.memory["parameter_bytes"]


def test_presets_train_as_the_plain_model(make_config):
    steps = ("training.max_steps=3", "training.learning_rate=1e-2", "tuning=lst", "budget=1.0")
    plain = run(make_config("memory=plain", *steps)).metrics["train_loss"]
    for preset in ("linear", "lean", "leanest", "checkpoint"):
        loss = run(make_config(f"memory={preset}", *steps)).metrics["train_loss"]
        assert loss == pytest.approx(plain, abs=1e-5), preset


def test_t5_run(make_config, tiny_glue, tmp_path):
    tiny_t5(**T5_SIZES).save_pretrained(tmp_path / "t5")
    t5_tokenizer().save_pretrained(tmp_path / "t5")
    model = ("model=t5_small", f"model.path={tmp_path / 't5'}", "tuning=lst", "tuning.reduction=4")
    given = (*tiny_glue("mnli"), *model, "measure.memory=true")
    record = run(make_config(*given, "budget=0.5"))
    assert record.status == "completed"
    assert record.metrics["per_epoch"][-1].keys() >= {"accuracy", "loss"}
    assert record.sampling["layers"] > 0  # of the side alone: the rest is frozen


def test_resumed_run_is_the_same_run(make_config, monkeypatch):
    class Cut(measure.StepTimer):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            if state.global_step == 3:
                raise KeyboardInterrupt

    given = ("tuning=lst", "training.learning_rate=0.1", "measure.memory=false")
    whole = run(make_config(*given))
    given += ("training.checkpoint_steps=2",)
    with monkeypatch.context() as patched:
        patched.setattr(measure, "StepTimer", Cut)
        with pytest.raises(KeyboardInterrupt):
            run(make_config(*given, "overwrite=true"))
    assert run(make_config(*given)).metrics == whole.metrics
