"""`from_pretrained` and `load_pipeline` by hub id, from the loopback hub: what is asked for, and what is said."""

import multiprocessing
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save

from kandinsky5.cli.app import run
from kandinsky5.errors import CapacityError, CheckpointError, RequestError
from kandinsky5.hub import HubAccess
from kandinsky5.hub.cache import size_of_partials
from kandinsky5.loading import load_pipeline, memory_needed
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from tests.pipelines.conftest import components, saved_folder

from .conftest import UNWANTED
from .server import Hub, Trouble
from .test_fetch import files_in, leftovers

__all__ = ["components", "saved_folder"]

REPO = "someone/real-tiny"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
MORE = {
    name: content for name, content in UNWANTED.items() if "transformer" not in name and "fp16" not in name
}


@pytest.fixture
def files(hub: Hub, saved_folder: str) -> dict[str, bytes]:
    """A real small pipeline on the hub, beside what nobody needs."""
    files = files_in(Path(saved_folder))
    hub.add(REPO, files | MORE)
    return files


def asked(hub: Hub) -> set[str]:
    """Paths of files that were asked for."""
    return {r.path.split("/resolve/")[1].partition("/")[2] for r in hub.requests if "/resolve/" in r.path}


def same(network: Any, other: Any) -> bool:
    expected = other.state_dict()
    return all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


def test_a_pipeline(
    hub: Hub, at: str, files: dict[str, bytes], components: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = Kandinsky5T2IPipeline.from_pretrained(REPO, cache_dir=at)
    assert same(pipe.transformer, components["transformer"])
    assert same(pipe.text_encoder, components["text_encoder"])
    assert asked(hub) == set(files), "what is needed and nothing else"
    assert pipe.config._name_or_path == REPO
    assert not re.search("fetching|checking|B/s", capfd.readouterr().err), "no bar without a terminal"
    hub.requests.clear()
    Kandinsky5T2IPipeline.from_pretrained(REPO, cache_dir=at)
    assert hub.sent() == 0


def test_a_checkpoint_of_another_task_is_refused_before_its_weights_are_fetched(
    hub: Hub, access: HubAccess, files: dict[str, bytes]
) -> None:
    with pytest.raises(RequestError, match="it is a text-to-image checkpoint"):
        load_pipeline(REPO, task="editing", access=access, device="cpu")
    assert not [name for name in asked(hub) if name.endswith(".safetensors")]


def test_a_network_alone(hub: Hub, at: str, files: dict[str, bytes], components: Any) -> None:
    network = Kandinsky5Transformer3DModel.from_pretrained(REPO, subfolder="transformer", cache_dir=at)
    assert same(network, components["transformer"])
    assert asked(hub) == {name for name in files if name.startswith("transformer/")}
    assert Kandinsky5T2IPipeline.from_pretrained(REPO, cache_dir=at).config._name_or_path == REPO
    hub.add(
        "someone/network",
        {"config.json": files["transformer/config.json"], Path(WEIGHTS).name: files[WEIGHTS]},
    )
    assert same(Kandinsky5Transformer3DModel.from_pretrained("someone/network", cache_dir=at), network)
    with pytest.raises(
        CheckpointError, match=r"someone/network has no transformer/config.json: there is no network"
    ):
        Kandinsky5Transformer3DModel.from_pretrained("someone/network", subfolder="transformer", cache_dir=at)


def test_components_that_are_passed_are_not_fetched(
    hub: Hub, at: str, files: dict[str, bytes], components: Any
) -> None:
    brought = {"text_encoder": components["text_encoder"], "vae": None}
    pipe = Kandinsky5T2IPipeline.from_pretrained(REPO, cache_dir=at, **brought)
    assert pipe.text_encoder is components["text_encoder"] and pipe.vae is None
    assert asked(hub) == {name for name in files if not name.startswith(("text_encoder/", "vae/"))}
    again = Kandinsky5T2IPipeline.from_pretrained(REPO, cache_dir=at, local_files_only=True, **brought)
    assert same(again.transformer, pipe.transformer)
    with pytest.raises(
        CheckpointError, match=r"is not whole: it lacks \w+, and the hub must not .* pull someone/real-tiny"
    ):
        Kandinsky5T2IPipeline.from_pretrained(REPO, cache_dir=at, local_files_only=True)


@pytest.fixture
def half(hub: Hub, files: dict[str, bytes], saved_folder: str) -> torch.Tensor:
    """The network again in float16 under the name of a variant; one of its tensors."""
    tensors = {name: tensor.half() for name, tensor in load_file(Path(saved_folder) / WEIGHTS).items()}
    name = WEIGHTS.replace(".safetensors", ".fp16.safetensors")
    hub.add(REPO, files | {name: save(tensors, metadata={"format": "pt"})})
    return tensors["out_layer.out_layer.weight"]


def test_a_variant(hub: Hub, at: str, half: torch.Tensor) -> None:
    pipe = Kandinsky5T2IPipeline.from_pretrained(REPO, cache_dir=at, variant="fp16")
    assert torch.equal(pipe.transformer.out_layer.out_layer.weight, half)
    assert WEIGHTS not in asked(hub) and WEIGHTS.replace(".safe", ".fp16.safe") in asked(hub)
    network = Kandinsky5Transformer3DModel.from_pretrained(
        REPO, subfolder="transformer", cache_dir=at, variant="fp16", local_files_only=True
    )
    assert torch.equal(network.out_layer.out_layer.weight, half)
    words = "has no weights of variant 'bf16'; it has 'fp16' beside the usual ones, which"
    with pytest.raises(CheckpointError, match=words):
        Kandinsky5T2IPipeline.from_pretrained(REPO, cache_dir=at, variant="bf16")
    with pytest.raises(CheckpointError, match=words):
        Kandinsky5Transformer3DModel.from_pretrained(
            REPO, subfolder="transformer", cache_dir=at, variant="bf16"
        )


def test_a_revision_and_a_token(hub: Hub, at: str, files: dict[str, bytes]) -> None:
    hub.repositories[REPO].token = "hf_secret"
    hub.push(REPO, {**files, "scheduler/scheduler_config.json": b'{"shift": 5.0}'}, "v2")
    load = {"cache_dir": at, "token": "hf_secret"}
    assert Kandinsky5T2IPipeline.from_pretrained(REPO, revision="v2", **load).scheduler.config.shift == 5.0
    assert Kandinsky5T2IPipeline.from_pretrained(REPO, **load).scheduler.config.shift == 3.0
    offline = Kandinsky5T2IPipeline.from_pretrained(REPO, revision="v2", cache_dir=at, local_files_only=True)
    assert offline.scheduler.config.shift == 5.0
    with pytest.raises(CheckpointError, match="private"):
        Kandinsky5T2IPipeline.from_pretrained(REPO, cache_dir=at, token=False)
    with pytest.raises(CheckpointError, match="has no revision 'v3'"):
        Kandinsky5T2IPipeline.from_pretrained(REPO, revision="v3", **load)


@pytest.mark.parametrize("by", ["argument", "environment", "no network"])
def test_without_a_network(
    hub: Hub, at: str, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    load: dict[str, Any] = {"cache_dir": at}
    first = Kandinsky5T2IPipeline.from_pretrained(REPO, **load)
    hub.requests.clear()
    if by == "argument":
        load["local_files_only"] = True
    elif by == "environment":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert same(Kandinsky5T2IPipeline.from_pretrained(REPO, **load).transformer, first.transformer)
    network = Kandinsky5Transformer3DModel.from_pretrained(REPO, subfolder="transformer", **load)
    assert same(network, first.transformer)
    assert hub.requests == []
    error = CheckpointError if by == "no network" else RequestError
    with pytest.raises(error, match="does not answer" if by == "no network" else "cannot be fetched again"):
        Kandinsky5T2IPipeline.from_pretrained(REPO, force_download=True, **load)


def test_a_forced_download(hub: Hub, at: str, files: dict[str, bytes]) -> None:
    size = sum(map(len, files.values()))
    Kandinsky5T2IPipeline.from_pretrained(REPO, cache_dir=at)
    hub.requests.clear()
    Kandinsky5T2IPipeline.from_pretrained(REPO, cache_dir=at, force_download=True)
    assert hub.sent() == size


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (Trouble(where="/api/models", status=403), "may not read someone/real-tiny .HTTP 403"),
        (Trouble(where="/api/models", status=404), "is not on the hub, or it is private .HTTP 404"),
        (Trouble(where="/api", status=429, headers={"Retry-After": "9"}), "try again in 9 seconds"),
        (Trouble(where="/api/models", status=503), "fails now .HTTP 503"),
        (Trouble(where="GET /store", other_bytes=True), "arrived damaged"),
        (Trouble(where="GET /store", short_length=1000), "the hub sends 1000 bytes where"),
        (Trouble(where="GET /store", break_after=0), "does not answer"),
        (Trouble(where="GET /store", status=403), "may not read"),
    ],
)
@pytest.mark.parametrize("route", ["pipeline", "network", "load_pipeline"])
def test_refusals(
    hub: Hub, at: str, files: dict[str, bytes], trouble: Trouble, words: str, route: str
) -> None:
    hub.troubles.append(Trouble(**vars(trouble)))
    with pytest.raises(CheckpointError, match=words) as caught:
        load_by(route, at)
    assert "\n" not in str(caught.value)
    assert leftovers(HubAccess(cache_dir=Path(at))) == []
    hub.troubles.clear()
    assert load_by(route, at) is not None


def load_by(route: str, cache: str) -> Any:
    if route == "pipeline":
        return Kandinsky5T2IPipeline.from_pretrained(REPO, cache_dir=cache)
    if route == "network":
        return Kandinsky5Transformer3DModel.from_pretrained(REPO, subfolder="transformer", cache_dir=cache)
    return load_pipeline(REPO, device="cpu", dtype="fp32", access=HubAccess(cache_dir=Path(cache)))


def test_a_slow_line_that_breaks_is_gone_on_with(hub: Hub, at: str, files: dict[str, bytes]) -> None:
    breaks = Trouble(where="GET /store", break_after=60_000, times=3)
    hub.troubles += [Trouble(where="GET /store", stall=0.3, times=1), breaks]
    assert load_by("pipeline", at) is not None
    assert breaks.times == 0
    assert sum(r.status == 206 for r in hub.requests) >= 1


@pytest.mark.parametrize("route", ["pipeline", "network", "load_pipeline"])
def test_a_full_disk_is_seen_before_the_first_byte(
    hub: Hub, at: str, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(CapacityError, match="GB are free"):
        load_by(route, at)
    assert hub.sent() == 0 and not Path(at).exists()


@pytest.mark.parametrize("route", ["pipeline", "network", "load_pipeline"])
def test_pickles_are_not_fetched(hub: Hub, at: str, files: dict[str, bytes], route: str) -> None:
    pickled = {name.replace(".safetensors", ".bin"): content for name, content in files.items()}
    hub.add(REPO, pickled)
    with pytest.raises(CheckpointError, match=r"no safetensors for transformer, only transformer/.*\.bin"):
        load_by(route, at)
    assert hub.count("GET", "/store/") == 0


def test_load_pipeline_passes_on_what_it_takes(hub: Hub, at: str, files: dict[str, bytes]) -> None:
    hub.repositories[REPO].token = "hf_secret"
    hub.push(REPO, {**files, "scheduler/scheduler_config.json": b'{"shift": 5.0}'}, "v2")
    access = HubAccess(cache_dir=Path(at), token="hf_secret")
    run: dict[str, Any] = {"device": "cpu", "dtype": "bf16"}
    pipe = load_pipeline(REPO, revision="v2", access=access, **run)
    assert pipe.scheduler.config.shift == 5.0 and pipe.dtype == torch.bfloat16
    assert pipe.config._name_or_path == REPO
    hub.requests.clear()
    load_pipeline(REPO, revision="v2", access=access, force_download=True, **run)
    assert hub.sent() == sum(map(len, files.values())) - len(files["scheduler/scheduler_config.json"]) + 14
    with pytest.raises(CheckpointError, match="no weights of variant 'fp16'; it has only the usual ones"):
        load_pipeline(REPO, access=access, variant="fp16", **run)
    with pytest.raises(RequestError, match="revision is for hub ids"):
        load_pipeline("embedded", revision="v2", **run)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"revison": "v2"}, "no argument 'revison'; did you mean revision"),
        ({"custom_pipeline": "someone/code"}, "code from a repository is not run"),
        ({"trust_remote_code": True}, "code from a repository is not run"),
        ({"use_onnx": True}, "only safetensors are read"),
        ({"mirror": "tuna"}, "HF_ENDPOINT"),
        ({"proxies": {"https": "http://p"}}, "HTTPS_PROXY"),
        ({"subfolder": "a"}, "no argument 'subfolder'"),
        ({"zzz": 1}, "no argument 'zzz'; leave it out"),
    ],
)
def test_arguments_that_would_be_ignored(
    hub: Hub, at: str, saved_folder: str, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        Kandinsky5T2IPipeline.from_pretrained(REPO, cache_dir=at, **arguments)
    if "subfolder" not in arguments:
        with pytest.raises(RequestError, match=words):
            Kandinsky5Transformer3DModel.from_pretrained(REPO, cache_dir=at, **arguments)
    assert hub.requests == []


@pytest.mark.parametrize("arguments", [{"revision": "v2"}, {"force_download": True}])
def test_a_folder_has_no_revision(saved_folder: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(arguments))} is for hub ids"):
        Kandinsky5T2IPipeline.from_pretrained(saved_folder, **arguments)
    harmless = {"token": "x", "cache_dir": "y", "local_files_only": True, "use_onnx": None, "mirror": None}
    assert Kandinsky5T2IPipeline.from_pretrained(saved_folder, **harmless) is not None


def test_a_killed_from_pretrained_goes_on(
    hub: Hub, at: str, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The route of Python code resumes as `pull` does."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 50)  # until it is killed
    cache = Path(at)
    hub.troubles.append(Trouble(where=f"GET /store/{REPO}", hang_after=50_000))
    context = multiprocessing.get_context("fork")  # what this process has imported need not be imported again
    victim = context.Process(
        target=Kandinsky5T2IPipeline.from_pretrained, args=(REPO,), kwargs={"cache_dir": at}
    )
    victim.start()
    deadline = time.monotonic() + 120
    while not any(size > 30_000 for blobs in cache.rglob("blobs") for size in size_of_partials(blobs.parent)):
        assert time.monotonic() < deadline and victim.is_alive()
        time.sleep(0.02)
    victim.kill()
    victim.join()
    hub.troubles.clear()
    hub.requests.clear()
    access = HubAccess(cache_dir=cache, endpoint=hub.address)
    assert load_pipeline(REPO, device="cpu", access=access) is not None
    assert any(r.range and r.status == 206 for r in hub.requests)


def test_verify_looks_at_the_cache_and_asks_nobody(
    hub: Hub, at: str, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", REPO, "--cache-dir", at]) == 3
    assert f"kandinsky5 pull {REPO} fetches it" in capsys.readouterr().err
    assert hub.requests == []
    assert run(["pull", REPO, "--cache-dir", at]) == 0
    capsys.readouterr()
    hub.requests.clear()
    assert run(["verify", REPO, "--cache-dir", at, "--device", "cpu", "--precision", "fp32"]) == 0
    out = capsys.readouterr().out
    assert out.count(" ok ") == 9 and "failed" not in out
    assert hub.requests == []
    blob = next(Path(at).rglob("vae/*.safetensors")).resolve()
    blob.write_bytes(blob.read_bytes()[:-9])
    assert run(["verify", REPO, "--cache-dir", at]) == 3
    assert "does not pass: other components" in capsys.readouterr().err


def test_memory_is_looked_at_before_anything_is_loaded(
    saved_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = memory_needed(Path(saved_folder), torch.bfloat16)
    stored = {n: t for p in Path(saved_folder).rglob("*.safetensors") for n, t in load_file(p).items()}
    vision = sum(2 * tensor.numel() for name, tensor in stored.items() if ".visual." in f".{name}")
    assert needed == sum(2 * tensor.numel() for tensor in stored.values()) - vision and vision > 0
    assert memory_needed(Path(saved_folder), torch.float32) == 2 * needed
    monkeypatch.setattr("kandinsky5.loading.free_memory", lambda device: needed - 1)
    with pytest.raises(CapacityError, match=r"need 0\.\d GB in bfloat16 on cpu, where 0\.\d GB are free"):
        load_pipeline(saved_folder, device="cpu", dtype="bf16")
    for enough in (needed, None):
        monkeypatch.setattr("kandinsky5.loading.free_memory", lambda device, enough=enough: enough)
        assert load_pipeline(saved_folder, device="cpu", dtype="bf16") is not None
