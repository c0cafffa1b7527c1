"""One pipeline, or two over the same components, called from several threads: each call draws what it draws alone."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

from diffusers import DPMSolverMultistepScheduler

from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.pipelines.turns import Turns

from .conftest import SHORT

CALLS = ((SHORT, 3, 2.0), ("two blue squares", 6, 4.0), ("a", 5, 1.0))


def draw(pipe, prompt, steps, guidance, generator):
    image = pipe(
        prompt, num_inference_steps=steps, guidance_scale=guidance, generator=generator, height=64, width=64
    ).images[0]
    return image.tobytes()


def test_calls_take_turns(pipeline, generator):
    """A scheduler that counts: runs at once end in an IndexError, with others in each other's times."""
    scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    first = Kandinsky5T2IPipeline.from_pipe(pipeline, scheduler=scheduler)
    second = Kandinsky5T2IPipeline.from_pipe(first)
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
    expected = [draw(first, *call, generator(0)) for call in CALLS] * 2
    with ThreadPoolExecutor(len(expected)) as pool:
        pipes = (first, second) * len(CALLS)
        tasks = [
            pool.submit(draw, pipe, *call, generator(0)) for pipe, call in zip(pipes, CALLS * 2, strict=True)
        ]
        assert [task.result() for task in tasks] == expected


def test_copies_have_turns_of_their_own(pipeline):
    turns = Turns()
    with turns, turns:
        assert copy.deepcopy(turns) is not turns
        assert isinstance(pickle.loads(pickle.dumps(turns)), Turns)
    assert copy.deepcopy(pipeline)._turns is not pipeline._turns
    assert Kandinsky5T2IPipeline.from_pipe(pipeline)._turns is pipeline._turns
