"""Pictures from an exported folder, to look at and to score: a small sampler, a contact sheet, withheld scenes.

Comes in: a published-layout folder. Goes out: PNG files and the claims that a scorer checks them against. It uses the
conditioning stage and `flow`, not the pipeline, so that training can be judged while the pipeline is being worked on.
"""

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from kandinsky5 import flow
from kandinsky5.conditioning import encode_prompts
from kandinsky5.demo.captions import describe
from kandinsky5.demo.world import draw_scene
from kandinsky5.latents import decode
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.prompts import TEXT_TO_IMAGE

GRID_PROMPTS = (
    "a red circle to the left of a blue square",
    "a large blue circle",
    "three small yellow triangles",
    "a green star above a red ring",
    "two black lines and a yellow circle",
    "a white square on a black ground",
    "a small white circle on a pale blue ground",
    "an orange half-circle below a purple cross",
    "four green squares",
    "five red circles",
    "a striped blue triangle",
    "an outlined red square next to a solid yellow star",
    "a black circle in the centre",
    "a red triangle in the top left corner",
    "a blue ring in the bottom right corner",
    "two yellow stars above three blue circles",
    "a large purple square to the right of a small green circle",
    "a composition of a red line, a blue circle and a yellow triangle",
    "a brown half-circle and a pink star",
    "one tiny red square and one huge black ring",
    "a green circle, a red square and a blue star on a yellow ground",
    "A yellow circle!",
    "red square left, blue circle right",
    "a photograph of a cat",
)
"""What a person might type, from one thing to four, and one sentence from outside the world."""


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """The components of an exported folder, in bfloat16 as they are published, on one device."""

    network: Kandinsky5Transformer3DModel
    text_encoder: Qwen2_5_VLForConditionalGeneration
    pooled_encoder: CLIPTextModel
    qwen: Qwen2Tokenizer
    clip: CLIPTokenizer
    autoencoder: AutoencoderKL
    device: torch.device

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], *, steps: int, guidance: float, seed: int) -> Tensor:
        """Pictures (B, 3, S, S) float32 in [-1, 1]; the noise of row i depends on `seed` and i alone."""
        latents = torch.stack([self._noise(seed, row) for row in range(len(prompts))]).to(self.device)
        # One call for the positive rows and the empty prompt's, as the two branches of guidance are one forward.
        text = encode_prompts(
            [*prompts, *[""] * len(prompts)],
            TEXT_TO_IMAGE,
            text_encoder=self.text_encoder,
            tokenizer=self.qwen,
            text_encoder_2=self.pooled_encoder,
            tokenizer_2=self.clip,
            max_tokens=512,
            device=self.device,
            dtype=torch.bfloat16,
        )
        times = flow.times(steps).tolist()
        for t, t_next in itertools.pairwise(times):
            velocity = self._velocity(latents.repeat(2, 1, 1, 1, 1), t, text)
            positive, negative = velocity.float().chunk(2)
            latents = flow.step(latents, negative + guidance * (positive - negative), t, t_next)
        return decode(latents, self.autoencoder).float().clamp(-1, 1)

    def _noise(self, seed: int, row: int) -> Tensor:
        side = self.autoencoder.config.sample_size // 8
        generator = torch.Generator().manual_seed(seed * 1_000_003 + row)
        return torch.randn(1, side, side, self.network.config.in_visual_dim, generator=generator)

    def _velocity(self, latents: Tensor, t: float, text: Any) -> Tensor:
        height, width = latents.shape[2:4]
        return self.network(
            hidden_states=latents,
            encoder_hidden_states=text.text,
            timestep=torch.full((len(latents),), flow.MODEL_TIME_SCALE * t, device=self.device),
            pooled_projections=text.pooled,
            visual_rope_pos=[torch.arange(n, device=self.device) for n in (1, height // 2, width // 2)],
            text_rope_pos=torch.arange(text.text.shape[1], device=self.device),
            encoder_attention_mask=text.mask,
            return_dict=False,
        )[0]


def load_sampler(folder: Path, device: torch.device) -> Sampler:
    """The components of an exported folder, each by its own class."""
    bf16 = torch.bfloat16
    return Sampler(
        network=Kandinsky5Transformer3DModel.from_pretrained(folder / "transformer", dtype=bf16).to(device),
        text_encoder=Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder / "text_encoder", dtype=bf16
        ).to(device),
        pooled_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder_2", dtype=bf16).to(device),
        qwen=Qwen2Tokenizer.from_pretrained(folder / "tokenizer"),
        clip=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        autoencoder=AutoencoderKL.from_pretrained(folder / "vae", dtype=bf16).to(device),
        device=device,
    )


def save_grid(sampler: Sampler, path: Path, *, steps: int, guidance: float, seed: int) -> None:
    """Draw `GRID_PROMPTS` on one sheet of six columns, and list them in a text file beside it, row by row."""
    save_sheet(sampler(GRID_PROMPTS, steps=steps, guidance=guidance, seed=seed), path, columns=6)
    path.with_suffix(".txt").write_text("\n".join(GRID_PROMPTS) + "\n", encoding="utf-8")


def save_withheld(
    sampler: Sampler, folder: Path, *, count: int, steps: int, guidance: float, seed: int, columns: int = 10
) -> None:
    """Draw `count` scenes of withheld pairs only: sheets `withheld-N.png` of `columns` squared pictures, and
    `withheld.json`, a list of {"sheet", "row", "column", "prompt", "claims", "scene"} in the order of the scenes.
    """
    rng = random.Random(f"withheld {seed}")
    scenes = [draw_scene(rng, split="withheld") for _ in range(count)]
    captions = [describe(scene, rng) for scene in scenes]
    folder.mkdir(parents=True, exist_ok=True)
    entries, a_sheet = [], columns * columns
    for first in range(0, count, a_sheet):
        rows = captions[first : first + a_sheet]
        pictures = sampler([c.text for c in rows], steps=steps, guidance=guidance, seed=seed + first)
        save_sheet(pictures, folder / f"withheld-{first // a_sheet}.png", columns=columns)
        for index, caption in enumerate(rows):
            entries.append(
                {
                    "sheet": first // a_sheet,
                    "row": index // columns,
                    "column": index % columns,
                    "prompt": caption.text,
                    "claims": asdict(caption.claims),
                    "scene": asdict(scenes[first + index]),
                }
            )
    (folder / "withheld.json").write_text(json.dumps(entries), encoding="utf-8")


def save_sheet(pictures: Tensor, path: Path, *, columns: int) -> None:
    """Pictures (B, 3, S, S) in [-1, 1] side by side, without gaps, as one PNG; cells left over are black."""
    size = pictures.shape[-1]
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * size, rows * size))
    values = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    for index, value in enumerate(values):
        sheet.paste(Image.fromarray(value), (index % columns * size, index // columns * size))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
