"""Error feedback: nothing is lost."""

from __future__ import annotations

import pytest
import torch

from netsim_ddp.compression import (
    Codec,
    ErrorFeedbackBuffer,
    TopKCompressor,
    accumulate_select,
    return_rounding_error,
    segment_table,
)

torch.set_num_threads(1)
LAYOUT = {"a": torch.Size([3, 4]), "empty": torch.Size([0]), "b": torch.Size([5]), "scalar": torch.Size([])}


def gradients(step: int, n: int) -> torch.Tensor:
    """A drifting gradient: noise around a constant direction, as training has it."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(n, generator=generator) + torch.linspace(-0.5, 0.5, n)


def test_the_first_call_adds_nothing():
    feedback, gradient = ErrorFeedbackBuffer(), torch.randn(3, 4)
    compensated = feedback.compensate("w", gradient)
    assert torch.equal(compensated, gradient)
    assert compensated.data_ptr() != gradient.data_ptr()
    assert "w" in feedback
    assert not feedback["w"].any()


def test_what_was_not_sent_comes_back():
    feedback = ErrorFeedbackBuffer()
    gradient = torch.tensor([1.0, 2.0, 3.0])
    for _ in range(2):
        compensated = feedback.compensate("w", gradient)
        feedback.update("w", compensated, torch.where(torch.arange(3) == 2, compensated, torch.zeros(3)))
    assert feedback["w"].tolist() == [2.0, 4.0, 0.0]
    assert feedback.compensate("w", gradient).tolist() == [3.0, 6.0, 3.0]


def test_parameters_do_not_mix():
    feedback = ErrorFeedbackBuffer()
    for name, size in (("a", 2), ("b", 3)):
        feedback.update(name, feedback.compensate(name, torch.ones(size)), torch.zeros(size))
    feedback.update("a", feedback.compensate("a", torch.ones(2)), torch.zeros(2))
    assert feedback["a"].tolist() == [2.0, 2.0]
    assert feedback["b"].tolist() == [1.0, 1.0, 1.0]
    assert feedback.names() == ["a", "b"]
    assert feedback.nbytes == 20


@pytest.mark.parametrize("values", ["fp32", "fp16", "bf16", "int8", "int8-stochastic"])
@pytest.mark.parametrize("flat", [True, False])
def test_the_transmitted_sum_follows_the_true_sum(values, flat):
    """Over T steps, sum of gradients - sum of what was received = the residual, whose norm is bounded.

    The identity is exact in real arithmetic; float64 sums here, so what is left is float32 rounding: one
    rounded addition per step and entry, of numbers no larger than the largest compensated one, and one
    rounded subtraction when the codec rounds. For the norm: a contraction with d = k/n keeps
    ||e|| <= 2 sqrt(1-d)/d * max ||g|| (Karimireddy et al. 2019, Lemma 3), whatever T is; without feedback
    the error grows with T.
    """
    n, steps, ratio = 500, 1000, 0.1
    compressor, codec, feedback = TopKCompressor(ratio), Codec(values), ErrorFeedbackBuffer()
    offsets, ks = segment_table([n], ratio)
    sent, where = torch.empty(int(ks.sum())), torch.empty(int(ks.sum()), dtype=torch.int64)
    true, received_sum = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    largest_norm, largest_entry = 0.0, 0.0
    for step in range(steps):
        gradient = gradients(step, n)
        true += gradient
        largest_norm = max(largest_norm, gradient.norm().item())
        if flat:
            residual = feedback.flat({"w": torch.Size([n])})
            largest_entry = max(largest_entry, (residual + gradient).abs().max().item())
            accumulate_select(gradient, residual, offsets, ks, sent, where)
            codec.encode(sent, where, received=(received := torch.empty_like(sent)))
            return_rounding_error(residual, where, sent, received)
        else:
            compensated = feedback.compensate("w", gradient)
            largest_entry = max(largest_entry, compensated.abs().max().item())
            sent, where, shape = compressor.compress(compensated)
            codec.encode(sent, where, received=(received := torch.empty_like(sent)))
            feedback.update("w", compensated, compressor.decompress(received, where, shape))
        received_sum[where] += received.double()
    residual = feedback["w"].double()
    rounding = 2 * steps * largest_entry * 2**-24
    assert (true - received_sum - residual).abs().max().item() <= rounding
    delta = ratio * (0.99 if values != "fp32" else 1)  # a rounded entry leaves up to 2**-8 of itself behind
    bound = 2 * (1 - delta) ** 0.5 / delta * largest_norm
    assert residual.norm().item() <= bound
    assert (true - received_sum).norm().item() < 0.2 * true.norm().item()


def test_without_feedback_the_error_grows_with_the_steps():
    n, compressor = 500, TopKCompressor(0.1)
    lost, errors = torch.zeros(n), []
    for step in range(300):
        gradient = gradients(step, n)
        lost += gradient - compressor.decompress(*compressor.compress(gradient))
        errors.append(lost.norm().item())
    assert errors[299] > 2 * errors[99]


def test_an_update_that_would_poison_the_residual_is_refused():
    feedback = ErrorFeedbackBuffer()
    feedback.update("w", feedback.compensate("w", torch.ones(2)), torch.zeros(2))
    with pytest.raises(ArithmeticError, match="'w'"):
        feedback.update("w", torch.tensor([float("inf"), 0.0]), torch.tensor([float("inf"), 0.0]))
    assert feedback["w"].tolist() == [1.0, 1.0]


def test_wrong_use_is_named():
    feedback = ErrorFeedbackBuffer()
    with pytest.raises(ValueError, match="compensate first"):
        feedback.update("w", torch.ones(2), torch.ones(2))
    feedback.compensate("w", torch.ones(2))
    with pytest.raises(ValueError, match=r"'w'.*\(2,\), not \(3,\)"):
        feedback.compensate("w", torch.ones(3))
    with pytest.raises(ValueError, match="'w'"):
        feedback.update("w", torch.ones(2), torch.ones(1))
    with pytest.raises(ValueError, match="'w'"):
        feedback.flat({"v": torch.Size([1]), "w": torch.Size([1, 2])})
    assert feedback.names() == ["w"]


def test_the_flat_vector_is_the_residuals():
    feedback = ErrorFeedbackBuffer()
    feedback.update("b", feedback.compensate("b", torch.arange(5.0)), torch.zeros(5))
    flat = feedback.flat(LAYOUT)
    assert flat.shape == (18,)
    assert flat[12:17].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0], "an existing residual moved in"
    flat += 1
    assert feedback["a"].shape == (3, 4)
    assert feedback["a"].eq(1).all()
    assert feedback["scalar"].item() == 1
    assert feedback.flat(dict(LAYOUT)) is flat
    assert feedback.compensate("b", torch.zeros(5)).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert feedback.nbytes == 18 * 4


def test_a_reordered_or_split_layout_keeps_every_residual():
    feedback = ErrorFeedbackBuffer()
    feedback.flat(LAYOUT).copy_(torch.arange(18.0))
    before = feedback.state_dict()
    reordered = feedback.flat(dict(reversed(LAYOUT.items())))
    assert reordered[0].item() == 17
    one = feedback.flat({"a": LAYOUT["a"]})
    other = feedback.flat({"scalar": LAYOUT["scalar"], "b": LAYOUT["b"]})
    assert feedback.flat({"a": LAYOUT["a"]}) is one, "layouts without a common name live side by side"
    assert other.tolist() == [17.0, 12.0, 13.0, 14.0, 15.0, 16.0]
    for name, saved in feedback.state_dict().items():
        assert torch.equal(saved, before[name])


def test_an_exchange_makes_what_was_written_beside_the_residuals():
    feedback = ErrorFeedbackBuffer()
    flat = feedback.flat(LAYOUT)
    spare = feedback.spare(flat)
    assert feedback.spare(flat) is spare
    spare.copy_(torch.arange(18.0))
    assert not feedback["b"].any(), "nothing has changed yet"
    assert feedback.nbytes == 18 * 4
    new = feedback.exchange(flat)
    assert new is spare
    assert feedback.flat(LAYOUT) is new
    assert feedback["b"].tolist() == [12.0, 13.0, 14.0, 15.0, 16.0]
    assert feedback.spare(new) is flat
    with pytest.raises(ValueError, match="laid out anew"):
        feedback.exchange(flat)
    assert feedback.exchange(new) is flat
    assert not feedback.state_dict()["b"].any()


def test_the_flat_vector_changes_dtype_and_device_with_its_content():
    feedback = ErrorFeedbackBuffer()
    feedback.flat(LAYOUT).copy_(torch.arange(18.0))
    double = feedback.flat(LAYOUT, dtype=torch.float64)
    assert double.dtype == torch.float64
    assert double.tolist() == list(range(18))
    assert feedback.to("cpu") is feedback
    moved = feedback.flat(LAYOUT, dtype=torch.float64)
    assert moved.tolist() == list(range(18))
    moved.zero_()
    assert not feedback["b"].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda():
    feedback = ErrorFeedbackBuffer()
    feedback.flat(LAYOUT).copy_(torch.arange(18.0))
    feedback.to("cuda")
    assert feedback["b"].is_cuda
    assert feedback.flat(LAYOUT) is feedback.flat(LAYOUT, "cuda")
    on_host = ErrorFeedbackBuffer("cpu")
    assert on_host.compensate("w", torch.ones(2, device="cuda")).is_cuda
    assert not on_host["w"].is_cuda


def test_checkpoint():
    feedback = ErrorFeedbackBuffer()
    flat = feedback.flat(LAYOUT)
    flat.copy_(torch.arange(18.0))
    saved = feedback.state_dict()
    flat.zero_()
    assert saved["b"].tolist() == [12.0, 13.0, 14.0, 15.0, 16.0], "a snapshot, not a view"
    feedback.load_state_dict(saved)
    assert flat.tolist() == list(range(18)), "the vector in use took the values over"
    fresh = ErrorFeedbackBuffer()
    fresh.load_state_dict(saved)
    saved["b"].zero_()
    assert fresh.flat(LAYOUT).tolist() == list(range(18))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": torch.zeros(4)}, r"'b' has a residual of shape \(5,\), not \(4,\)"),
        ({"b": torch.zeros(5, dtype=torch.int64)}, "floating"),
        ({"b": [0.0] * 5}, "floating"),
        ({"b": torch.full((5,), float("nan"))}, "NaN"),
        ({"c": torch.zeros(1)}, "unknown \\['c'\\]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(change, message):
    feedback = ErrorFeedbackBuffer()
    feedback.flat(LAYOUT).copy_(torch.arange(18.0))
    state = {name: torch.zeros_like(saved) for name, saved in feedback.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        feedback.load_state_dict(state | change)
    assert feedback.flat(LAYOUT).tolist() == list(range(18))
    with pytest.raises(ValueError, match="missing"):
        feedback.load_state_dict({"b": torch.zeros(5)})


def test_reset_clears_in_place():
    feedback = ErrorFeedbackBuffer()
    flat = feedback.flat(LAYOUT)
    flat.fill_(3.0)
    feedback.reset()
    assert not flat.any()
    assert feedback.flat(LAYOUT) is flat
