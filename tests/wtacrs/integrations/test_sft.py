"""The callback in TRL's SFTTrainer, with its defaults: packing, padding-free, adapters."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wtacrs.integrations.trainer import WtacrsCallback

trl = pytest.importorskip("trl", reason="trl is not installed; it is in the extra dev")

WORDS = [f"w{word}" for word in range(20)]
STEPS = 16
pytestmark = pytest.mark.filterwarnings("ignore:.*(gradient_checkpointing|Padding-free|padding)")


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {word: place for place, word in enumerate(["<pad>", "<unk>", "<eos>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


@pytest.fixture(scope="module")
def texts():
    """Each word is the third after the one before: what a tiny model learns in a few steps."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(20, (200,), generator=generator).tolist()
    lengths = torch.randint(4, 15, (200,), generator=generator).tolist()
    return Dataset.from_dict(
        {
            "text": [
                " ".join(WORDS[(f + 3 * word) % 20] for word in range(length))
                for f, length in zip(first, lengths, strict=True)
            ]
        }
    )


@pytest.fixture
def make(tokenizer, texts, tmp_path):
    def trainer(*callbacks, lora=False, folder="run", **settings):
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
        sizes |= {"intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
        ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 2}
        steps = {"max_steps": STEPS, "save_steps": STEPS // 2, "logging_steps": 1}
        places = {"use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True}
        settings = {"learning_rate": 1e-2, "max_length": 32, "seed": 1} | settings
        return trl.SFTTrainer(
            LlamaForCausalLM(LlamaConfig(**sizes, **ends)),
            trl.SFTConfig(tmp_path / folder, **steps, **places, **settings),
            train_dataset=texts,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=8, target_modules="all-linear") if lora else None,
            callbacks=[*callbacks],
        )

    return trainer


def losses(trainer):
    return torch.tensor([line["loss"] for line in trainer.state.log_history if "loss" in line])


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize(
    ("memory", "settings"),
    [
        ("lean", {}),  # TRL's defaults: gradient checkpointing
        ("linear", {"packing": True, "gradient_checkpointing": False}),
        ("leanest", {"lora": True}),
        ("lean", {"lora": True, "packing": True}),
        ("linear", {"padding_free": True, "gradient_accumulation_steps": 2}),
    ],
    ids=str,
)
def test_a_run_is_near_the_plain_one_and_resumes_bit_for_bit(make, tmp_path, memory, settings):
    """The loss starts at the same value and falls as the plain one: their gap, as a mean over the
    steps, is below a tenth of the fall."""
    plain = make(folder="plain", **settings)
    plain.train()
    whole = make(callback := WtacrsCallback(memory, budget=0.3), **settings)
    whole.train()
    expected, found = losses(plain), losses(whole)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=0)
    fall = expected[0] - expected[-1]
    assert fall > 0.2
    assert (found - expected).abs().mean() < 0.1 * fall
    sampler = callback.handle.sampler
    assert sampler.late or sampler.rows_seen
    if sampler.rows_seen:
        assert sampler.rows_kept / sampler.rows_seen == pytest.approx(0.3, abs=0.01)
    resumed = make(WtacrsCallback(memory, budget=0.3), folder="again", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{STEPS // 2}"))
    assert torch.equal(weights(resumed), weights(whole))
