"""An editing pipeline looks at which network a hub id has before it fetches gigabytes; from the loopback hub."""

import json
from pathlib import Path

import pytest

from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.pipelines import Kandinsky5I2IPipeline
from tests.hub.conftest import at, hub
from tests.hub.server import Hub
from tests.hub.test_fetch import files_in
from tests.hub.test_pipelines import asked

__all__ = ["at", "hub"]

CONFIG = "transformer/config.json"


def test_a_text_to_image_checkpoint_is_refused_before_its_weights(
    hub: Hub, at: str, saved_folder: str
) -> None:
    files = files_in(Path(saved_folder))
    hub.add("someone/drawing", files)
    with pytest.raises(RequestError, match="Use Kandinsky5T2IPipeline"):
        Kandinsky5I2IPipeline.from_pretrained("someone/drawing", cache_dir=at)
    assert asked(hub) == {"model_index.json", CONFIG}
    assert not list(Path(at).rglob("*.safetensors")) and hub.count("GET", "/store/") == 0


@pytest.mark.parametrize("arguments", [{}, {"force_download": True}])
def test_an_editing_checkpoint_is_fetched_once(
    hub: Hub, at: str, saved_editing_folder: str, arguments: dict[str, bool]
) -> None:
    files = files_in(Path(saved_editing_folder))
    hub.add("someone/editing", files)
    assert json.loads(files[CONFIG])["visual_cond"] is True
    if arguments:
        Kandinsky5I2IPipeline.from_pretrained("someone/editing", cache_dir=at)
        hub.requests.clear()
    pipe = Kandinsky5I2IPipeline.from_pretrained("someone/editing", cache_dir=at, **arguments)
    assert pipe.config._name_or_path == "someone/editing"
    assert hub.sent() == sum(map(len, files.values()))
    again = {"cache_dir": at, "local_files_only": True}
    assert Kandinsky5I2IPipeline.from_pretrained("someone/editing", **again) is not None


def test_what_is_no_pipeline_is_called_so(hub: Hub, at: str) -> None:
    hub.add("someone/words", {"README.md": b"# words"})
    with pytest.raises(CheckpointError, match=r"has no model_index\.json: it is not a pipeline"):
        Kandinsky5I2IPipeline.from_pretrained("someone/words", cache_dir=at)
