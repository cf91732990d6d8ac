"""Training: a resumed run is the same run, and checkpoints are whole or set aside."""

import shutil
import signal

import pytest
import torch
from transformers import Trainer

from wtacrs.integrations.trainer import STATE_FILE
from wtacrs_experiments.errors import UserError
from wtacrs_experiments.records.record import RunRecord
from wtacrs_experiments.run import checkpoints, measure, runner
from wtacrs_experiments.run.interruption import SIGNALS, Interruption

# Three steps an epoch, two epochs; dropout draws from the global generator, wtacrs from its own.
RESUMED = (
    *("task.max_train_rows=24", "training.max_steps=-1", "training.epochs=2"),
    *("model.config.hidden_dropout_prob=0.1", "measure.memory=false", "measure.warmup_steps=0"),
)


class Cut(measure.StepTimer):
    """Cuts a run off, once, ``at`` a step, an evaluation or the end."""

    at = None

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == self.at:
            raise KeyboardInterrupt
        name, _, step = str(self.at).partition(" at ")
        if name in SIGNALS and step in ("", str(state.global_step)):
            Cut.at = None
            signal.raise_signal(getattr(signal, name))

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.at == f"evaluation at {state.global_step}":
            Cut.at = None
            signal.raise_signal(signal.SIGTERM)

    def on_train_end(self, args, state, control, **kwargs):
        if self.at == "the end":
            raise KeyboardInterrupt


@pytest.fixture
def train(make_config, monkeypatch, tmp_path):
    """Trains, maybe cut off, by a signal in the first step; returns record, losses, handle."""
    losses, handles = [], []
    training_step, save = Trainer.training_step, runner.save_memory

    def listen(*args, **kwargs):
        loss = training_step(*args, **kwargs)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(Trainer, "training_step", listen)
    monkeypatch.setattr(measure, "StepTimer", Cut)
    monkeypatch.setattr(Cut, "at", None)
    monkeypatch.setattr(runner, "save_memory", lambda *a: handles.append(save(*a)) or handles[-1])

    def run(*overrides, folder="checkpoints", cut_after=None):
        Cut.at = cut_after
        losses.clear()
        config, record = make_config(*RESUMED, *overrides), RunRecord("failed", {})
        try:
            if config.overwrite:
                checkpoints.start_over(tmp_path / folder, tmp_path / "none.json")
            with Interruption() as interruption:
                runner.carry_out(config, record, tmp_path / folder, interruption)
        except KeyboardInterrupt:
            assert record.metrics is None
        return record, losses.copy(), handles[-1]

    return run


def flat(state):
    """The leaves of nested dictionaries and tuples, tensors as lists."""
    if isinstance(state, dict):
        return [leaf for key in sorted(state) for leaf in (key, *flat(state[key]))]
    if isinstance(state, (list, tuple)):
        return [leaf for item in state for leaf in flat(item)]
    return [state.tolist() if isinstance(state, torch.Tensor) else state]


@pytest.mark.parametrize(
    ("estimator", "every", "cut_after", "from_step"),
    [
        ("wtacrs", 2, 4, 2),  # within the first epoch: the rest of the epoch has to follow
        ("wtacrs", 3, 5, 3),  # at its end: the evaluation must not be lost
        ("wtacrs", 2, 5, 4),  # within the second, where gradient norms per sample are used
        ("full", 2, 5, 4),
        ("wtacrs", 4, 3, 0),  # before the first checkpoint: from the start
        ("wtacrs training.group_by_length=true", 2, 3, 2),  # the order of an epoch is one draw
        ("wtacrs training.group_by_length=true", 2, 5, 4),  # from where dropout had got to
        ("wtacrs training.group_by_length=true", 3, 5, 3),  # a new draw
    ],
)
def test_resumed_run_is_the_same_run(estimator, every, cut_after, from_step, train, capsys):
    estimator, *more = estimator.split()
    chosen = (f"estimator={estimator}", *more)
    whole, losses, handle = train(*chosen, folder="whole")
    assert len(losses) == 6
    chosen += (f"training.checkpoint_steps={every}",)
    _, before, _ = train(*chosen, cut_after=cut_after)
    assert before == losses[:cut_after]
    resumed, after, resumed_handle = train(*chosen)
    assert after == losses[from_step:]
    assert resumed.metrics == whole.metrics
    assert [epoch["epoch"] for epoch in resumed.metrics["per_epoch"]] == [1.0, 2.0]
    assert resumed.throughput["steps_timed"] == 6 - from_step
    assert (f"checkpoint-{from_step}\n" in capsys.readouterr().out) == (from_step > 0)
    assert (handle.sampler is None) == (estimator == "full")
    assert flat(resumed_handle.state_dict()) == flat(handle.state_dict())


@pytest.mark.parametrize("when", ["SIGTERM at 3", "evaluation at 3"])
def test_a_signal_at_the_end_of_an_epoch_loses_nothing(when, train):
    """In its last step, or while it is evaluated: the checkpoint comes after the evaluation."""
    whole, losses, _ = train("estimator=wtacrs", folder="whole")
    assert train("estimator=wtacrs", cut_after=when)[1] == losses[:3]
    resumed, after, _ = train("estimator=wtacrs")
    assert after == losses[3:]
    assert resumed.metrics == whole.metrics


@pytest.mark.parametrize("when", ["SIGTERM at 6", "evaluation at 6"])
def test_a_signal_as_training_ends_lets_it_end(when, train):
    whole, losses, _ = train("estimator=wtacrs", folder="whole")
    record, all_of_them, _ = train("estimator=wtacrs", cut_after=when)
    assert (record.metrics, all_of_them) == (whole.metrics, losses)


def test_resumed_run_has_the_probes_of_the_whole_run(train):
    """One of before the checkpoint, one of between it and the end of the part, one of after it."""
    chosen = ("measure=variance", "measure.probe_steps=[1,3,5]", "measure.budgets=[0.3]")
    chosen += ("measure.methods=[crs,wtacrs]", "measure.sources=[none,auto]")
    chosen += ("training.checkpoint_steps=2",)
    whole, _, _ = train(*chosen, folder="whole")
    assert [probe["step"] for probe in whole.variance["probes"]] == [1, 3, 5]
    train(*chosen, cut_after=5)
    resumed, after, _ = train(*chosen)
    assert len(after) == 2  # it went on from step 4
    assert resumed.variance == whole.variance


def test_checkpoint_of_another_version(train, tmp_path):
    train("training.checkpoint_steps=2", cut_after=3)
    file = tmp_path / "checkpoints" / "checkpoint-2" / STATE_FILE
    torch.save({"losses": torch.ones(2), "sampler": {}}, file)
    checkpoints.seal(file.parent)
    with pytest.raises(UserError, match=r"holds losses, sampler, .* needs facts, memory: .*overw"):
        train("training.checkpoint_steps=2")
    train("training.checkpoint_steps=2", "overwrite=true")


def test_run_cut_off_after_its_last_step(train):
    four = ("training.max_steps=4", "training.checkpoint_steps=2")
    whole, losses, _ = train(*four, folder="whole")
    train(*four, cut_after="the end")
    resumed, after, _ = train(*four)  # the Trainer would train on from a checkpoint of step 4
    assert after == losses[2:]
    assert resumed.metrics == whole.metrics


def test_unfinished_checkpoint_is_passed_over(train, tmp_path):
    _, losses, _ = train("training.checkpoint_steps=2", cut_after=3)
    folder = tmp_path / "checkpoints"
    (folder / "checkpoint-10").mkdir()  # cut off while it was written
    assert train("training.checkpoint_steps=2", cut_after=3)[1] == losses[2:]
    (folder / "checkpoint-2" / checkpoints.MANIFEST).unlink()  # cut off while it was removed
    assert train("training.checkpoint_steps=2")[1][:3] == losses


@pytest.mark.parametrize("file", ["optimizer.pt", "model.safetensors", STATE_FILE])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damaged_checkpoint_is_set_aside(train, tmp_path, capsys, file, damage):
    _, losses, _ = train("training.checkpoint_steps=2", cut_after=3)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-4")
    shutil.copytree(folder / "checkpoint-2", folder / "damaged-checkpoint-4")  # once before
    content = (folder / "checkpoint-4" / file).read_bytes()
    if damage == "gone":
        (folder / "checkpoint-4" / file).unlink()
    else:
        new = content[:-1] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1])
        (folder / "checkpoint-4" / file).write_bytes(new)
    assert train("training.checkpoint_steps=2", cut_after=3)[1] == losses[2:]  # from the older
    assert f"set aside: {folder}/damaged-checkpoint-4 ({file}" in capsys.readouterr().out
    assert (folder / "damaged-checkpoint-4").is_dir()


def test_the_one_before_is_kept_until_the_next_is_whole(train, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    whole = []
    seal = checkpoints.seal

    def looked_at(path):
        whole.append(sorted(p.parent.name for p in folder.glob(f"*/{checkpoints.MANIFEST}")))
        seal(path)

    monkeypatch.setattr(checkpoints, "seal", looked_at)
    train("training.checkpoint_steps=2", cut_after=5)
    assert whole == [[], ["checkpoint-2"]]
    assert [p.name for p in folder.glob("*")] == ["checkpoint-4"]


def test_last_checkpoint(tmp_path):
    assert checkpoints.keep_last_checkpoint(tmp_path / "nowhere") is None
    for step in (8, 10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (8, 10):
        checkpoints.seal(tmp_path / f"checkpoint-{step}")
    assert checkpoints.keep_last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def test_a_run_that_replaces_a_record_goes_on_where_it_was_cut_off(train, tmp_path):
    """It starts anew once."""
    folder = tmp_path / "checkpoints"
    _, losses, _ = train("training.checkpoint_steps=2", cut_after=3)
    again = ("training.checkpoint_steps=2", "overwrite=true")
    assert train(*again, cut_after=3)[1] == losses[:3]
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "replaces.txt"]
    assert train(*again, cut_after=3)[1] == losses[2:3]
    (tmp_path / "none.json").write_text("{}")  # a run that replaces another record
    assert train(*again, cut_after=3)[1] == losses[:3]


def test_checkpoints_by_the_clock(train, tmp_path):
    whole, losses, _ = train(folder="whole")
    _, before, _ = train("training.checkpoint_minutes=1e-9", cut_after=4)
    assert before == losses[:4]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-3"]
    resumed, after, _ = train()
    assert (after, resumed.metrics) == (losses[3:], whole.metrics)


def test_a_signal_leaves_a_checkpoint_after_its_step(train, tmp_path):
    one = ("training.epochs=1", "task.max_train_rows=48")
    whole, losses, _ = train(*one, folder="whole")
    for step, name in enumerate(SIGNALS):
        assert train(*one, cut_after=name)[1] == losses[step : step + 1], name
        left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
        assert left == [f"checkpoint-{step + 1}"], name
    resumed, after, _ = train(*one)
    assert (after, resumed.metrics) == (losses[5:], whole.metrics)
