"""The callback in transformers' Trainer."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.wtacrs.tiny import tiny_bert
from wtacrs import MemoryConfig, SampledLinear
from wtacrs.integrations.trainer import STATE_FILE, WtacrsCallback

ROWS = [
    {
        "input_ids": torch.randint(1, 50, (8,), generator=torch.Generator().manual_seed(row)),
        "attention_mask": torch.ones(8, dtype=torch.long),
        "labels": row % 2,
    }
    for row in range(16)
]


@pytest.fixture
def make(tmp_path):
    def trainer(*callbacks, model=None, folder=".", **arguments):
        settings = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4}
        settings |= {"use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 1}
        args = TrainingArguments(tmp_path / folder, **settings | arguments)
        model = tiny_bert() if model is None else model
        return Trainer(model, args, train_dataset=ROWS, callbacks=[*callbacks])

    return trainer


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("memory", ["linear", "lean", "leanest"])
def test_a_resumed_run_is_the_same_run(make, tmp_path, memory, capsys):
    whole = make(callback := WtacrsCallback(memory, budget=0.3))
    whole.train()
    assert any(isinstance(m, SampledLinear) for m in whole.model.modules())
    assert "sampled linear layers" in capsys.readouterr().out
    resumed = make(WtacrsCallback(memory, budget=0.3))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(weights(resumed), weights(whole))
    (tmp_path / "checkpoint-2" / STATE_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="saved without this callback"):
        make(WtacrsCallback(memory)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    callback.handle.undo()
    assert not any(isinstance(m, SampledLinear) for m in whole.model.modules())


def test_resumed_into_another_folder(make, tmp_path):
    make(WtacrsCallback("lean", budget=0.3)).train()
    again = make(WtacrsCallback("lean", budget=0.3), folder="other")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    whole = make(WtacrsCallback("lean", budget=0.3), folder="third")
    whole.train()
    assert torch.equal(weights(again), weights(whole))


def test_added_to_a_trainer_that_is_there(make):
    trainer = make()
    trainer.add_callback(callback := WtacrsCallback("lean", budget=0.3))
    trainer.train()
    assert callback.handle.sampler.rows_seen or callback.handle.sampler.late


def test_leanest_takes_the_place_of_checkpointing(make):
    with pytest.warns(UserWarning, match="gradient_checkpointing is off: recompute='block'"):
        trainer = make(WtacrsCallback("leanest"), gradient_checkpointing=True)
    trainer.train()
    assert not trainer.model.is_gradient_checkpointing


def test_lean_composes_with_checkpointing(make, capsys):
    trainer = make(callback := WtacrsCallback("linear", budget=0.3), gradient_checkpointing=True)
    trainer.train()
    assert trainer.model.is_gradient_checkpointing
    assert "what sampling still saves is memory" in capsys.readouterr().out.lower()
    assert callback.handle.sampler.rows_kept < callback.handle.sampler.rows_seen


def test_a_model_that_is_made_anew_is_warned_of(make):
    trainer = make(WtacrsCallback("linear"))
    trainer.model = trainer.model_wrapped = tiny_bert()
    with pytest.warns(UserWarning, match="no sampled layer has drawn"):
        trainer.train()


def test_bad_arguments():
    with pytest.raises(ValueError, match="two sayings"):
        WtacrsCallback(MemoryConfig(), budget=0.1)
    with pytest.raises(ValueError, match="preset's name or MemoryConfig"):
        WtacrsCallback(None)
