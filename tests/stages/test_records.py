"""Rows of a `Conditioning` stay together, whatever is done to them."""

import pytest
import torch

from kandinsky5.errors import RequestError
from kandinsky5.records import Conditioning


def rows(*lengths: int, seed: int = 0) -> Conditioning:
    """Rows of these lengths, padded with garbage, so that a row that loses its mask is noticed."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return Conditioning(
        text=torch.randn(len(lengths), longest, 4, generator=generator),
        mask=mask,
        pooled=torch.randn(len(lengths), 3, generator=generator),
    )


def same_row(a: Conditioning, i: int, b: Conditioning, j: int) -> bool:
    """Whether row i of a and row j of b hold the same prompt."""
    return (
        torch.equal(a.text[i][a.mask[i]], b.text[j][b.mask[j]])
        and torch.equal(a.pooled[i], b.pooled[j])
        and int(a.mask[i].sum()) == int(b.mask[j].sum())
    )


def test_repeat_keeps_each_row_beside_itself():
    given = rows(2, 5, 3)
    repeated = given.repeat(2)
    assert len(repeated) == 6
    assert all(same_row(repeated, i, given, i // 2) for i in range(6))
    assert not same_row(repeated, 1, given, 1)


def test_pad_adds_masked_zeros():
    given = rows(2, 5)
    padded = given.pad(9)
    assert padded.text.shape == (2, 9, 4) and padded.mask.shape == (2, 9)
    assert all(same_row(padded, i, given, i) for i in range(2))
    assert torch.count_nonzero(padded.text[:, 5:]) == 0
    with pytest.raises(ValueError, match="5 tokens do not fit into 4"):
        given.pad(4)


def test_stack_puts_rows_below_each_other():
    first, second = rows(2, 5), rows(7, seed=1)
    stacked = Conditioning.stack([first, second])
    assert stacked.text.shape == (3, 7, 4)
    assert (
        same_row(stacked, 0, first, 0) and same_row(stacked, 1, first, 1) and same_row(stacked, 2, second, 0)
    )


def test_rows_drops_the_padding_that_others_needed():
    given = rows(2, 5, 3)
    part = given.rows(2, 3)
    assert part.text.shape == (1, 3, 4) and bool(part.mask.all())
    assert same_row(part, 0, given, 2)
    assert given.rows(0, 2).text.shape == (2, 5, 4)


def test_cumulative_lengths_there_and_back():
    given = rows(2, 5, 3)
    assert given.cu_seqlens.tolist() == [0, 2, 7, 10]
    assert given.cu_seqlens.dtype == torch.int32
    back = Conditioning.from_cu_seqlens(given.text, given.pooled, given.cu_seqlens)
    assert torch.equal(back.mask, given.mask)


@pytest.mark.parametrize("lengths", [[0, 2, 7], [0, 2, 9, 12], [0, 0, 5, 8], [0, 5, 3, 8]])
def test_lengths_that_do_not_fit(lengths):
    given = rows(2, 5, 3)
    with pytest.raises(RequestError, match="cu_seqlens"):
        Conditioning.from_cu_seqlens(given.text, given.pooled, torch.tensor(lengths))


def test_parts_of_different_prompts_are_refused():
    given = rows(2, 5, 3)
    with pytest.raises(RequestError, match="same prompts"):
        Conditioning(text=given.text, mask=given.mask, pooled=given.pooled[:2])
    with pytest.raises(RequestError, match="same prompts"):
        Conditioning(text=given.text, mask=given.mask[:, :4], pooled=given.pooled)


def test_moving_keeps_the_mask_boolean():
    moved = rows(2, 5).to("cpu", torch.bfloat16)
    assert (moved.text.dtype, moved.pooled.dtype, moved.mask.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.bool,
    )
