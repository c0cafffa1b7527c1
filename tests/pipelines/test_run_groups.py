"""Runs that share a forward pass: each at its own time, none changed by the others."""

import pytest
import torch

from kandinsky5.denoise import Run, RunGroup, set_times
from kandinsky5.pipelines.drawing import Call
from kandinsky5.pipelines.prompt_input import Prompts

from .conftest import LONG, MIDDLE, SHORT, picture


def begin(pipeline, generator, prompt, seeds, guidance=3.0, pictures=()) -> Run:
    return pipeline.begin(
        Call(
            prompts=Prompts.from_call(prompt, "grey", None, None, None, None, None, None),
            width=64,
            height=64,
            num_inference_steps=4,
            guidance_scale=guidance,
            num_images_per_prompt=len(seeds),
            generator=[generator(seed) for seed in seeds],
            latents=None,
            output_type="pil",
            callback=None,
            callback_tensors=[],
            max_sequence_length=512,
            pictures=pictures,
        )
    )


def alone(pipeline, run, time):
    return RunGroup(runs=[run]).velocities([time], transformer=pipeline.transformer)[0]


def test_a_group_of_unlike_runs_equals_each_alone(pipeline, generator):
    """Different lengths, guidance, times; one without a negative branch, one of two pictures."""
    runs = [
        begin(pipeline, generator, SHORT, [1], guidance=5.0),
        begin(pipeline, generator, LONG, [2], guidance=1.0),
        begin(pipeline, generator, MIDDLE, [3, 4], guidance=2.0),
    ]
    times = list(set_times(pipeline.scheduler, 4, "cpu")[[3, 0, 1]])
    together = RunGroup(runs=runs).velocities(times, transformer=pipeline.transformer)
    for run, time, velocity in zip(runs, times, together, strict=True):
        expected = alone(pipeline, run, time)
        assert velocity.shape == run.latents.shape
        assert (velocity - expected).abs().max() < 1e-4 * expected.abs().max()
        assert (alone(pipeline, run, times[(times.index(time) + 1) % 3]) - expected).abs().max() > 1e-3


def test_edits_and_pictures_from_text_share_a_pass_of_an_editing_network(editing, generator):
    from kandinsky5.pipelines import Kandinsky5T2IPipeline

    drawing = Kandinsky5T2IPipeline.from_pipe(editing)
    runs = [
        begin(editing, generator, SHORT, [1], pictures=[picture(64, 64)]),
        begin(drawing, generator, MIDDLE, [2]),
    ]
    times = list(set_times(editing.scheduler, 4, "cpu")[:2])
    together = RunGroup(runs=runs).velocities(times, transformer=editing.transformer)
    for run, time, velocity in zip(runs, times, together, strict=True):
        expected = alone(editing, run, time)
        assert (velocity - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_rows_of_a_run_are_runs_of_their_own(pipeline, generator, guidance):
    run = begin(pipeline, generator, MIDDLE, [5, 6], guidance=guidance)
    time = torch.tensor(700.0)
    whole, rows = alone(pipeline, run, time), run.rows()
    assert [len(row.latents) for row in rows] == [1, 1]
    for row, velocity in zip(rows, whole, strict=True):
        assert (alone(pipeline, row, time)[0] - velocity).abs().max() < 1e-4 * velocity.abs().max()
    rows[0].latents.zero_()
    assert run.latents.abs().max() > 0, "a row owns its latents"
