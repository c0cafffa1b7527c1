"""A finished run becomes a folder in the published layout, and travels as a few files.

Comes in: modules or a checkpoint of them, an autoencoder and tokenizers. Goes out: `model_index.json` and a
folder a component, bfloat16 tensors in shards under 16 MiB; or an archive of such a folder in parts. It does not know
how to draw or to train.

Everything is stored in bfloat16, also the layers that `_keep_in_fp32_modules` computes in float32: they would add 5 MB.
"""

import json
import logging
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from kandinsky5.demo.architecture import MAX_SHARD, build_scheduler, cast_parameters, size_table
from kandinsky5.demo.tokenizers import PARTS, load_tokenizers
from kandinsky5.demo.trained_modules import TrainedModules, architecture_of, build_modules
from kandinsky5.demo.warm_start import take_finished_parts
from kandinsky5.errors import CheckpointError
from kandinsky5.train.checkpoints import FOLDER as CHECKPOINTS
from kandinsky5.train.checkpoints import Checkpoints

logger = logging.getLogger(__name__)

NETWORK = Path("network")
"""Where a network's run leaves everything in a working folder."""

PART_BYTES = 15 * 2**20

MODEL_INDEX: Mapping[str, Any] = {
    "_class_name": "Kandinsky5T2IPipeline",
    "_diffusers_version": "0.42.1",
    "default_steps": 20,
    "default_guidance": 3.0,
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "text_encoder_2": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "Qwen2_5_VLProcessor"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "transformer": ["diffusers", "Kandinsky5Transformer3DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
"""The published index, and two settings that depend on the checkpoint.

The class that it names is for those who name none; both pipelines load a folder whose network edits, and what the
network does is in its own config.
"""


def export(work: Path, folder: Path) -> None:
    """Write the averaged weights of the newest checkpoint below `work`, with its parts, to `folder`, as `publish`.

    Raises CheckpointError where there is none, or one that is damaged.
    """
    checkpoints = Checkpoints(work / NETWORK / CHECKPOINTS, keep=1)
    newest = checkpoints.newest()
    if newest is None:
        raise CheckpointError(f"{checkpoints.folder} holds no checkpoint of a network.")
    tensors, values = checkpoints.load(newest, {})
    recipe = values["run"]["recipe"]
    modules = build_modules(architecture_of(recipe), 0, *load_tokenizers(work / PARTS))
    kind = "average." if recipe["run"]["ema"] else "master."
    kept = {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}
    learnt = modules.parameters()
    with torch.no_grad():
        for name, value in modules.weights(recipe["optimiser"]["name"]).named(kept).items():
            learnt[name].copy_(value)
    publish(modules, work / PARTS, folder)
    logger.info("%s: after %d steps", folder, values["step"])


def publish(modules: TrainedModules, parts: Path, folder: Path) -> None:
    """Write modules, rounded to bfloat16, with the tokenizers and the autoencoder of `parts` to `folder`.

    What was there is replaced.
    """
    components = {
        "transformer": modules.network,
        "text_encoder": modules.text_encoder,
        "text_encoder_2": modules.pooled_encoder,
    }
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    take_finished_parts(parts, partial)
    for name, module in components.items():
        cast_parameters(module, torch.bfloat16, all_of_them=True)
        module.save_pretrained(partial / name, max_shard_size=MAX_SHARD)
    build_scheduler().save_pretrained(partial / "scheduler")
    (partial / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n", encoding="utf-8")
    for path in partial.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files that only their owner may read
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    autoencoder = AutoencoderKL.from_pretrained(folder / "vae")
    logger.info("%s", size_table(components | {"vae": autoencoder}))
    logger.info("%s: %.2f MB", folder, folder_bytes(folder) / 1e6)


def folder_bytes(folder: Path) -> int:
    """The size of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def pack_archive(folder: Path, destination: Path, *, part_bytes: int = PART_BYTES) -> list[Path]:
    """Write `folder` as `NAME.tar.gz.0`, `.1`, ... in `destination`, each at most `part_bytes`."""
    destination.mkdir(parents=True, exist_ok=True)
    whole = destination / f"{folder.name}.tar.gz"
    with tarfile.open(whole, "w:gz", compresslevel=6) as archive:
        archive.add(folder, arcname=folder.name)
    parts: list[Path] = []
    with whole.open("rb") as source:
        while content := source.read(part_bytes):
            parts.append(whole.with_name(f"{whole.name}.{len(parts)}"))
            parts[-1].write_bytes(content)
    whole.unlink()
    return parts


def unpack_archive(source: Path, name: str, destination: Path) -> Path:
    """Join `NAME.tar.gz.*` of `source` and unpack them as `destination / NAME`.

    Raises CheckpointError where parts are missing or damaged.
    """
    parts = sorted(source.glob(f"{name}.tar.gz.*"), key=lambda path: int(path.suffix[1:]))
    if [path.suffix for path in parts] != [f".{i}" for i in range(len(parts))] or not parts:
        raise CheckpointError(
            f"{source} holds {[path.name for path in parts]}, not all parts of {name}.tar.gz."
        )
    destination.mkdir(parents=True, exist_ok=True)
    whole = destination / f"{name}.tar.gz"
    try:
        with whole.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
        with tarfile.open(whole, "r:gz") as archive:
            archive.extractall(destination, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CheckpointError(
            f"The parts of {name}.tar.gz in {source} do not make an archive: {error}"
        ) from error
    finally:
        whole.unlink(missing_ok=True)
    return destination / name
