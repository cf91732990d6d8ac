"""The memory of ||dY_n||: per position, per sample and token, shared by layers of one input."""

import pytest
import torch
from torch import nn

from wtacrs import sample_linears_
from wtacrs.sampling.grad_norms import GradNorms

CPU = torch.device("cpu")


def observed(source="auto", shape=(None, None), batches=()):
    """A GradNorms that has seen ``batches``: (sample ids, mask, norms (b, t)) each."""
    norms = GradNorms(source, *shape)
    for ids, mask, values in batches:
        norms.expect("q")
        norms.observe(["q"], torch.tensor(values)[None], ids, mask)
    return norms


def estimate(norms, b, t, ids=None):
    """(b * t,) of the one input, None where nothing is known."""
    found = norms.estimate(b, t, ids, CPU)
    return None if found is None else found[norms.place("q")].reshape(-1)


def test_nothing_is_known_before_the_first_step():
    norms = observed()
    assert estimate(norms, 2, 3) is None
    assert norms.host_bytes == 0


def test_running_mean_by_position():
    """Root mean square per position; a batch back counts 0.9 times; the mean over all where a
    position is new."""
    norms = observed(batches=[(None, None, [[1.0, 2.0], [3.0, 4.0]]), (None, None, [[5.0, 6.0]])])
    first = ((0.9 * (1 + 9) + 25) / (0.9 * 2 + 1)) ** 0.5
    second = ((0.9 * (4 + 16) + 36) / (0.9 * 2 + 1)) ** 0.5
    new = ((0.9 * 30 + 61) / (0.9 * 4 + 2)) ** 0.5
    torch.testing.assert_close(estimate(norms, 2, 3), torch.tensor([first, second, new] * 2))
    torch.testing.assert_close(estimate(norms, 1, 1), torch.tensor([first]))


def test_masked_and_non_finite_norms_do_not_count():
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    values = [[1.0, float("nan"), 100.0], [7.0, 2.0, float("inf")]]
    norms = observed(batches=[(None, mask, values)])
    expected = torch.tensor([5.0, 2.0, (54 / 3) ** 0.5])  # never seen: the mean over 1, 49, 4
    torch.testing.assert_close(estimate(norms, 1, 3), expected)


def test_a_position_that_no_sample_reaches_keeps_its_mean():
    short = (None, None, [[1.0]])
    norms = observed(batches=[(None, None, [[3.0, 4.0]]), *[short] * 500])
    torch.testing.assert_close(estimate(norms, 1, 2), torch.tensor([1.0, 4.0]))


@pytest.mark.parametrize(
    ("source", "unseen"), [("auto", [5**0.5, 10**0.5, 7.5**0.5]), ("sample", [7.5**0.5] * 3)]
)
def test_seen_samples_by_table_and_others_by_mean(source, unseen):
    """Unseen samples by position in "auto", by the mean over all in "sample"; so does a token
    past the end of what was seen of its sample."""
    norms = observed(source, (4, 3), [(torch.tensor([2, 0]), None, [[1.0, 2.0], [3.0, 4.0]])])
    expected = torch.tensor([*unseen, 1.0, 2.0, unseen[2]])
    torch.testing.assert_close(estimate(norms, 2, 3, torch.tensor([1, 2])), expected)


def test_an_old_norm_is_guarded():
    """Seen of sample 2: (1, 0). The size of what was seen, 1, goes 0.3 of the way to that of the
    first position, where it had a norm, and a tenth gives way to its positions' (5, 8) ** 0.5."""
    norms = observed("defensive", (4, 3), [(torch.tensor([2, 0]), None, [[1.0, 0.0], [3.0, 4.0]])])
    first = 0.9 * (0.7 * 1 + 0.3 * 5) ** 0.5 + 0.1 * 5**0.5
    expected = torch.tensor([5**0.5, 8**0.5, 6.5**0.5, first, 0.1 * 8**0.5, 6.5**0.5])
    torch.testing.assert_close(estimate(norms, 2, 3, torch.tensor([1, 2])), expected)


def test_a_guarded_norm_bounds_what_a_row_can_cost():
    """A sample whose gradients were zero an epoch ago is drawn a tenth as often as its positions
    say, in a sample of tiny norms too, whose squares vanish in float32."""
    for then in (0.0, 1e-25):
        batches = [
            (torch.tensor([0]), None, [[then, then]]),
            (torch.tensor([1]), None, [[3.0, 4.0]]),
        ]
        norms = observed("defensive", (2, 2), batches)
        mean = estimate(observed("position", batches=batches), 1, 2)
        assert (estimate(norms, 1, 2, torch.tensor([0])) >= 0.0999 * mean).all()


@pytest.mark.parametrize("source", ["position", "none"])
def test_other_sources_keep_no_table(source):
    norms = observed(source, (4, 3), [(torch.tensor([2, 0]), None, [[1.0], [3.0]])])
    found = estimate(norms, 2, 1, torch.tensor([1, 2]))
    assert norms.host_bytes == 0
    if source == "none":
        assert found is None
    else:
        torch.testing.assert_close(found, torch.full((2,), 5**0.5))


def test_a_seen_sample_with_a_non_finite_norm_falls_back():
    ids = torch.tensor([0])
    batches = [(ids, None, [[3.0, last]]) for last in (4.0, float("nan"))]
    norms = observed("auto", (1, 2), batches)
    torch.testing.assert_close(estimate(norms, 1, 2, ids), torch.tensor([3.0, 4.0]))


def test_bytes_of_the_table(make_encoder):
    """num_samples * max_tokens * 2 for each distinct input: q, k and v have one."""
    model = make_encoder(blocks=2)
    sampler = sample_linears_(model, num_samples=50, max_tokens=10)
    for _ in range(2):
        sampler.start_batch(sample_ids=torch.tensor([3, 49]))
        model(torch.randn(2, 10, 4)).sum().backward()
    sampler.start_batch()
    assert sampler.grad_norms.host_bytes == 2 * 2 * 50 * 10 * 2  # blocks, inputs (q, o), table


def test_layers_of_one_input_add_their_squares(make_layer):
    """sqrt(sum_l ||dY_l,n||^2), the optimum for the stacked product."""
    layers = nn.ModuleDict({name: nn.Linear(4, 3) for name in "qkv"})
    sampler = make_layer(layers)[1]
    x = torch.randn(1, 10, 4)
    gradients = {name: torch.randn(1, 10, 3) for name in "qkv"}
    torch.autograd.backward([layers[name](x) for name in "qkv"], list(gradients.values()))
    expected = torch.cat([*gradients.values()], dim=2).norm(dim=2)
    sampler.settle()
    torch.testing.assert_close(sampler.grad_norms.estimate(1, 10, None, CPU), expected[None])
    assert sampler.grad_norms.place("fc.q") == 0
    assert sampler.grad_norms.place("fc.k") is None


def test_a_layer_whose_output_is_not_used(make_layer):
    """Its gradient is zero, so the norms of the others are the whole sum."""
    layers = nn.ModuleDict({name: nn.Linear(4, 3) for name in "qk"})
    sampler = make_layer(layers)[1]
    x = torch.randn(1, 10, 4)
    outputs = [layers[name](x) for name in "qk"]
    outputs[1].sum().backward()
    sampler.settle()
    expected = torch.full((1, 1, 10), 3**0.5)
    torch.testing.assert_close(sampler.grad_norms.estimate(1, 10, None, CPU), expected)
    assert sampler.grad_norms.place("fc.q") == 0


def test_a_layer_called_twice_in_a_pass(make_layer):
    """As in ALBERT: both calls count in the running mean, one after the other."""
    layer, sampler = make_layer()
    first, second = layer(torch.randn(1, 10, 4)), layer(torch.randn(1, 10, 4))
    torch.autograd.backward([first, second], [torch.ones(1, 10, 3), 2 * torch.ones(1, 10, 3)])
    sampler.settle()
    found = sampler.grad_norms.estimate(1, 10, None, CPU)
    mean = {((0.9 * a + b) / 1.9) ** 0.5 for a, b in ((3, 12), (12, 3))}  # in either order
    assert any(torch.allclose(found, torch.tensor(one)) for one in mean)


def test_the_table_needs_its_shape():
    with pytest.raises(ValueError, match=r"'sample'.*num_samples and max_tokens.*'position'"):
        GradNorms("sample")
    GradNorms("auto")


@pytest.mark.parametrize("shape", [(4, None), (None, 3), (-4, 3), (4, -1)])
def test_half_a_table_shape_is_an_error(shape):
    with pytest.raises(ValueError, match=r"give both, each at least 1"):
        GradNorms("auto", *shape)


def test_a_state_of_another_shape_is_refused():
    norms = GradNorms("auto", 4, 3)
    norms.expect("fc")
    norms.observe(["fc"], torch.ones(1, 1, 3), torch.tensor([2]), None)
    with pytest.raises(ValueError, match=r"shape \(4, 3\).*same num_samples and max_tokens"):
        GradNorms("auto", 5, 3).load_state_dict(norms.state_dict())


@pytest.mark.parametrize(
    ("ids", "t", "words"),
    [
        ([0, 4], 2, ["0..4", "0..3", "raise num_samples"]),
        ([-1, 3], 2, ["-1..3", "0..3", "from 0"]),
        ([0, 3], 7, ["7 tokens", "max_tokens=3", "truncate"]),
    ],
)
def test_what_the_table_has_no_place_for(ids, t, words, make_layer):
    """Told before the forward pass where the mask tells the length."""
    _, sampler = make_layer(num_samples=4, max_tokens=3)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        sampler.start_batch(sample_ids=torch.tensor(ids), mask=torch.ones(len(ids), t))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_sequence_too_long_without_a_mask(make_layer):
    """Only the forward pass knows the length then: a ValueError there, not a shape error later."""
    layer, sampler = make_layer(num_samples=4, max_tokens=3)
    sampler.start_batch(sample_ids=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"7 tokens.*max_tokens=3.*truncate"):
        layer(torch.randn(2, 7, 4))


def test_a_table_above_its_limit_is_refused_in_the_first_forward_pass(make_layer):
    """2**20 samples of 512 tokens are 1 GiB for each input."""
    options = {"num_samples": 2**20, "max_tokens": 512, "norm_table_limit_gib": 0.5}
    layer, sampler = make_layer(**options)
    with pytest.raises(ValueError, match=r"need 1 GiB.*limit_gib=0\.5.*'position'"):
        layer(torch.randn(2, 7, 4))
    assert sampler.grad_norms.host_bytes == 0
