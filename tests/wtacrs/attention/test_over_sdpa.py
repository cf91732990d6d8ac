"""Recomputed attention in models that attend by torch's fused kernels, against these and eager."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LongcatFlashConfig,
    LongcatFlashForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from tests.saved import SavedBytes
from tests.wtacrs import zoo
from tests.wtacrs.tiny import MASK, assert_same_step, batch_of, build, step, tiny_bert, tiny_t5
from wtacrs import apply_
from wtacrs.attention.interface import OVER_SDPA, attention_of, set_attention

SIZES = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
SIZES |= {"intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 50}


def llama(dropout=0.0, **more):
    return build(LlamaForCausalLM, LlamaConfig(**SIZES, attention_dropout=dropout, **more))


def mistral(dropout=0.0):
    """A token attends to the three before it."""
    config = MistralConfig(**SIZES, attention_dropout=dropout, sliding_window=3)
    return build(MistralForCausalLM, config)


def batch(padded):
    ids = torch.randint(1, 50, (4, 10), generator=torch.Generator().manual_seed(6))
    labels = ids.masked_fill(MASK == 0, -100) if padded else ids
    return {"input_ids": ids, "labels": labels, **({"attention_mask": MASK} if padded else {})}


decoders = pytest.mark.parametrize("make", [llama, mistral])
padding = pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])


@decoders
@padding
def test_without_dropout_the_fused_kernel_stays(make, padded):
    """Bit for bit, and what is kept is what it keeps: no mask that it does not make."""
    model, saved = make(), []
    expected = step(model, batch(padded))
    with SavedBytes(model) as counted:
        model(**batch(padded))
    saved.append(counted.bytes)
    set_attention(model, "recompute")
    assert attention_of(model) == OVER_SDPA
    assert_same_step(step(model, batch(padded)), expected, 0)
    with SavedBytes(model) as counted:
        model(**batch(padded))
    assert counted.bytes == saved[0]


@decoders
@padding
def test_with_dropout_it_is_eager(make, padded):
    """An order that transformers makes no mask for, masks of booleans, two queries to a key."""
    model = make(0.1)
    set_attention(model, "eager")
    expected = step(model, batch(padded))
    set_attention(model, "sdpa")
    set_attention(model, "recompute")
    assert_same_step(step(model, batch(padded)), expected, 1e-5, loss_rtol=1e-6)


def test_saved_bytes_with_dropout():
    """Keys and values are kept once for their two queries, and beside q a bit an element of the
    scores; no mask of the order."""
    model = llama(0.1, use_cache=False)
    set_attention(model, "recompute")
    attention = model.model.layers[0].self_attn
    x = torch.randn(4, 10, 16, requires_grad=True)
    positions = model.model.rotary_emb(x, torch.arange(10)[None])
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = (tuple(tensor.shape), tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attention(x, position_embeddings=positions, attention_mask=None)
    shapes = [shape for shape, _ in kept.values()]
    assert shapes.count((4, 2, 10, 4)) >= 1
    assert (4 * 4 * 10 * 10 // 8,) in shapes
    assert not any(shape[-2:] == (10, 10) for shape in shapes)


def test_t5_has_its_bias_and_no_dense_mask():
    """Relative positions have gradients, so it is ours; the padding mask is one row a sample."""
    model = tiny_t5(0.1)
    expected = step(model)
    set_attention(model, "sdpa")
    set_attention(model, "recompute")
    assert attention_of(model) == OVER_SDPA
    assert_same_step(step(model), expected, 1e-5, loss_rtol=1e-6)


@pytest.mark.parametrize("make", [tiny_bert, tiny_t5, llama, mistral])
def test_in_evaluation_it_is_sdpa(make):
    """Bit for bit, with gradients enabled, too."""
    model = make(0.1)
    set_attention(model, "sdpa")
    model.eval()
    given = batch_of(model) if make in (tiny_bert, tiny_t5) else batch(padded=True)
    expected = step(model, given)
    set_attention(model, "recompute")
    assert_same_step(step(model, given), expected, 0)


@padding
def test_generate_with_a_cache(padded):
    model = llama().eval()
    given = {"input_ids": torch.randint(1, 50, (2, 6))}
    if padded:
        given["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**given, **how)
    apply_(model, "lean")
    assert torch.equal(model.generate(**given, **how), expected)


def gemma2():
    return build(Gemma2ForCausalLM, Gemma2Config(**SIZES, attn_implementation="eager"))


def gpt_oss():
    config = GptOssConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1)
    return build(GptOssForCausalLM, config)


def with_slopes():
    """As an attention with ALiBi that uses the AttentionInterface would hold them."""
    model = llama()
    for layer in model.model.layers:
        layer.self_attn.alibi = torch.ones(4)
    return model


@pytest.mark.parametrize(
    ("make", "what"), [(gemma2, "softcap"), (gpt_oss, "sinks"), (with_slopes, "ALiBi")]
)
def test_what_ours_cannot_is_said_at_the_call(make, what):
    """Refused where it is all that was asked for; a preset leaves it and says so."""
    model = make()
    before = attention_of(model)
    with pytest.raises(ValueError, match=f"{type(model).__name__} attends with {what}, which ours"):
        set_attention(model, "recompute")
    with pytest.raises(ValueError, match=f"attends with {what}"):
        apply_(model, "paper")
    assert attention_of(model) == before
    handle = apply_(model, "lean")
    assert any(what in reason for reason in handle.left)
    assert step(model, batch(padded=False))[0].isfinite()


@pytest.mark.parametrize("name", ["bloom", "falcon"])
def test_alibi_of_an_attention_of_its_own_is_refused_at_the_call(name):
    model = zoo.make(name)
    with pytest.raises(ValueError, match="does not use the AttentionInterface"):
        apply_(model, "paper")
    assert any("AttentionInterface" in reason for reason in apply_(model, "lean").left)


def test_flash_attention_stays():
    """It keeps no (t, t) matrix, with dropout neither. It is named only: its kernels need a GPU."""
    model = llama()
    model.config._attn_implementation = "flash_attention_2"
    handle = apply_(model, "lean")
    assert any("flash_attention_2 keeps no (t, t)" in reason for reason in handle.left)
    assert attention_of(model) == "flash_attention_2"


@pytest.mark.parametrize("preset", ["lean", "leanest"])
def test_an_attention_by_another_name(preset):
    """LongcatFlashMLA, which attends through the AttentionInterface."""
    zoo.quiet()
    latent = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4}
    config = LongcatFlashConfig(
        **{**SIZES, **latent, "v_head_dim": 4, "num_key_value_heads": 4, "num_layers": 1},
        **{"ffn_hidden_size": 24, "n_routed_experts": 4, "zero_expert_num": 1, "moe_topk": 2},
        expert_ffn_hidden_size=16,
    )
    model = build(LongcatFlashForCausalLM, config)
    given = batch(padded=True)
    expected = step(model, given)
    handle = apply_(model, preset, budget=1.0)
    assert_same_step(step(model, given), expected, 1e-4, 1e-5)
    assert attention_of(model) == OVER_SDPA
    assert not any("attends" in reason for reason in handle.left)
    attentions = [f"model.layers.0.self_attn.{i}" for i in (0, 1)]
    names = handle.swapped["recomputed: " + ("attention" if preset == "lean" else "block")]
    assert names == (attentions if preset == "lean" else ["model.layers.0"])
