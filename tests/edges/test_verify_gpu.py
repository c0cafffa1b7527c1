"""`kandinsky5 verify` on an accelerator, with a network deep enough for its rounding to show. Run with `-m gpu -rP`."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from kandinsky5 import flow
from kandinsky5.demo.architecture import (
    build_autoencoder,
    build_network,
    build_pooled_encoder,
    build_text_encoder,
)
from kandinsky5.demo.tokenizers import save_processor_files
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.verification import Finding, verify
from tests.pipelines.conftest import TINY, components, draw_weights

__all__ = ["components"]

pytestmark = pytest.mark.gpu

MEDIUM = replace(
    TINY, model_dim=1280, ff_dim=5120, time_dim=512, text_blocks=2, visual_blocks=50, axes_dims=(32, 48, 48)
)
"""The published depth at half its width: 1.6 billion parameters, 3.2 GB in bfloat16."""


@pytest.fixture(scope="module")
def folder(components: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint, the network stored in bfloat16 as the published ones are. Modulation is drawn too."""
    network = build_network(MEDIUM).eval()
    draw_weights(network, 3, std=0.02)
    parts = {
        "vae": build_autoencoder(TINY),
        "text_encoder": build_text_encoder(TINY, components["tokenizer"]),  # type: ignore[arg-type]
        "text_encoder_2": build_pooled_encoder(TINY, components["tokenizer_2"]),  # type: ignore[arg-type]
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=flow.DEFAULT_SHIFT),
    }
    place = tmp_path_factory.mktemp("medium")
    pipe = Kandinsky5T2IPipeline(**{**components, **parts, "transformer": network.to(torch.bfloat16)})  # type: ignore[arg-type]
    pipe.save_pretrained(place)
    save_processor_files(place / "tokenizer")
    return place


def forward_pass(folder: Path, dtype: str) -> Finding:
    found = {finding.check: finding for finding in verify(folder, device="cuda", dtype=dtype)}
    assert found["loading"].outcome == "ok", found["loading"].figure
    sys.stdout.write(f"{dtype}: {found['forward pass'].figure}\n")
    return found["forward pass"]


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_a_deep_network_passes(folder: Path, dtype: str) -> None:
    finding = forward_pass(folder, dtype)
    assert finding.outcome == "ok", finding.figure
    ours, theirs, _ = map(float, re.findall(r"\d\.?\d*e[+-]\d+", finding.figure))
    assert ours < theirs * 1.2 + 5e-3, "we round at fewer places than diffusers"


def test_a_wrong_block_in_a_deep_network_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of another scale in bfloat16: more than rounding does."""
    original = Kandinsky5Transformer3DModel._time_vector
    monkeypatch.setattr(
        Kandinsky5Transformer3DModel, "_time_vector", lambda self, t, pooled: original(self, t / 1000, pooled)
    )
    assert forward_pass(folder, "bf16").outcome == "failed"


def test_a_device_without_room_is_known_before_loading(folder: Path) -> None:
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(max(0, free - 2 * 10**9), dtype=torch.uint8, device="cuda")
    found = {finding.check: finding for finding in verify(folder, device="cuda", dtype="bf16")}
    assert found["loading"].outcome == "no room" and "GB are free" in found["loading"].figure
    assert found["picture"].outcome == "skipped" and held.numel() > 0
