"""What a segment keeps: change, error, stand-in and patch views, against hand-computed values."""

import math

import pytest
import torch

from fastcache_xdit.approx.linear import Polynomial
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.segments.state import SegmentState
from fastcache_xdit.segments.sums import ErrorSums, energy


def image(*values):
    """[1, 2, 1]: two tokens of one channel."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1)


HISTORY, REUSE = Polynomial(1), Polynomial(0)


def taught(name=HISTORY):
    """Entered 3, 4 at steps 0 and 1; residuals 1, 2 then 3, 6."""
    state = SegmentState()
    state.keep(name, Streams(image(3, 4), image(1)), Streams(image(4, 6), image(3)), step=0)
    state.keep(name, Streams(image(3, 4), image(1)), Streams(image(6, 10), image(5)), step=1)
    return state


def test_without_reference_the_change_is_infinite_for_every_sample():
    change = SegmentState().change(Streams(torch.zeros(3, 2, 1)))
    assert change.packed().tolist() == [[math.inf, 1.0, math.inf, 2.0]] * 3


def test_change_is_squared_distance_and_squared_reference():
    # tokens moved by 1 and 3: saliencies 1 and 9, their squares 1 and 81
    assert taught().change(Streams(image(4, 7))).packed().tolist() == [[10.0, 25.0, 82.0, 2.0]]
    assert math.isinf(taught().change(Streams(image(3, 7, 9))).change[0]), "another size has no reference"


def test_what_a_step_added_can_be_counted_from_an_earlier_place_on():
    # the step left 6, 10 behind; from 1, 2 on it added 5, 8
    state = taught()
    state.rebase(Streams(image(1, 2)))
    assert state.reference.flatten().tolist() == [1, 2]
    assert state.output.flatten().tolist() == [6, 10]
    estimate = state.stand_in(REUSE, Streams(image(0, 0), image(0)), step=2)
    assert estimate.hidden_states.flatten().tolist() == [5, 8]
    assert estimate.encoder_hidden_states.flatten().tolist() == [4], "the text stream is as it was"


def test_stand_in_extends_both_streams():
    out = taught().stand_in(HISTORY, Streams(image(0, 0), image(0)), step=2)
    assert out.hidden_states.flatten().tolist() == [5.0, 10.0]  # residuals 1, 3 -> 5 and 2, 6 -> 10
    assert out.encoder_hidden_states.flatten().tolist() == [6.0]  # 2, 4 -> 6
    out = taught(REUSE).stand_in(REUSE, Streams(image(1, 1), image(0)), step=2)
    assert out.hidden_states.flatten().tolist() == [4.0, 7.0]


def test_the_error_is_what_the_stand_in_missed():
    # for each sample: 2 and 4 missed of 6 and 10, and nothing of 3
    output, estimate = torch.tensor([[[6.0], [10.0]], [[0.0], [3.0]]]), torch.tensor([[[4.0], [6.0]], [[0.0], [3.0]]])
    error = ErrorSums.measured(output, estimate)
    assert error.packed().tolist() == [[2.0**2 + 4.0**2, 6.0**2 + 10.0**2], [0.0, 9.0]]
    assert error.relative.tolist() == pytest.approx([math.sqrt(20 / 136), 0.0])


def test_references_are_copies():
    entered = image(3, 4)
    state = SegmentState()
    state.keep(REUSE, Streams(entered), Streams(image(4, 6)), step=0)
    entered.zero_()  # as a receive buffer does at the next step
    assert state.reference.flatten().tolist() == [3.0, 4.0]


def test_references_of_another_dtype_are_rounded_once():
    state, third = SegmentState(), 1 / 3
    state.keep(HISTORY, Streams(image(third, 4)), Streams(image(third + 257, 6)), 0, "bfloat16")
    assert [tensor.dtype for tensor in state.references["hidden_states"][0][1:]] == [torch.bfloat16] * 2
    state.keep(HISTORY, Streams(image(third, 4)), Streams(image(third + 3, 6)), 1, "bfloat16")
    estimate = state.stand_in(HISTORY, Streams(image(0, 0.001)), step=2).hidden_states
    assert estimate.dtype == torch.float32
    assert estimate.flatten().tolist() == pytest.approx([2 * 3 - 256, 2.001]), "257 became 256; sums are float32"
    state.rebase(Streams(image(third + 1, 4)))
    assert [tensor.dtype for tensor in state.references["hidden_states"][0][1:]] == [torch.bfloat16] * 2


def test_references_of_a_rounded_model_can_be_whole():
    state, entered, output = SegmentState(), image(1.0).bfloat16(), image(257.0).bfloat16() + image(2.0).bfloat16()
    state.keep(REUSE, Streams(entered), Streams(output), 0, "float32")
    newest = state.references["hidden_states"][0]
    assert newest.residual.item() == output.item() - 1.0 and newest.residual.dtype == torch.float32
    assert state.stand_in(REUSE, Streams(entered), step=1).hidden_states.dtype == torch.bfloat16


def test_another_size_forgets_the_old_residuals():
    state = taught()
    state.keep(HISTORY, Streams(image(1, 1, 1)), Streams(image(2, 2, 2)), step=2)
    assert state.order == 1
    state.keep(HISTORY, Streams(image(1, 1, 1)), Streams(image(3, 3, 3)), step=3)
    assert state.order == 2


def test_a_block_without_text_output_keeps_the_image_stream():
    state = SegmentState()
    state.keep(HISTORY, Streams(image(1), image(1)), Streams(image(2), None), step=0)
    out = state.stand_in(HISTORY, Streams(image(5), image(1)), step=1)
    assert out.hidden_states.item() == 6.0 and out.encoder_hidden_states is None


def test_a_patch_sees_its_rows_and_shares_the_text():
    whole = taught()
    patch = whole.rows(1, 2)
    assert patch.reference.flatten().tolist() == [4.0] and patch.order == 2
    out = patch.stand_in(HISTORY, Streams(image(0), image(0)), step=2)
    assert out.hidden_states.item() == 10.0 and out.encoder_hidden_states.item() == 6.0
    patch.keep(HISTORY, Streams(image(9), image(0)), Streams(image(9), image(0)), step=2)
    assert whole.order == 2 and whole.references["hidden_states"][0].step == 1, "patches do not touch the whole"
    assert SegmentState().rows(0, 1).order == 0


def test_energy_is_per_sample_in_float64():
    values = torch.arange(8, dtype=torch.bfloat16).reshape(2, 2, 2)
    assert energy(values).tolist() == [0 + 1 + 4 + 9, 16 + 25 + 36 + 49]
    assert energy(values).dtype == torch.float64


def test_bytes_held():
    # reference 2 floats, image residuals 2 x 2, text residuals 2 x 1
    assert taught().bytes_held() == 4 * (2 + 4 + 2)
