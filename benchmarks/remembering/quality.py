"""What packing does: to text states, to the velocity, and to the score table.

Comes in: a model's name or folder, a number of questions. Goes out: distances and scores by format. A distance is the
L2 norm of the difference over that of the unpacked model's result, both in bfloat16; beside them stands what bfloat16
itself does against float32. The layers of the published width have random weights N(0, 0.02), so their distances are
of the format and say nothing about pictures. Refuses to know: memory.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kandinsky5.demo.examination import texts_of
from kandinsky5.memory.formats import pack, packs
from kandinsky5.memory.packing import write_packed
from kandinsky5.memory.published import NETWORK, TEXT
from kandinsky5.model import four_bits
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.pipelines.prompt_input import Prompts
from kandinsky5.variants import resolve_model

FORMATS = ("int8", "fp8", "nf4")
CPU = torch.device("cpu")
TIMES = (950.0, 700.0, 400.0, 100.0)
BATCH = 64
"""Pictures drawn at once: a GPU is idle with fewer of the embedded model's."""

TEXTS = 8
"""Whose states and velocities are compared where no questions are asked."""


def measure(model: str, count: int, device: str) -> dict[str, Any]:
    """Everything; packed folders are written to a temporary place. Without questions there are no scores.

    Pictures are drawn on the device; a CUDA one is also asked in the mode fp8.
    """
    folder = resolve_model(model).folder
    assert folder is not None, "a folder, or the embedded model"
    found: dict[str, Any] = {"questions": count}
    with tempfile.TemporaryDirectory(prefix="packed-") as root:
        folders = packed_folders(folder, Path(root))
        found["distances"] = distances(folder, folders, texts_of("compositions", count or TEXTS))
        found["published_width"] = {"velocity": wide_network(), "text": wide_text()}
        if count:
            places = {"bf16": folder, **folders}
            found["score"] = {name: scores(place, count, device) for name, place in places.items()}
            if device.startswith("cuda"):
                found["score"]["mode fp8"] = scores(folder, count, device, "fp8")
            found["lost_points"] = lost(found["score"])
    return found


def packed_folders(folder: Path, root: Path) -> dict[str, Path]:
    """A folder for each format of the network alone, of the encoder alone, and of both."""
    made = {}
    for form in FORMATS:
        for name, formats in (
            (f"network {form}", {"network": form, "encoder": "bf16"}),
            (f"encoder {form}", {"network": "bf16", "encoder": form}),
            (form, {"network": form, "encoder": form}),
        ):
            made[name] = root / name.replace(" ", "-")
            write_packed(folder, made[name], device=CPU, **formats)
    return made


def distances(folder: Path, folders: dict[str, Path], texts: list[str]) -> dict[str, Any]:
    """Of text states and velocities of the model itself."""
    plain = load(folder, torch.bfloat16)
    states, seen = text_states(plain, texts), velocities(plain, texts)
    exact = load(folder, torch.float32)
    found = {
        "bf16 against float32": {
            "text": distance(states, text_states(exact, texts)),
            "velocity": distance(seen, velocities(exact, texts)),
        }
    }
    del exact
    for form in FORMATS:
        encoder = load(folders[f"encoder {form}"], torch.bfloat16)
        network = load(folders[f"network {form}"], torch.bfloat16)
        found[form] = {
            "text": distance(text_states(encoder, texts), states),
            "velocity": distance(velocities(network, texts), seen),
            "velocity, encoder packed": distance(velocities(encoder, texts), seen),
        }
    return found


def load(folder: Path, dtype: torch.dtype) -> Any:
    """The pipeline of a folder."""
    pipeline = Kandinsky5T2IPipeline.from_pretrained(folder, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def encoded(pipeline: Any, texts: list[str]) -> Any:
    """The texts as the network gets them."""
    with torch.no_grad():
        return pipeline._encoded(Prompts.of_texts(texts), (), 512)[0]


def text_states(pipeline: Any, texts: list[str]) -> Tensor:
    """The states of all real tokens, in one line."""
    rows = encoded(pipeline, texts)
    return torch.cat([rows.text[i, :length].flatten() for i, length in enumerate(rows.lengths.tolist())])


def velocities(pipeline: Any, texts: list[str]) -> Tensor:
    """Of the same noise at `TIMES`, a row a text."""
    network, rows = pipeline.transformer, encoded(pipeline, texts)
    side = pipeline.default_size[0] // pipeline.vae_scale_factor_spatial
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(len(texts), 1, side, side, network.input_channels, generator=generator)
    patches = [n // p for n, p in zip((1, side, side), network.config.patch_size, strict=True)]
    found = []
    for time in TIMES:
        with torch.no_grad():
            found.append(
                network(
                    hidden_states=latents,
                    encoder_hidden_states=rows.text.to(network.dtype),
                    timestep=torch.full((len(texts),), time),
                    pooled_projections=rows.pooled.to(network.dtype),
                    visual_rope_pos=[torch.arange(n) for n in patches],
                    text_rope_pos=torch.arange(rows.text.shape[1]),
                    encoder_attention_mask=rows.padding_mask,
                ).sample.float()
            )
    return torch.stack(found)


def wide_network(blocks: int = 2, side: int = 32, tokens: int = 64) -> dict[str, float]:
    """Of a network of the published width with few blocks and random weights, at 256 x 256."""
    network = random_weights(
        Kandinsky5Transformer3DModel(**{**NETWORK, "num_visual_blocks": blocks, "num_text_blocks": 1})
    )
    generator = torch.Generator().manual_seed(1)
    given = {
        "hidden_states": torch.randn(1, 1, side, side, 16, generator=generator),
        "encoder_hidden_states": torch.randn(1, tokens, 3584, generator=generator).to(torch.bfloat16),
        "timestep": torch.tensor([500.0]),
        "pooled_projections": torch.randn(1, 768, generator=generator).to(torch.bfloat16),
        "visual_rope_pos": [torch.arange(n) for n in (1, side // 2, side // 2)],
        "text_rope_pos": torch.arange(tokens),
    }

    def velocity() -> Tensor:
        with torch.no_grad():
            return network(**given).sample.float()

    names = [name for name, layer in network.named_modules() if packs("transformer", name, layer, "nf4")]
    return by_format(network, names, velocity, lambda form: pack(network, "transformer", form, CPU))


def wide_text(layers: int = 2, tokens: int = 128) -> dict[str, float]:
    """Of Qwen's language model of the published width with few layers and random weights."""
    from transformers import Qwen2_5_VLTextConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

    text = Qwen2_5_VLTextConfig(**{**TEXT, "num_hidden_layers": layers, "vocab_size": 1000})
    model = random_weights(Qwen2_5_VLTextModel(text))
    ids = torch.randint(0, 1000, (1, tokens), generator=torch.Generator().manual_seed(1))

    def states() -> Tensor:
        with torch.no_grad():
            return model(input_ids=ids).last_hidden_state.float()

    names = [name for name, layer in model.named_modules() if type(layer) is nn.Linear]
    return by_format(model, names, states, lambda form: four_bits.replace_layers(model, names, CPU))


def by_format(
    model: nn.Module, names: list[str], result: Callable[[], Tensor], pack_all: Callable[[str], None]
) -> dict[str, float]:
    """Distances of a model's result with its layers in each format, put back in between."""
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    plain, layers = result(), {name: model.get_submodule(name) for name in names}
    weights = {name: layer.weight for name, layer in layers.items()}
    found = {}
    for form, kind in (("int8", Int8WeightOnlyConfig()), ("fp8", Float8WeightOnlyConfig())):
        for layer in layers.values():
            quantize_(layer, kind)
        found[form] = distance(result(), plain)
        for name, layer in layers.items():
            layer._parameters["weight"] = weights[name]  # type: ignore[assignment]
    pack_all("nf4")
    found["nf4"] = distance(result(), plain)
    return found


def random_weights(model: nn.Module) -> Any:
    """In bfloat16, all of them drawn, modulation too; norms are left."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
        parameter.data = parameter.data.to(torch.bfloat16)
    return model.eval().requires_grad_(False)


def distance(one: Tensor, other: Tensor) -> float:
    """Relative L2."""
    one, other = one.double(), other.double()
    return round(float((one - other).norm() / other.norm()), 5)


def scores(folder: Path, count: int, device: str, mode: str = "auto") -> dict[str, Any]:
    """`kandinsky5 demo score` of a folder: right and cases of each set's table, and whole answers in per cent."""
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            "-m",
            "kandinsky5",
            "demo",
            "score",
            str(folder),
            "-o",
            out,
            "--json",
            "-q",
        ]
        options = ["--count", str(count), "--device", device, "--precision", "bf16", "--mode", mode]
        options += ["--batch", str(BATCH)]
        done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:400]}
    sets = json.loads(done.stdout.splitlines()[-1])["sets"]
    return {name: answers["tables"]["all"] for name, answers in sets.items()}


def lost(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """For each packed folder and set, points (per cent) that each row of the table lost against the unpacked one."""
    plain = found["bf16"]
    return {
        name: {
            chosen: {
                row: round(100 * (plain[chosen][row]["share"] - cells["share"]), 2)
                for row, cells in table.items()
                if cells.get("share") is not None and plain[chosen][row].get("share") is not None
            }
            for chosen, table in answers.items()
            if chosen in plain
        }
        for name, answers in found.items()
        if name != "bf16" and "error" not in answers
    }
