"""QLoRA: adapters on a base in 4 bits (bitsandbytes), whose frozen layers keep nothing."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from wtacrs import apply_
from wtacrs.measure.step import measure_step

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes, which CI puts beside the rest")

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 200}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2}
TOKENS = torch.randint(200, (4, 48), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(path)
    return path


@pytest.fixture
def make(folder):
    """A quantised Llama with LoRA on all linear layers, as peft's users make it."""

    def make():
        bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
        model = LlamaForCausalLM.from_pretrained(
            folder, quantization_config=bits, device_map="cpu", use_cache=False
        )
        torch.manual_seed(1)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        return get_peft_model(model, lora).train()

    return make


def gradients(model):
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("preset", ["linear", "lean", "leanest"])
def test_gradients_are_the_plain_ones(preset, make):
    expected, model = gradients(make()), make()
    handle = apply_(model, preset, budget=1.0)
    found = gradients(model)
    assert found.keys() == expected.keys()
    assert len(handle.sampler.names) == 3 * 7 * 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_less_memory_than_with_checkpointing(make):
    """Above what is there before the step: parameters, gradients and the optimizer's state."""

    def peak(model):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        batch = {"input_ids": TOKENS, "labels": TOKENS}
        return measure_step(model, optimizer, batch).peak_bytes

    checkpointing, lean, leanest = make(), make(), make()
    checkpointing.enable_input_require_grads()
    checkpointing.gradient_checkpointing_enable({"use_reentrant": False})
    apply_(lean, "lean", budget=0.3)
    apply_(leanest, "leanest", budget=0.3)
    assert peak(leanest) < peak(checkpointing) < peak(make())
    assert peak(leanest) < peak(lean) < 0.7 * peak(make())
