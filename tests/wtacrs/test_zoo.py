"""Every family of the zoo under the presets: exact where it has to be, plain where it has to be."""

import copy
import io
import math

import pytest
import torch
import transformers

from tests.wtacrs import zoo
from wtacrs import SamplingConfig, apply_, sample_linears_

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def quiet():
    before = transformers.logging.get_verbosity()
    zoo.quiet()
    yield
    transformers.logging.set_verbosity(before)


def step(model, given):
    model.zero_grad()
    torch.manual_seed(2)
    loss = model(**given).loss
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def outputs(model, given):
    """Of evaluation, without and with gradients enabled."""
    model.eval()
    found = []
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            output = model(**given)
            found += [output.loss.detach(), output.logits.detach()]
    model.train()
    return found


def generated(model, given):
    how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    ids = model.eval().generate(input_ids=given["input_ids"], **how)
    model.train()
    return ids


def largest_error(gradients, expected):
    """Relative to the largest element of each, or to a thousandth of the largest of all."""
    least = 1e-3 * max(gradient.abs().max() for gradient in expected.values())
    errors = [
        (gradients[name] - gradient).abs().max() / gradient.abs().max().clamp(min=least)
        for name, gradient in expected.items()
    ]
    return max(errors).item()


# Weights stored transposed, tied or shared, fused projections, experts, two streams.
HIGHEST_RISK = ("gpt2", "albert", "falcon", "bloom", "deberta-v2", "mixtral", "deepseek_v3", "t5")
HIGHEST_RISK += ("gemma3_text", "whisper")
ROUNDED = {"dinov2": 2e-5}  # whose layers' scales make more of what float32 rounds
WITHOUT_ATTENTION = ("mamba", "convnext")


@pytest.mark.parametrize("preset", zoo.PRESETS)
@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_family(name, preset):
    """Gradients at budget 1 to 1e-5, evaluation and text bit for bit, copies, and undo."""
    model, given = zoo.make(name), zoo.batch(name)
    expected, classes = step(model, given), zoo.modules_of(model)
    evaluated, keys = outputs(model, given), [*model.state_dict()]
    text = generated(model, given) if zoo.ZOO[name] in ("causal", "text to text") else None
    handle = apply_(model, preset, budget=1.0)
    told = "recompute: no module in a block attends" in handle.left
    assert told == (name in WITHOUT_ATTENTION and preset == "lean")
    rtol = ROUNDED.get(name, 1e-5)
    assert handle.report().sampled_share > 0.05  # embeddings and experts weigh much in tiny ones
    loss, gradients = step(model, given)
    assert loss.item() == pytest.approx(expected[0].item(), rel=1e-6)
    assert gradients.keys() == expected[1].keys()
    assert largest_error(gradients, expected[1]) < rtol
    for found, plain in zip(outputs(model, given), evaluated, strict=True):
        assert torch.equal(found, plain)
    if text is not None:
        assert torch.equal(generated(model, given), text)
    assert [*model.state_dict()] == keys
    assert largest_error(step(copy.deepcopy(model), given)[1], expected[1]) < rtol
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert largest_error(step(torch.load(file, weights_only=False), given)[1], expected[1]) < rtol
    handle.undo()
    sampling = apply_(model, preset, budget=0.3)  # at 1 a layer that samples is a plain one anyway
    assert all(map(torch.equal, outputs(model, given), evaluated))
    sampling.undo()
    assert zoo.modules_of(model) == classes
    again = step(model, given)
    assert torch.equal(again[0], expected[0])
    assert all(torch.equal(again[1][key], gradient) for key, gradient in expected[1].items())


@pytest.mark.parametrize(
    "name",
    HIGHEST_RISK,
)
def test_the_estimate_is_unbiased(name):
    """z of the mean of 150 gradients along one random direction, over all sampled weights; false
    alarms: |z| > 4.5, 7 in a million each."""
    model, given = zoo.make(name), zoo.batch(name)
    _, expected = step(model, given)
    sampler = sample_linears_(model, SamplingConfig("wtacrs", budget=0.4))
    weights = {f"{layer}.weight" for layer in sampler.names} & expected.keys()
    generator = torch.Generator().manual_seed(3)
    directions = {
        key: torch.randn(expected[key].shape, generator=generator) / expected[key].norm()
        for key in sorted(weights)
    }
    exact = sum((expected[key] * direction).sum() for key, direction in directions.items())
    found = []
    for _ in range(150):
        _, gradients = step(model, given)
        found.append(sum((gradients[key] * d).sum() for key, d in directions.items()))
    values = torch.stack(found)
    assert values.std() > 0
    assert abs((values.mean() - exact) / (values.std() / math.sqrt(len(values)))) < 4.5


def test_the_table_is_up_to_date():
    assert zoo.TABLE.read_text(encoding="utf-8") == zoo.INTRODUCTION + zoo.table() + "\n"
