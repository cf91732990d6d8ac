"""A tiny Llama with a tokenizer of its own, trained on the documentation of Python's library."""

import json

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wtacrs_experiments.run.documentation import documentation

WORDS = 400
ROWS = [{"prompt": told, "completion": text} for told, text in documentation()[:60]]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_tokenizer():
    """Byte pairs; it begins a text with <s>, and has no token to pad, as Llama's."""
    bytes_ = pre_tokenizers.ByteLevel
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = bytes_(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=bytes_.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(map("".join, documentation()), trainer)
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def save_llama(folder):
    """A folder as ``save_pretrained`` leaves it."""
    torch.manual_seed(0)
    tiny_tokenizer().save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "vocab_size": WORDS}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads, **ends)).save_pretrained(folder)
    return folder
