"""The loss of language models that keeps less, against transformers' own."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

from tests.saved import SavedBytes
from tests.wtacrs.tiny import build, step, tiny_bert, tiny_t5
from wtacrs import MemoryConfig, apply_
from wtacrs.integrations.loss import OWN_LOSS, LanguageModelLoss, restore_loss_, save_less_of_loss_

WORDS = 301
SIZES = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24}
SIZES |= {"num_hidden_layers": 2, "vocab_size": WORDS}


def llama(tied=False):
    return build(LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=tied))


def masked():
    """Its head has a bias, and its loss shifts nothing."""
    ids = dict.fromkeys(("bos_token_id", "cls_token_id", "eos_token_id", "sep_token_id"), 1)
    config = ModernBertConfig(**SIZES, **ids, pad_token_id=0)
    return build(ModernBertForMaskedLM, config)


def cohere():
    """The logits are scaled after the head."""
    return build(Cohere2ForCausalLM, Cohere2Config(**SIZES, pad_token_id=0, logit_scale=0.3))


def gpt2():
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(n_embd=16, n_head=2, n_layer=2, vocab_size=WORDS, **drops)
    return build(GPT2LMHeadModel, config)


MODELS = {
    **{"llama": llama, "tied": lambda: llama(tied=True), "masked": masked},
    **{"scaled": cohere, "gpt2": gpt2},
}
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())


def batch(**more):
    """Two sequences, the second with tokens that have no label."""
    ids = torch.randint(1, WORDS, (2, 11), generator=torch.Generator().manual_seed(6))
    labels = ids.clone()
    labels[1, :5] = -100
    return {"input_ids": ids, "labels": labels, **more}


def assert_same(result, expected):
    (loss, gradients, _), (plain_loss, plain_gradients, _) = result, expected
    torch.testing.assert_close(loss, plain_loss, rtol=1e-6, atol=0)
    assert gradients.keys() == plain_gradients.keys()
    largest = max(gradient.abs().max() for gradient in plain_gradients.values())
    for name, gradient in plain_gradients.items():
        error = (gradients[name] - gradient).abs().max()
        assert error <= 1e-5 * gradient.abs().max().clamp(min=1e-2 * largest), name


@models
def test_loss_and_gradients_are_the_plain_ones(make):
    model = make()
    expected = step(model, batch())
    assert save_less_of_loss_(model) == [""]
    assert_same(step(model, batch()), expected)


@pytest.mark.parametrize("more", ["num_items_in_batch", "shift_labels"])
def test_what_a_trainer_passes_on(more):
    """A number of labels over several batches, as a tensor and as an int; labels in their place."""
    labels = torch.randint(1, WORDS, (2, 11), generator=torch.Generator().manual_seed(7))
    values = [torch.tensor(37), 37] if more == "num_items_in_batch" else [labels]
    for value in values:
        model = llama()
        expected = step(model, batch(**{more: value}))
        save_less_of_loss_(model)
        assert_same(step(model, batch(**{more: value})), expected)


def test_under_autocast():
    """As near to float32 as the plain one in bfloat16 is."""
    model = llama()
    exact = step(model, batch())
    plain = step(model, batch(), autocast=True)
    save_less_of_loss_(model)
    mine = step(model, batch(), autocast=True)
    torch.testing.assert_close(mine[0], plain[0], rtol=1e-6, atol=0)
    for name, gradient in exact[1].items():
        assert (mine[1][name] - gradient).norm() <= 1.5 * (plain[1][name] - gradient).norm() + 1e-6


def test_logits_are_there_and_can_have_a_loss_of_their_own():
    """As in distillation: both losses have their gradients."""

    def both(model):
        model.zero_grad()
        out = model(**batch())
        (out.loss + 1e-3 * out.logits.square().sum()).backward()
        return out.loss.detach(), {n: p.grad for n, p in model.named_parameters()}, out.logits

    model = llama()
    expected = both(model)
    save_less_of_loss_(model)
    result = both(model)
    assert_same(result, expected)
    assert torch.equal(result[2], expected[2])


@pytest.mark.parametrize("first", [True, False])
def test_a_head_whose_output_another_hook_changes(first):
    """The gradient is that of what the loss was given."""

    def halve(module, inputs, output):
        return output * 0.5

    model = llama()
    handle = model.lm_head.register_forward_hook(halve)
    expected = step(model, batch())
    if first:
        save_less_of_loss_(model)
    else:
        handle.remove()
        save_less_of_loss_(model)
        model.lm_head.register_forward_hook(halve)
    assert_same(step(model, batch()), expected)


def test_logits_that_are_changed_in_place():
    """As a model may that scales them: what the head gave is there no more."""
    model, labels = llama(), batch()["labels"]
    x = torch.randn(2, 11, 16, requires_grad=True)

    def gradient():
        logits = model.lm_head(x).mul_(0.5)
        return torch.autograd.grad(model.loss_function(logits, labels, WORDS), x)[0]

    expected = gradient()
    save_less_of_loss_(model)
    torch.testing.assert_close(gradient(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_bytes(dtype):
    """The logits in their own dtype in place of their log-softmax in float32, for 22 rows; of a row
    its label as there, and beside it whether that counts, and a number."""
    saved = []
    for change in (lambda model: None, save_less_of_loss_):
        model = llama().to(dtype)
        change(model)
        with SavedBytes(model) as counted:
            model(**batch())
        saved.append(counted.bytes)
    weight, count = 4, 8  # of the mean: what torch's loss keeps, and ours
    rows = 22 * (1 + 4)
    assert saved[0] - saved[1] == 22 * WORDS * (4 - dtype.itemsize) + weight - rows - count


@pytest.mark.parametrize("make", [tiny_bert, tiny_t5], ids=["classifier", "T5"])
def test_other_losses_stay(make):
    """What predicts words is told of; a classifier has no such loss."""
    model, left = make(), {}
    assert save_less_of_loss_(model, left) == []
    assert "_loss_function" not in vars(model)
    assert left == ({OWN_LOSS: [type(model).__name__]} if make is tiny_t5 else {})


def test_a_loss_of_the_users_own_stays():
    model = llama()
    model.loss_function = own = lambda logits, labels, **kwargs: logits.sum() * 0
    assert save_less_of_loss_(model, left := {}) == []
    assert model.loss_function is own
    assert [*left] == [OWN_LOSS]


def test_a_frozen_head_under_adapters():
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    expected = step(model, batch())
    assert save_less_of_loss_(model) == ["base_model.model"]
    assert_same(step(model, batch()), expected)
    restore_loss_(model)
    assert not model.base_model.model.lm_head._forward_hooks


def test_adapters_on_the_head():
    """What they add belongs to the logits."""
    config = LoraConfig(r=2, target_modules=["lm_head"])
    model = get_peft_model(llama(), config)
    torch.nn.init.normal_(model.base_model.model.lm_head.lora_B.default.weight)
    expected = step(model, batch())
    save_less_of_loss_(model)
    assert_same(step(model, batch()), expected)


@pytest.mark.parametrize("how", ["no gradients", "evaluation"])
def test_without_training_it_is_the_plain_one(how):
    model = llama().train(how != "evaluation")
    with torch.set_grad_enabled(how == "evaluation"):
        expected = model(**batch()).loss
        save_less_of_loss_(model)
        assert torch.equal(model(**batch()).loss, expected)


def test_copies_and_undo():
    model = llama()
    expected = step(model, batch())
    handle = apply_(model, MemoryConfig(sampling=None, lossless=("loss",)))
    assert handle.swapped == {"loss": ["LlamaForCausalLM"]}
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(copied.loss_function, LanguageModelLoss)
        assert_same(step(copied, batch()), expected)
    handle.undo()
    assert "_loss_function" not in vars(model)
    assert not model.lm_head._forward_hooks
    assert_same(step(model, batch()), expected)


def test_two_passes_before_one_backward_pass():
    """Each loss has the head's input of its own pass."""
    model = llama()
    first, second = batch(), {**batch(), "input_ids": batch()["input_ids"].flip(0)}

    def both():
        model.zero_grad()
        loss = model(**first).loss + 2 * model(**second).loss
        loss.backward()
        return loss.detach(), {n: p.grad for n, p in model.named_parameters()}, None

    expected = both()
    save_less_of_loss_(model)
    assert_same(both(), expected)
