"""Several loads at a time in one process: the libraries swap functions of torch for all threads while they load."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5T2IPipeline

THREADS = 3


def at_once(*calls: Callable[[], object]) -> list[object]:
    """What calls return or raise that begin together, each in a thread of its own."""
    results: list[object] = [None] * len(calls)
    ready = threading.Barrier(len(calls))

    def run(number: int) -> None:
        ready.wait()
        try:
            results[number] = calls[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("round_", range(2))
def test_pipelines_and_networks_in_three_threads(saved_folder, components, round_):
    initialise, register = nn.init.normal_, nn.Module.register_parameter
    loads = [
        lambda: Kandinsky5T2IPipeline.from_pretrained(saved_folder),
        lambda: Kandinsky5T2IPipeline.from_pretrained(saved_folder, text_encoder_parts=["vision"]),
        lambda: Kandinsky5Transformer3DModel.from_pretrained(saved_folder, subfolder="transformer"),
    ]
    for found in at_once(*loads):
        assert not isinstance(found, BaseException), found
        network = found if isinstance(found, nn.Module) else found.transformer
        expected = components["transformer"].state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
        if not isinstance(found, nn.Module):
            tied = (
                found.text_encoder.lm_head.weight
                is found.text_encoder.model.language_model.embed_tokens.weight
            )
            assert tied == components["text_encoder"].config.tie_word_embeddings
    assert nn.init.normal_ is initialise and nn.Module.register_parameter is register
    assert torch.get_default_dtype() == torch.float32
