"""The planner: what it plans is what a real step takes."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from wtacrs.measure.step import measure_step
from wtacrs_experiments.plan import __main__ as command
from wtacrs_experiments.plan.grid import settings
from wtacrs_experiments.plan.rehearsal import Rehearsal
from wtacrs_experiments.plan.search import largest_batch, plan
from wtacrs_experiments.run.memory import save_memory
from wtacrs_experiments.run.models import new_model
from wtacrs_experiments.run.text2text import is_text_to_text
from wtacrs_experiments.run.tuning import tune

BERT = (
    *("model=digits_tiny", "batch_size=4", "max_length=32", "device=cpu"),
    *("model.config.hidden_dropout_prob=0.1", "model.config.attention_probs_dropout_prob=0.1"),
)
T5 = (
    *("model=t5_small", "batch_size=4", "max_length=32", "target_length=3", "device=cpu"),
    *("model.architecture.d_model=64", "model.architecture.d_ff=128"),
    *("model.architecture.num_layers=1", "model.architecture.num_decoder_layers=1"),
    *("model.architecture.num_heads=2", "model.architecture.d_kv=32"),
    "model.architecture.vocab_size=100",
)
SIZES = ("num_hidden_layers=12", "hidden_size=256", "intermediate_size=1024")
METHODS = {
    "bert-eager": (*BERT, "memory=plain", "memory.attention=eager"),
    "bert-sdpa": (*BERT, "memory=plain", "memory.attention=sdpa"),
    "bert-linear": (*BERT, "memory=linear"),
    "bert-lean": (*BERT, "memory=lean"),
    "bert-leanest": (*BERT, "memory=leanest"),
    "bert-leanest-lora": (*BERT, "memory=leanest", "tuning=lora"),
    "t5-eager": (*T5, "memory=plain", "memory.attention=eager"),
    "t5-paper": (*T5, "memory=paper"),
    "t5-lean": (*T5, "memory=lean", "budget=0.1"),
    "t5-leanest": (*T5, "memory=leanest"),
    "t5-checkpoint": (*T5, "memory=checkpoint"),
    "bert-linear-autocast": (*BERT, "memory=linear", "precision=bf16-autocast"),
    "bert-lean-autocast": (*BERT, "memory=lean", "precision=bf16-autocast"),
    "t5-eager-autocast": (*T5, "memory=plain", "memory.attention=eager", "precision=bf16-autocast"),
    "t5-paper-lora": (*T5, "memory=paper", "tuning=lora"),
    "bert-lst": (*BERT, "memory=plain", "tuning=lst"),
    "t5-lst": (*T5, "memory=plain", "tuning=lst"),
    "bert-accumulates": (*BERT, "memory=plain", "gradient_accumulation_steps=3"),
    "bert-adafactor": (*BERT, "memory=linear", "optimizer=adafactor"),
    "bert-adamw": (*BERT, "memory=leanest", "optimizer=adamw_torch"),
    "t5-lst-linear": (*T5, "memory=linear", "tuning=lst"),
}


def one(*overrides):
    (config,) = settings([*overrides]).values()
    return config


def printed(capsys, *overrides):
    assert command.main([*overrides]) == 0
    return capsys.readouterr().out


def real_step(config):
    """The step that ``config`` describes, on real tensors on the CPU."""
    model = new_model(config.model)
    tune(model, config.tuning)
    save_memory(model, config, config.batch_size, config.max_length)
    model = model.to(torch.bfloat16 if config.precision == "bf16" else torch.float32).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    args = TrainingArguments("unused", optim=config.optimizer, use_cpu=True, learning_rate=1e-3)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
    optimizer = kind(trained, **options)
    b = config.batch_size
    mask = torch.ones(b, config.max_length, dtype=torch.long)
    mask[0, -1] = 0  # a mask without padding is dropped by transformers
    answer = (b, config.target_length) if is_text_to_text(model.config) else (b,)
    batch = {"input_ids": torch.randint(1, 16, mask.shape), "attention_mask": mask}
    batch["labels"] = torch.ones(answer, dtype=torch.long)

    def step():
        autocast = config.precision == "bf16-autocast"
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(**batch).loss
        loss.backward()

    accumulates = config.gradient_accumulation_steps > 1
    return measure_step(model, optimizer, batch, step=step, accumulates=accumulates)


@pytest.mark.parametrize("method", METHODS)
def test_plan_is_what_a_real_step_takes(method):
    config = one(*METHODS[method])
    planned, measured = plan(config), real_step(config)
    assert planned.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.01)
    assert planned.saved_bytes == pytest.approx(measured.saved_bytes, rel=0.01)
    assert planned.parameter_bytes == measured.parameter_bytes
    assert planned.gradient_bytes == measured.gradient_bytes
    assert planned.optimizer_bytes == measured.optimizer_bytes
    for part, count in measured.at_peak.items():
        assert planned.at_peak[part] == pytest.approx(count, abs=0.01 * measured.peak_bytes)


def test_bf16_is_that_of_parameters_gradients_and_optimizer():
    config = one(*BERT, "memory=lean", "precision=bf16")
    planned, single = plan(config), plan(one(*BERT, "memory=lean"))
    assert planned.peak_bytes == pytest.approx(real_step(config).peak_bytes, rel=0.01)
    assert 2 * planned.parameter_bytes == single.parameter_bytes
    assert 2 * planned.gradient_bytes == single.gradient_bytes
    assert planned.optimizer_bytes == pytest.approx(single.optimizer_bytes / 2, rel=0.01)


def test_a_step_of_several_batches():
    """It has the gradients of one, saves what one does, and computes each."""
    one_batch, three = (plan(one(*METHODS[name])) for name in ("bert-eager", "bert-accumulates"))
    three_eager = plan(one(*METHODS["bert-eager"], "gradient_accumulation_steps=3"))
    assert three_eager.flops == 3 * one_batch.flops
    assert three_eager.relative_flops == one_batch.relative_flops == 1
    assert three_eager.saved_bytes == one_batch.saved_bytes
    assert three.at_peak["gradient"] == three.gradient_bytes


def test_linear_layers_cost_two_thirds_and_the_budget():
    """Of three products of n rows, one has k; the pooler and head, which stay full, are small."""
    planned = plan(one(*T5, "memory=linear", "budget=0.25", "max_length=128"))
    plain = plan(one(*T5, "memory=plain", "memory.attention=eager", "max_length=128"))
    assert plain.flops * 2.25 / 3 < planned.flops < plain.flops


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        (BERT, [f"model.config.{size}" for size in SIZES]),
        (T5, ["model.architecture.num_layers=6", "model.architecture.num_decoder_layers=6"]),
    ],
    ids=["bert", "t5"],
)
def test_leanest_takes_less_than_checkpointing_at_fewer_operations(model, blocks):
    """Of twelve blocks, where activations are more than parameters."""
    kept = [text for text in model if "layers=" not in text and text != "device=cpu"]
    large = [text.replace("batch_size=4", "batch_size=64") for text in kept]
    large = [text.replace("max_length=32", "max_length=64") for text in large]
    peak, flops = {}, {}
    for preset in ("plain", "checkpoint", "leanest"):
        memory, flops[preset] = Rehearsal(one(*large, *blocks, f"memory={preset}")).step(64)
        peak[preset] = memory.peak_bytes
    assert peak["leanest"] < peak["checkpoint"] < peak["plain"] / 3
    assert flops["leanest"] < 0.9 * flops["checkpoint"]


def test_largest_batch_is_that_of_brute_force():
    rehearsal = Rehearsal(one(*BERT, "memory=plain"))
    peaks = {b: rehearsal.peak_bytes(b) for b in range(1, 10)}
    for limit in (peaks[5], peaks[5] - 1, (peaks[7] + peaks[8]) // 2, peaks[1], peaks[1] - 1):
        best = max((b for b, peak in peaks.items() if peak <= limit), default=0)
        for first in (1, 4, 9):
            assert largest_batch(rehearsal.peak_bytes, limit, first) == best


@pytest.mark.parametrize(
    "peak",
    [
        lambda b: 1000 + 37 * b,
        lambda b: max(5000, 1000 + 37 * b),  # flat while the optimizer's step is the peak
        lambda b: max(1000 + 10 * b, 37 * b, 90 * b - 20000),
        lambda b: 1000 + 37 * b + 5 * (b % 2) + b * b // 100,
    ],
)
def test_largest_batch_takes_few_evaluations(peak):
    for limit in (5000, 5036, 5037, 12345, 99999):
        asked = []

        def count(b, asked=asked):
            asked.append(b)
            return peak(b)

        found = largest_batch(count, limit, 32)
        assert peak(found) <= limit < peak(found + 1)
        assert len(asked) == len(set(asked)) <= 18


def test_each_step_is_as_if_it_were_the_first():
    config = one(*BERT, "memory=lean")
    rehearsal = Rehearsal(config)
    rehearsal.step(9)
    assert rehearsal.step(4) == Rehearsal(config).step(4)


def test_cuda_keeps_dropout_masks_in_bytes():
    overrides = (*BERT, "memory=plain", "memory.attention=eager")
    saved = {device: plan(one(*overrides, f"device={device}")) for device in ("cpu", "cuda")}
    b, t, layers, heads, width = 4, 32, 2, 4, 64
    in_blocks = layers * (b * heads * t * t + 2 * b * t * width)
    elements = in_blocks + b * t * width + b * width  # and after the embeddings and the pooler
    assert saved["cpu"].saved_bytes - saved["cuda"].saved_bytes == 3 * elements
