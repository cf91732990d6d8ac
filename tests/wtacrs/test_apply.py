"""The one door: every preset on real models, exact where it says so, and its inverse."""

import copy
import io

import pytest
import torch
from transformers import MPNetConfig, MPNetForSequenceClassification

from tests.wtacrs.tiny import assert_same_step, batch_of, build, models, step, tiny_bert, tiny_t5
from wtacrs import PRESETS, MemoryConfig, SampledLinear, SamplingConfig, apply_
from wtacrs.config import preset

SAMPLE = [name for name, config in PRESETS.items() if config.samples]
ON_CPU = [name for name in PRESETS if name != "checkpoint_offload"]
presets = pytest.mark.parametrize("name", ON_CPU)
samples = pytest.mark.parametrize("name", SAMPLE)
quiet = pytest.mark.filterwarnings("ignore:.(is_)?gradient_checkpointing")


def applied(make, name, budget=0.5, **options):
    model = make()
    return model, apply_(model, name, **({"budget": budget} if name in SAMPLE else {}), **options)


def anatomy(model):
    """All that a swap may leave behind: classes, attributes of instances, hooks, the attention."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
    found = []
    for name, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if key[0] != "_"}
        own.pop("gradient_checkpointing", None)  # transformers leaves it behind, False
        attributes = {k: v for k, v in own.items() if isinstance(v, (str, int, float, bool))}
        counts = [len(getattr(module, hook)) for hook in hooks]
        found.append((name, type(module), sorted(own), sorted(attributes.items()), counts))
    return found, model.config._attn_implementation, [*model.state_dict()]


@quiet
@presets
@models
def test_exact_at_budget_one(make, name):
    """With dropout; all but 'paper', which samples the attention at its budget too."""
    expected = step(make())
    model, _ = applied(make, name, 1.0)
    for _ in range(2):
        assert_same_step(step(model), expected, 1e-4, 1e-5)


@quiet
@presets
@models
def test_undo_is_the_inverse(make, name):
    """Of a model that is in use: with an optimizer, after a step."""
    model = make()
    before, expected = anatomy(model), step(model)
    parameters = [*map(id, model.parameters())]
    handle = apply_(model, name)
    assert before != anatomy(model)
    step(model)
    handle.undo()
    after = anatomy(model)
    for mine, plain in zip(after[0], before[0], strict=True):
        assert mine == plain
    assert after == before
    assert [*map(id, model.parameters())] == parameters
    assert_same_step(step(model), expected, 0)
    with pytest.raises(ValueError, match="undone already"):
        handle.undo()
    apply_(model, name)  # from the start


@samples
def test_a_second_call_is_refused(name):
    model, _ = applied(tiny_bert, name)
    before = anatomy(model)
    for other in SAMPLE:
        with pytest.raises(ValueError, match=r"applied to this Bert.*already.*handle\.undo"):
            apply_(model, other)
    assert anatomy(model) == before


def test_a_failure_in_the_middle_leaves_nothing():
    """'paper' attends with samplers of layers inside, of which here are none in the attention."""
    model = tiny_bert()
    before = anatomy(model)
    with pytest.raises(ValueError, match=r"has no sampled one"):
        apply_(model, "paper", include=["*.output.dense"], exclude=["*attention*"])
    assert anatomy(model) == before


@pytest.mark.parametrize(
    ("memory", "options", "message"),
    [
        ("leaner", {}, "'leaner' is unknown; choose one of plain, linear, paper, lean"),
        ("lean", {"budgt": 0.3}, r"unknown keys \['budgt'\]; those of a SamplingConfig are"),
        ("lean", {"budget": 3}, r"budget=3"),
        ("checkpoint", {"budget": 0.3}, r"'checkpoint' samples nothing, so \['budget'\]"),
        ("plain", {"seed": 1}, r"'plain' samples nothing, so \['seed'\]"),
        (MemoryConfig(), {"budget": 0.3}, r"\['budget'\] and a MemoryConfig"),
        ("checkpoint_offload", {}, "needs an accelerator"),
        ("linear", {"include": ["nowhere.*"]}, "no linear layer matches"),
    ],
)
def test_bad_input_is_named(memory, options, message):
    model = tiny_bert()
    before = anatomy(model)
    with pytest.raises(ValueError, match=message):
        apply_(model, memory, **options)
    assert anatomy(model) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gelu": "no"}, "gelu='no' is unknown; choose exact, rounded"),
        ({"attention": "flash"}, "attention='flash' is unknown"),
        ({"recompute": "all"}, "recompute='all' is unknown"),
        ({"attention_output": "no"}, "is unknown; choose auto, kept, recomputed"),
        ({"attention_output": "kept"}, "needs attention='recompute' and recompute='attention' or"),
        ({"lossless": ("gelu",)}, r"lossless holds \['gelu'\]"),
        ({"attention": "sampled", "sampling": None}, "needs a sampling estimator"),
        ({"attention": "sampled", "sampling": SamplingConfig("full")}, "needs a sampling"),
    ],
)
def test_a_bad_config_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        MemoryConfig(**options)


def test_a_config_of_ones_own():
    """It is what the name of a preset stands for, and 'full' samples nothing."""
    assert preset("lean", budget=0.1).sampling == SamplingConfig(budget=0.1)
    handle = apply_(tiny_bert(), MemoryConfig(SamplingConfig("full"), lossless=["norm"]))
    assert handle.sampler is None
    assert [*handle.swapped] == ["LosslessLayerNorm"]


@quiet
def test_gradient_checkpointing_before():
    """What recomputes blocks takes its place, and is refused; the others live with it."""
    for name in ("leanest", "checkpoint"):
        model = tiny_bert()
        model.gradient_checkpointing_enable()
        with pytest.raises(ValueError, match=r"checkpointing enabled already.*disable it"):
            apply_(model, name)
    expected = step(tiny_bert())
    for name in ("linear", "lean"):
        model = tiny_bert()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        apply_(model, name, budget=1.0)
        assert_same_step(step(model), expected, 1e-4, 1e-5)


@quiet
def test_gradient_checkpointing_after():
    model, _ = applied(tiny_bert, "leanest")
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"gradient checkpointing enabled already"):
        step(model)
    model.gradient_checkpointing_disable()
    step(model)


@quiet
@pytest.mark.parametrize("copied", ["deepcopy", "torch.save"])
@presets
@models
def test_copies(make, name, copied):
    """They make the same step as the model, each with its own sampler."""
    model, handle = applied(make, name)
    step(model)
    if copied == "deepcopy" or name == "checkpoint":  # transformers' hook cannot be pickled
        mine = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        mine = torch.load(file, weights_only=False)
    assert anatomy(mine) == anatomy(model)
    state = handle.state_dict()
    assert_same_step(step(mine), step(model), 0)
    handle.load_state_dict(state)
    samplers = {m.sampler for m in mine.modules() if isinstance(m, SampledLinear)}
    assert handle.sampler not in samplers
    assert len(samplers) == (name in SAMPLE)


@samples
@pytest.mark.parametrize("make", [tiny_bert, tiny_t5], ids=["bert", "t5"])
def test_a_resumed_run_is_the_same_run(make, name):
    batch = batch_of(make()) | {"sample_ids": torch.arange(4)}
    options = {"num_samples": 4, "max_tokens": 10, "estimator": "pps"}
    model, handle = applied(make, name, **options)
    step(model, dict(batch))
    state = copy.deepcopy(handle.state_dict())
    expected = [step(model, dict(batch)) for _ in range(2)][-1]
    other, resumed = applied(make, name, **options)
    resumed.load_state_dict(state)
    assert_same_step([step(other, dict(batch)) for _ in range(2)][-1], expected, 0)


def test_a_state_of_another_preset_is_refused():
    state = applied(tiny_bert, "lean")[1].state_dict()
    handle = applied(tiny_bert, "plain")[1]
    with pytest.raises(ValueError, match="another MemoryConfig: sampler differs"):
        handle.load_state_dict(state)
    rounded = apply_(tiny_bert(), MemoryConfig(gelu="rounded"))
    with pytest.raises(ValueError, match="rounding differs"):
        rounded.load_state_dict(state)
    rounded.load_state_dict(rounded.state_dict())


def test_attention_of_its_own_stays_and_is_reported():
    """MPNet does not use the AttentionInterface; its blocks are recomputed all the same."""
    config = MPNetConfig(
        **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 64, "vocab_size": 50, "attn_implementation": "eager"},
    )
    model = build(MPNetForSequenceClassification, config)
    (before, _, _), expected = anatomy(model), step(model)
    handle = apply_(model, "leanest", budget=1.0)
    assert "does not use the AttentionInterface" in "".join(handle.report().left)
    assert_same_step(step(model), expected, 1e-4, 1e-5)
    handle.undo()
    assert anatomy(model)[0] == before
    with pytest.raises(ValueError, match="AttentionInterface"):
        apply_(model, MemoryConfig(attention="recompute"))


@quiet
def test_undo_leaves_embeddings_that_need_gradients():
    """As adapters do; the switch of checkpointing turns it on as well."""
    model = tiny_bert()
    model.enable_input_require_grads()
    apply_(model, "checkpoint").undo()
    assert model.bert.embeddings.word_embeddings(torch.tensor([1])).requires_grad
    assert len(model.bert.embeddings.word_embeddings._forward_hooks) == 1
