"""TRL's SFTTrainer, full and with LoRA: python examples/sft.py (pip install trl).

A Llama of two layers and a tokenizer of 20 words, made here, so that nothing is fetched. The loss
of each run is printed at its begin and its end, beside that of the plain SFTTrainer.
"""

from __future__ import annotations

from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from wtacrs.integrations.trainer import WtacrsCallback

WORDS = [f"w{number}" for number in range(20)]


def new_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: place for place, word in enumerate(["<pad>", "<unk>", "<eos>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def texts(count: int = 200) -> Dataset:
    """Each word is the third after the one before: what a tiny model learns in a few steps."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(20, (count,), generator=generator).tolist()
    rows = [" ".join(WORDS[(at + 3 * word) % 20] for word in range(12)) for at in first]
    return Dataset.from_dict({"text": rows})


def losses(folder: str, memory: str | None, lora: bool) -> tuple[float, float]:
    """Of the first and the last step."""
    tokenizer = new_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=2,
        )
    )
    trainer = SFTTrainer(
        model,
        SFTConfig(
            folder,
            max_steps=24,
            logging_steps=1,
            learning_rate=1e-2,
            max_length=32,
            save_strategy="no",
            gradient_checkpointing=memory is None,  # TRL's default: the rival
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=texts(),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, target_modules="all-linear") if lora else None,
        callbacks=[] if memory is None else [WtacrsCallback(memory, budget=0.3)],
    )
    trainer.train()
    seen = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return seen[0], seen[-1]


def main() -> None:
    with TemporaryDirectory() as folder:
        found = {
            (memory or "checkpointing", "LoRA" if lora else "full"): losses(folder, memory, lora)
            for lora in (False, True)
            for memory in (None, "leanest")
        }
    for (memory, tuning), (first, last) in found.items():
        print(f"{tuning:<5} {memory:<14} loss {first:.3f} -> {last:.3f}")


if __name__ == "__main__":
    main()
