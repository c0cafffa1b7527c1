"""A checkpoint in the published layout and size with random values: what loading and placement are measured on.

Comes in: a folder. Goes out: network (6.0 B), Qwen2.5-VL-7B, CLIP ViT-L and FLUX's autoencoder in bfloat16, 29 GB in
shards of at most 5 GB, tensor names as older versions of the libraries wrote them; tokenizers and scheduler of the
embedded model. `--tiny` keeps the layout and shrinks every width. Sizes: the published `config.json`s of Qwen2.5-VL-7B,
CLIP ViT-L/14, FLUX.1-dev and the network.
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import kandinsky5
from kandinsky5.memory.published import CLIP, NETWORK, TEXT, VAE, VISION
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel

EMBEDDED = Path(kandinsky5.__file__).parent / "demo" / "weights"
BLOCK = 2**24
"""Random values that are written over and over, each tensor starting at another place."""

WRITERS = 8

SHRINK = {
    "network": {"in_text_dim": 64, "in_text_dim2": 48, "time_dim": 16, "model_dim": 64, "ff_dim": 96,
                "num_visual_blocks": 2, "axes_dims": (8, 12, 12)},
    "text": {"vocab_size": 2000, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1,
             "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}},
    "vision": {"depth": 2, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": 64,
               "fullatt_block_indexes": [1]},
    "clip": {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 3,
             "projection_dim": 48},
    "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1, "sample_size": 64},
}  # fmt: skip


def write_checkpoint(
    folder: Path, *, tiny: bool = False, editing: bool = False, shard_bytes: int = 5 * 10**9
) -> None:
    """Write the whole folder, of a network that edits if `editing`; one that exists is replaced.

    `model_index.json` comes last: a folder that has it is complete.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(EMBEDDED / name, folder / name)
    work = []
    for component, model in models(tiny, editing=editing).items():
        target = folder / component
        is_diffusers = component in ("transformer", "vae")
        (model if is_diffusers else model.config).__getattribute__(
            "save_config" if is_diffusers else "save_pretrained"
        )(target)
        shapes = {old_name(component, key): tensor.shape for key, tensor in model.state_dict().items()}
        work += list(
            plan(target, shapes, "diffusion_pytorch_model" if is_diffusers else "model", shard_bytes)
        )
    values = (torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)
    raw = memoryview(values.view(torch.uint8).numpy())
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda shard: write_shard(*shard, raw), work))
    index = json.loads((EMBEDDED / "model_index.json").read_text())
    # diffusers builds the whole processor, which needs torchvision; loading is measured without it on both sides.
    (folder / "model_index.json").write_text(
        json.dumps({**index, "tokenizer": ["transformers", "Qwen2Tokenizer"]})
    )


def models(tiny: bool, *, editing: bool = False) -> dict[str, Any]:
    """The four models without storage."""
    less: Mapping[str, Mapping[str, Any]] = SHRINK if tiny else {key: {} for key in SHRINK}
    with torch.device("meta"):
        encoder = Qwen2_5_VLConfig(
            text_config={**TEXT, **less["text"]},
            vision_config={**VISION, **less["vision"]},
            tie_word_embeddings=False,
            **picture_tokens(),
        )
        return {
            "transformer": Kandinsky5Transformer3DModel(
                **{**NETWORK, **less["network"], "visual_cond": editing}
            ),
            "vae": AutoencoderKL(**{**VAE, **less["vae"]}),
            "text_encoder": Qwen2_5_VLForConditionalGeneration(encoder),
            "text_encoder_2": CLIPTextModel(CLIPTextConfig(**{**CLIP, **less["clip"]})),
        }


def picture_tokens() -> dict[str, int]:
    """Ids of the tokens that stand for pictures, in the embedded model's vocabulary, whose tokenizer goes along."""
    config = json.loads((EMBEDDED / "text_encoder" / "config.json").read_text())
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {name: config[name] for name in names if name in config}


def old_name(component: str, name: str) -> str:
    """As the published Qwen2.5-VL was saved: `model.layers`, `visual`."""
    if component == "text_encoder":
        return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
    return name


def plan(
    folder: Path, shapes: Mapping[str, torch.Size], stem: str, shard_bytes: int
) -> Iterator[tuple[Path, dict[str, torch.Size]]]:
    """Files and what they will hold; writes the index where there are several."""
    shards: list[dict[str, torch.Size]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        if filled + 2 * math.prod(shape) > shard_bytes and shards[-1]:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += 2 * math.prod(shape)
    if len(shards) == 1:
        yield folder / f"{stem}.safetensors", shards[0]
        return
    files = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    (folder / f"{stem}.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    )
    yield from ((folder / file, shard) for file, shard in zip(files, shards, strict=True))


def write_shard(file: Path, shapes: Mapping[str, torch.Size], values: memoryview) -> None:
    """One safetensors file, tensor by tensor, so that nothing of it is in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb", buffering=0) as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for number, shape in enumerate(shapes.values()):
            left, place = 2 * math.prod(shape), 2 * (7919 * number % BLOCK)
            while left:
                part = values[place : place + left]
                left -= opened.write(part)
                place = (place + len(part)) % len(values)


def parameters(model: nn.Module) -> int:
    """How many a model has."""
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Write a folder and say what is in it."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--tiny", action="store_true")
    given = arguments.parse_args()
    start = time.perf_counter()
    write_checkpoint(given.folder, tiny=given.tiny)
    files = list(given.folder.rglob("*.safetensors"))
    print(
        json.dumps(
            {
                "seconds": round(time.perf_counter() - start, 1),
                "gigabytes": round(sum(file.stat().st_size for file in files) / 1e9, 2),
                "files": len(files),
                "parameters": {name: parameters(model) for name, model in models(given.tiny).items()},
            }
        )
    )


if __name__ == "__main__":
    main()
