"""The operations of a mixture's experts: those of one product for each expert, as torch counts."""

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from wtacrs import MemoryConfig, SamplingConfig, apply_
from wtacrs.integrations.fake import experts_on_fakes
from wtacrs_experiments.plan.rehearsal import Operations

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 50}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
TOKENS = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(0))


def operations(experts="grouped_mm", memory=None):
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SIZES, use_cache=False)).train()
    model.set_experts_implementation(experts)
    if memory is not None:
        apply_(model, memory)
    with Operations() as counted:
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    return counted.total


def test_one_product_an_expert_and_all_in_one():
    """Experts in a loop make products that torch counts, and so does ours where all is kept."""
    loop = operations("eager")
    assert operations() == loop
    with experts_on_fakes():
        assert operations() == loop


@pytest.mark.parametrize("budget", [0.25, 0.5])
def test_sampled_experts_save_their_share_of_the_weight_gradient(budget):
    sampling = SamplingConfig("wtacrs", budget=budget, include=["*.experts.*", "*.o_proj"])
    sampled = operations(memory=MemoryConfig(sampling=sampling, lossless=()))
    h, i, n = SIZES["hidden_size"], SIZES["intermediate_size"], TOKENS.numel()
    rows_by_weights = 2 * n * 3 * h * i + n * h * h  # two experts a token; gate, up, down; o_proj
    left_out = SIZES["num_hidden_layers"] * 2 * (1 - budget) * rows_by_weights
    assert operations() - sampled == pytest.approx(left_out, rel=0.02)
