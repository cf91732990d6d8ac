"""What the Trainer is told of a run's config."""

import pytest

from wtacrs_experiments.run.training import training_arguments


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("training.epochs=7", "num_train_epochs", 7),
        ("training.max_steps=9", "max_steps", 9),
        ("training.batch_size=5", "per_device_train_batch_size", 5),
        ("training.eval_batch_size=6", "per_device_eval_batch_size", 6),
        ("training.learning_rate=0.5", "learning_rate", 0.5),
        ("training.weight_decay=0.25", "weight_decay", 0.25),
        ("training.warmup_ratio=0.2", "warmup_steps", 0.2),
        ("training.warmup_steps=7", "warmup_steps", 7),
        ("training.gradient_accumulation_steps=3", "gradient_accumulation_steps", 3),
        ("training.optimizer=adafactor", "optim", "adafactor"),
        ("training.device=auto", "optim", "adamw_torch_fused"),
        ("training.max_grad_norm=3", "max_grad_norm", 3),
        ("training.precision=bf16-autocast", "bf16", True),
        ("training.precision=bf16", "bf16", False),
        ("training.device=cpu", "use_cpu", True),
        ("training.checkpoint_steps=3", "save_steps", 3),
        ("training.checkpoint_steps=0", "save_strategy", "no"),
        ("seed=5", "seed", 5),
        ("seed=5", "data_seed", 5),
        ("logging=none", "report_to", []),
    ],
)
def test_training_arguments(override, name, value, make_config, tmp_path):
    assert getattr(training_arguments(make_config(override), tmp_path), name) == value


def test_warmup_is_a_share_of_the_steps(make_config, tmp_path):
    config = make_config("training.warmup_ratio=0.25")
    assert training_arguments(config, tmp_path).get_warmup_steps(100) == 25
