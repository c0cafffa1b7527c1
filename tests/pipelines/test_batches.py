"""A picture depends on its own prompt and its own noise, not on its neighbours."""

import pytest
import torch

from .conftest import LONG, MIDDLE, SHORT


def test_a_batch_equals_its_solo_runs(pipeline, generator):
    """Prompts of very different length, two pictures each, against six runs of one picture."""
    texts = [SHORT, MIDDLE, LONG]
    counts = pipeline.encode_prompt(texts)[2].diff().tolist()
    assert counts[0] < 10 < 30 < counts[1] < 100 < 190 < counts[2], counts
    negatives = ["grey", "", "a very grey picture"]
    together = pipeline(
        texts,
        negatives,
        num_images_per_prompt=2,
        generator=[generator(s) for s in range(6)],
        output_type="pt",
    ).image
    for row in range(6):
        alone = pipeline(
            texts[row // 2], negatives[row // 2], generator=generator(row), output_type="pt"
        ).image[0]
        assert (together[row] - alone).abs().max() < 1e-4
    assert (together[0] - together[2]).abs().max() > 0.01, "pictures of different prompts must differ"
    assert (together[0] - together[1]).abs().max() > 0.01, "pictures of different seeds must differ"


def test_guidance_is_the_same_in_one_forward_and_in_two(pipeline, generator):
    arguments = {"prompt": MIDDLE, "output_type": "pt"}
    in_one = pipeline(**arguments, generator=generator(0)).image
    pipeline.batched_guidance = False
    in_two = pipeline(**arguments, generator=generator(0)).image
    assert (in_one - in_two).abs().max() < 1e-5


CPU_IS_FULL = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 "
    "bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize("full", [
    torch.OutOfMemoryError("out of memory"), RuntimeError(CPU_IS_FULL), MemoryError(),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB, other allocations: 1.00 MB)"),
], ids=["CUDA", "CPU", "Python", "MPS"])  # fmt: skip
def test_guidance_falls_back_to_two_forwards_when_memory_ends(pipeline, generator, monkeypatch, full):
    """The first forward of two rows runs out of memory, as a full device would report it."""
    expected = pipeline(SHORT, generator=generator(0), output_type="pt").image
    real, rows = pipeline.transformer.forward, []

    def forward(*args, **kwargs):
        rows.append(len(kwargs["hidden_states"]))
        if rows[-1] > 1:
            raise full
        return real(*args, **kwargs)

    monkeypatch.setattr(pipeline.transformer, "forward", forward)
    image = pipeline(SHORT, generator=generator(0), output_type="pt").image
    assert rows == [2] + [1, 1] * 3
    assert (image - expected).abs().max() < 1e-5


def test_guidance_falls_back_for_no_other_error(pipeline, monkeypatch):
    def forward(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr(pipeline.transformer, "forward", forward)
    with pytest.raises(RuntimeError, match="a bug"):
        pipeline(SHORT)


def test_a_long_prompt_is_cut_without_emptying_its_neighbours(pipeline, caplog):
    alone = pipeline.encode_prompt(SHORT, max_sequence_length=20)
    both = pipeline.encode_prompt([LONG, SHORT], max_sequence_length=20)
    assert both[2].diff().tolist()[0] == 20
    count = alone[2].diff().item()
    assert both[2].diff().tolist()[1] == count
    torch.testing.assert_close(both[0][1, :count], alone[0][0])
    assert "star beside" in caplog.text, "the warning quotes what was cut off"


def test_a_cut_prompt_keeps_the_end_of_the_template(pipeline, components):
    """The cut prompt is encoded as if it had been written that short."""
    tokenizer = components["tokenizer"]
    kept = tokenizer.decode(tokenizer(LONG)["input_ids"][:19])
    cut, written = pipeline.encode_prompt(LONG, max_sequence_length=20), pipeline.encode_prompt(kept)
    torch.testing.assert_close(cut[0], written[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padding_side_of_the_tokenizer_plays_no_part(pipeline, components, side, monkeypatch):
    expected = pipeline.encode_prompt([SHORT, MIDDLE])
    monkeypatch.setattr(components["tokenizer"], "padding_side", side)
    for ours, reference in zip(pipeline.encode_prompt([SHORT, MIDDLE]), expected, strict=True):
        assert torch.equal(ours, reference)


def test_rows_of_both_encoders_stay_together(pipeline):
    """Two prompts, two pictures each: rows a, a, b, b for text states and for pooled vectors."""
    text, pooled, lengths = pipeline.encode_prompt([SHORT, MIDDLE], num_images_per_prompt=2)
    single_text, single_pooled, single_lengths = pipeline.encode_prompt([SHORT, MIDDLE])
    assert torch.equal(pooled, single_pooled.repeat_interleave(2, dim=0))
    assert torch.equal(text, single_text.repeat_interleave(2, dim=0))
    assert lengths.shape == (5,)
    assert lengths.diff().tolist() == single_lengths.diff().repeat_interleave(2).tolist()


class TestPrecomputed:
    """Embeddings from `encode_prompt` in place of prompts."""

    def embeds(self, pipeline, prompts, name="prompt", **kwargs):
        text, pooled, lengths = pipeline.encode_prompt(prompts, **kwargs)
        return {f"{name}_embeds_qwen": text, f"{name}_embeds_clip": pooled, f"{name}_cu_seqlens": lengths}

    def test_with_padding_and_several_pictures_each(self, pipeline, generator):
        seeds = lambda: [generator(s) for s in range(4)]  # noqa: E731
        expected = pipeline(
            [SHORT, MIDDLE], num_images_per_prompt=2, generator=seeds(), output_type="pt"
        ).image
        given = self.embeds(pipeline, [SHORT, MIDDLE])
        image = pipeline(**given, num_images_per_prompt=2, generator=seeds(), output_type="pt").image
        assert (image - expected).abs().max() < 1e-5

    def test_already_repeated_rows(self, pipeline, generator):
        seeds = lambda: [generator(s) for s in range(4)]  # noqa: E731
        expected = pipeline(
            [SHORT, MIDDLE], num_images_per_prompt=2, generator=seeds(), output_type="pt"
        ).image
        given = self.embeds(pipeline, [SHORT, MIDDLE], num_images_per_prompt=2)
        image = pipeline(**given, generator=seeds(), output_type="pt").image
        assert (image - expected).abs().max() < 1e-5

    def test_garbage_in_the_padding_changes_nothing(self, pipeline, generator):
        given = self.embeds(pipeline, [SHORT, MIDDLE])
        seeds = lambda: [generator(s) for s in range(2)]  # noqa: E731
        expected = pipeline(**given, generator=seeds(), output_type="pt").image
        text = given["prompt_embeds_qwen"].clone()
        text[0, int(given["prompt_cu_seqlens"][1]) :] = 1e3
        image = pipeline(**{**given, "prompt_embeds_qwen": text}, generator=seeds(), output_type="pt").image
        assert (image - expected).abs().max() < 1e-5

    def test_guidance_without_any_text(self, pipeline, generator):
        """`prompt=None` with guidance: the negative branch is the empty prompt for every row."""
        expected = pipeline(
            [SHORT, MIDDLE], generator=[generator(s) for s in (0, 1)], output_type="pt", guidance_scale=4.0
        ).image
        image = pipeline(
            **self.embeds(pipeline, [SHORT, MIDDLE]),
            generator=[generator(s) for s in (0, 1)],
            output_type="pt",
            guidance_scale=4.0,
        ).image
        assert (image - expected).abs().max() < 1e-5

    def test_negative_rows_and_one_negative_row_for_all(self, pipeline, generator):
        positive = self.embeds(pipeline, [SHORT, MIDDLE])
        for negatives in (["grey", "dull"], ["grey"]):
            expected = pipeline(
                [SHORT, MIDDLE],
                negatives if len(negatives) > 1 else negatives[0],
                generator=[generator(s) for s in (0, 1)],
                output_type="pt",
            ).image
            negative = self.embeds(pipeline, negatives, "negative_prompt")
            image = pipeline(
                **positive, **negative, generator=[generator(s) for s in (0, 1)], output_type="pt"
            ).image
            assert (image - expected).abs().max() < 1e-5

    def test_without_text_encoders(self, components, pipeline, generator):
        """A pipeline that was loaded without encoders draws from embeddings, and says what it needs otherwise."""
        from kandinsky5.pipelines import Kandinsky5T2IPipeline

        bare = Kandinsky5T2IPipeline(
            **{
                **components,
                "text_encoder": None,
                "tokenizer": None,
                "text_encoder_2": None,
                "tokenizer_2": None,
            },
            default_steps=3,
        )
        bare.set_progress_bar_config(disable=True)
        given = self.embeds(pipeline, SHORT) | self.embeds(pipeline, "", "negative_prompt")
        expected = pipeline(SHORT, generator=generator(0), output_type="pt").image
        assert (bare(**given, generator=generator(0), output_type="pt").image - expected).abs().max() < 1e-5
        with pytest.raises(ValueError, match="without its text encoders"):
            bare(SHORT)
