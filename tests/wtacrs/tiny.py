"""Real transformers models of a few thousand parameters, their batches, a training step."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from wtacrs import SamplingConfig, sample_linears_
from wtacrs.config import LAYERS as KINDS
from wtacrs.layers import save_less_
from wtacrs.layers.chunks import chunk_feed_forward_
from wtacrs.recompute import recompute_

EXACT = ("norm", "dropout", "relu")  # a gate is for feed-forwards that stay whole
LENGTHS = torch.tensor([10, 7, 3, 9])
MASK = (torch.arange(10) < LENGTHS[:, None]).long()  # (4, 10)


def tiny_bert(dropout=0.1, **config):
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    sizes |= {"num_hidden_layers": 2, "vocab_size": 50, "max_position_embeddings": 16}
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(**sizes | drops | config, attn_implementation="eager")
    return build(BertForSequenceClassification, config)


def tiny_t5(dropout=0.1, **config):
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 24, "num_layers": 2}
    names = {"vocab_size": 50, "pad_token_id": 0, "decoder_start_token_id": 0}
    config = T5Config(**sizes | names | {"dropout_rate": dropout} | config)
    config._attn_implementation = "eager"
    return build(T5ForConditionalGeneration, config)


def tiny_llama(dropout=0.1):
    """Two queries to a key; a block takes a tuple of tensors, the position embeddings."""
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 50}
    config = LlamaConfig(**sizes, attention_dropout=dropout, attn_implementation="eager")
    return build(LlamaForCausalLM, config)


MODELS = {"bert": tiny_bert, "t5": tiny_t5}


def build(model_class, config):
    """The same model at each call; norms that scale, biases that shift, so that tests see them."""
    torch.manual_seed(3)
    model = model_class(config)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                noise = torch.rand(parameter.shape, generator=generator)
                parameter.copy_(noise if name.endswith("bias") else noise + 0.5)
    return model.train()


def batch_of(model):
    """Padded sequences; T5 decodes (4, 7), the last two tokens of a sample without a label."""
    generator = torch.Generator().manual_seed(6)
    ids = torch.randint(1, 50, (4, 10), generator=generator)
    if model.config.model_type == "llama":
        return {"input_ids": ids, "attention_mask": MASK, "labels": ids}
    if model.config.model_type in ("bert", "mpnet"):
        return {"input_ids": ids, "attention_mask": MASK, "labels": torch.tensor([0, 1, 1, 0])}
    labels = torch.randint(1, 50, (4, 7), generator=generator)
    labels[1, 5:] = -100
    return {"input_ids": ids, "attention_mask": MASK, "labels": labels, "use_cache": False}


def fake_batch_of(model, mode):
    """The batch as tensors of a ``FakeTensorMode``."""
    return {
        name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
        for name, value in batch_of(model).items()
    }


def step(model, batch=None, autocast=False, seed=5):
    """(loss, gradients by name, the global generator's state) of forward and backward."""
    model.zero_grad()
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**(batch or batch_of(model))).loss
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, torch.get_rng_state()


def assert_same_step(result, expected, rtol, loss_rtol=0):
    """Generator bit for bit, the loss to ``loss_rtol``, each gradient to ``rtol`` of its largest.

    Or of a thousandth of the largest of all, for some, as that of k's bias, are rounding only.
    """
    (loss, gradients, state), (plain_loss, plain_gradients, plain_state) = result, expected
    torch.testing.assert_close(loss, plain_loss, rtol=loss_rtol, atol=0)
    assert torch.equal(state, plain_state)
    assert gradients.keys() == plain_gradients.keys()
    least = 1e-3 * max(gradient.abs().max() for gradient in plain_gradients.values())
    for name, gradient in plain_gradients.items():
        error = (gradients[name] - gradient).abs().max()
        assert error <= rtol * gradient.abs().max().clamp(min=least), f"{name}: {error:.3g}"


def sampled(model, what="none", budget=1.0, chunked=False):
    """Of the linear layers inside blocks, all else exact; recomputed is ``what``."""
    sample_linears_(model, SamplingConfig(budget=budget, exclude=["lm_head"]))
    save_less_(model, EXACT if chunked or what == "block" else KINDS)
    if chunked:
        chunk_feed_forward_(model)
    recompute_(model, what)
    return model


models = pytest.mark.parametrize(
    "make", [tiny_bert, tiny_t5, tiny_llama], ids=["bert", "t5", "llama"]
)
