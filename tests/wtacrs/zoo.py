"""Tiny models of the families that people fine-tune: what the library does with each.

    python -m tests.wtacrs.zoo        # writes docs/capabilities.md

The table is what ``Handle.swapped`` and ``left`` say; the test of the zoo proves it.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from wtacrs import apply_

TABLE = Path(__file__).parents[2] / "docs" / "capabilities.md"
WORDS, TOKENS = 64, 9
USUAL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
USUAL |= {"num_hidden_layers": 2, "vocab_size": WORDS}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = USUAL | {"num_attention_heads": 4, "num_key_value_heads": 2}
HEADED = GROUPED | {"head_dim": 4}
EXPERTS = HEADED | {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GPT = {"n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": WORDS}
SEQ2SEQ = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": WORDS}
SEQ2SEQ |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0}
SEQ2SEQ |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_start_token_id": 1}
T5 = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 2, "dropout_rate": 0.0}
T5 |= {"vocab_size": WORDS, "decoder_start_token_id": 0}
IMAGE = {"image_size": 16, "patch_size": 8, "num_channels": 3}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
LATENT |= {"v_head_dim": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
LATENT |= {"first_k_dense_replace": 1, "moe_intermediate_size": 16, "num_experts_per_tok": 2}

CAUSAL = {
    **{"llama": GROUPED, "mistral": GROUPED, "qwen2": GROUPED, "qwen3": HEADED},
    **{"gemma": HEADED, "gemma2": HEADED, "gemma3_text": HEADED, "olmo": GROUPED},
    **{"olmo2": GROUPED, "granite": GROUPED, "cohere": GROUPED, "cohere2": GROUPED},
    **{"phi": GROUPED, "phi3": GROUPED, "stablelm": GROUPED, "starcoder2": GROUPED},
    **{"smollm3": GROUPED, "glm": HEADED, "glm4": HEADED, "helium": HEADED, "exaone4": GROUPED},
    **{"ernie4_5": HEADED, "nemotron": GROUPED, "falcon": USUAL, "gpt_neox": USUAL},
    "llama4_text": HEADED
    | {"intermediate_size_mlp": 32, "num_local_experts": 2, "attention_chunk_size": 16},
    "mixtral": HEADED | {"num_local_experts": 4},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3_moe": EXPERTS,
    "olmoe": GROUPED | {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": HEADED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": USUAL | LATENT,
    "gpt2": GPT | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gptj": GPT | {"rotary_dim": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "bloom": {"hidden_size": 16, "n_head": 2, "n_layer": 2, "vocab_size": WORDS},
    "opt": {"hidden_size": 16, "num_attention_heads": 2, "ffn_dim": 32, "num_hidden_layers": 2}
    | {"vocab_size": WORDS, "word_embed_proj_dim": 16, "dropout": 0.0},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": WORDS, "state_size": 4},
}
CLASSIFIERS = {
    **dict.fromkeys(("bert", "roberta", "electra", "mpnet"), USUAL | NO_DROPOUT),
    "deberta": USUAL | NO_DROPOUT | {"pos_att_type": ["p2c", "c2p"], "relative_attention": True},
    "deberta-v2": USUAL | NO_DROPOUT | {"pos_att_type": ["p2c", "c2p"], "relative_attention": True},
    "electra": USUAL | NO_DROPOUT | {"embedding_size": 16},
    "albert": USUAL | NO_DROPOUT | {"embedding_size": 8},
    "distilbert": {"dim": 16, "n_heads": 2, "hidden_dim": 32, "n_layers": 2, "vocab_size": WORDS}
    | {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
    "modernbert": USUAL | {"bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 2},
    "xlm-roberta": USUAL | NO_DROPOUT,
}
TEXT_TO_TEXT = {
    **{"t5": T5, "mt5": T5, "bart": SEQ2SEQ, "mbart": SEQ2SEQ, "pegasus": SEQ2SEQ},
    "marian": SEQ2SEQ,
}
IMAGES = {
    **{"vit": USUAL | IMAGE | NO_DROPOUT, "beit": USUAL | IMAGE | NO_DROPOUT},
    "dinov2": USUAL | IMAGE | NO_DROPOUT | {"mlp_ratio": 2},
    "swin": IMAGE
    | {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
    | {"patch_size": 4, "drop_path_rate": 0.0},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 16},
}
AUDIO = {
    "whisper": SEQ2SEQ
    | {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 20},
}
KINDS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "causal": ("AutoModelForCausalLM", CAUSAL),
    "classifier": ("AutoModelForSequenceClassification", CLASSIFIERS),
    "text to text": ("AutoModelForSeq2SeqLM", TEXT_TO_TEXT),
    "image": ("AutoModelForImageClassification", IMAGES),
    "audio": ("AutoModelForSpeechSeq2Seq", AUDIO),
}
ZOO = {name: kind for kind, (_, models) in KINDS.items() for name in models}
PRESETS = ("linear", "lean", "leanest")
NO_ATTENTION = "attention: no module attends"


def make(name: str) -> Any:
    """The tiny model, the same at each call, ready to train."""
    auto, models = KINDS[ZOO[name]]
    torch.manual_seed(0)
    own = {} if ZOO[name] == "image" else IDS
    config = transformers.AutoConfig.for_model(name, **{**own, **models[name]})
    model = getattr(transformers, auto).from_config(config)
    with torch.no_grad():  # so that norms and biases count
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.rand(parameter.shape))
    return model.train()


def batch(name: str) -> dict[str, torch.Tensor]:
    """Two samples for it, none padded."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, WORDS, (2, TOKENS), generator=generator)
    if ZOO[name] == "causal":
        return {"input_ids": ids, "labels": ids}
    if ZOO[name] == "classifier":
        return {"input_ids": ids, "labels": torch.tensor([0, 1])}
    if ZOO[name] == "text to text":
        return {"input_ids": ids, "labels": ids[:, :5].contiguous()}
    labels = torch.tensor([0, 1])
    if ZOO[name] == "image":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator), "labels": labels}
    sounds = torch.randn(2, 8, 20, generator=generator)
    return {"input_features": sounds, "labels": ids[:, :5].contiguous()}


def cells(name: str, preset: str) -> dict[str, str]:
    """What a preset does with the model: a row of the table."""
    try:
        handle = apply_(make(name), preset)
    except ValueError as error:
        return {"sampled": f"refused: {str(error).splitlines()[0][:90]}"}
    swapped = {key: len(names) for key, names in handle.swapped.items()}
    norms = sum(swapped.get(key, 0) for key in ("LosslessLayerNorm", "LosslessNorm"))
    gates = swapped.get("GatedForward", 0) + swapped.get("chunked feed-forward", 0)
    attention = [key.split(": ")[1] for key in swapped if key.startswith("attention: ")]
    recomputed = [key.split(": ")[1] for key in swapped if key.startswith("recomputed: ")]
    left = Counter({why: len(names) for why, names in handle.left.items()})
    return {
        "sampled": f"{handle.report().sampled_share:.0%}",
        "norms": str(norms) if norms else "–",
        "feed-forward": str(gates) if gates else "–",
        "attention": attention[0] if attention else "–" if NO_ATTENTION in handle.left else "own",
        "loss": "yes" if "loss" in swapped else "–",
        "recomputed": recomputed[0] if recomputed else "–",
        "left": "; ".join(f"{why} ({count})" for why, count in left.items()) or "–",
    }


def table(preset: str = "leanest") -> str:
    """The capability table of a preset, as Markdown."""
    columns = ("sampled", "norms", "feed-forward", "attention", "loss", "recomputed", "left")
    lines = [f"| model | kind | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for name, kind in ZOO.items():
        row = cells(name, preset)
        shown = [row.get(column, "").replace("|", "/") for column in columns]
        lines.append(f"| {name} | {kind} | {' | '.join(shown)} |")
    return "\n".join(lines)


INTRODUCTION = """# What the library does with each family

Written by `python -m tests.wtacrs.zoo`: what `apply_(model, "leanest")` does with a tiny model of
each family, of two layers. tests/wtacrs/test_zoo.py proves for each of them, and for `linear` and
`lean`: at budget 1 the gradients are the plain ones, evaluation is the plain model bit for bit,
text that is generated with a cache is the same, copies work, and `undo` gives the plain model back.

"sampled" is the share of the trainable parameters whose gradient is estimated; of models so small
it is smaller than of real ones, whose embeddings weigh less. "left" is what stays as it is, why,
and how often.

"""


def quiet() -> None:
    transformers.logging.set_verbosity_error()


def modules_of(model: nn.Module) -> list[str]:
    """The classes of its modules, in order."""
    return [type(module).__name__ for module in model.modules()]


if __name__ == "__main__":
    quiet()
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(INTRODUCTION + table() + "\n", encoding="utf-8")
    sys.stdout.write(f"{TABLE}\n")
