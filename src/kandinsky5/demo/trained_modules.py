"""What the embedded model's training teaches: the network, its text encoders, and two readings thrown away after it.

Comes in: an architecture, tokenizers and a seed. Goes out: fresh modules, their parameters by name, and masters of
these for an optimiser. It does not know how they are taught.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from kandinsky5.demo.architecture import (
    ARCHITECTURES,
    Architecture,
    build_network,
    build_pooled_encoder,
    build_text_encoder,
)
from kandinsky5.demo.place_probe import PlaceProbe
from kandinsky5.demo.thing_map import ThingMap
from kandinsky5.model.blocks import Modulation
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.train.muon import hidden_matrices
from kandinsky5.train.replicas import ALONE, Replicas
from kandinsky5.train.tuning.holders import ReplicatedWeights


@dataclass(frozen=True, kw_only=True)
class TrainedModules:
    """The three modules that train together, and the two readings."""

    network: Kandinsky5Transformer3DModel
    text_encoder: Qwen2_5_VLForConditionalGeneration
    pooled_encoder: CLIPTextModel
    place_probe: PlaceProbe
    thing_map: ThingMap

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by a name that says where they belong; the vision tower's only if it is used."""
        return {
            f"{owner}.{name}": parameter
            for owner, module in self._owners().items()
            for name, parameter in module.named_parameters()
        }

    def hidden(self) -> list[str]:
        """The names of the matrices inside blocks: attention and feed-forward, not what modulates them."""
        return [
            f"{owner}.{name}"
            for owner, module in self._owners().items()
            for name in hidden_matrices(module, but_not=(Modulation,))
        ]

    def weights(self, optimiser: str, replicas: Replicas = ALONE) -> ReplicatedWeights:
        """Masters of all that learns, as an optimiser of this name wants them."""
        return ReplicatedWeights(self.parameters(), replicas, self.hidden() if optimiser == "muon" else ())

    def all(self) -> tuple[nn.Module, ...]:
        """Each whole."""
        return self.network, self.text_encoder, self.pooled_encoder, self.place_probe, self.thing_map

    def _owners(self) -> dict[str, nn.Module]:
        owners: dict[str, nn.Module] = {
            "network": self.network,
            "text_encoder.model.language_model": self.text_encoder.model.language_model,
            "text_encoder.model.visual": self.text_encoder.model.visual,
            "pooled_encoder": self.pooled_encoder,
            "place_probe": self.place_probe,
            "thing_map": self.thing_map,
        }
        if not self.network.config.visual_cond:
            del owners["text_encoder.model.visual"]
        return owners


def architecture_of(recipe: Mapping[str, Any]) -> Architecture:
    """The sizes that a run's recipe (`TrainingSettings.recipe`) asks for."""
    (source,) = recipe["data"]["sources"]
    return replace(ARCHITECTURES[source["architecture"]], editing=recipe["model"]["task"] == "editing")


def build_modules(size: Architecture, seed: int, qwen: Qwen2Tokenizer, clip: CLIPTokenizer) -> TrainedModules:
    """Freshly initialised modules; the same seed and versions of the libraries give the same numbers."""
    torch.manual_seed(seed)
    return TrainedModules(
        network=build_network(size),
        text_encoder=build_text_encoder(size, qwen),
        pooled_encoder=build_pooled_encoder(size, clip),
        place_probe=PlaceProbe(size.model_dim),
        thing_map=ThingMap(size.model_dim),
    )
