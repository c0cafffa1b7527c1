"""Trains the embedded model's network and both text encoders on endless captioned scenes.

Comes in: a recipe, a finished autoencoder, two tokenizers and a working folder. Goes out: a state file whose averaged
weights `export` publishes. Scenes are drawn and encoded inside the step; nothing here knows of guidance or folders of
published models.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from kandinsky5 import flow
from kandinsky5.demo.architecture import (
    Architecture,
    build_network,
    build_pooled_encoder,
    build_text_encoder,
    cast_parameters,
)
from kandinsky5.demo.place_probe import PlaceProbe
from kandinsky5.demo.prompt_tokens import TEXT_LENGTH, PromptTokens
from kandinsky5.demo.renderer import render
from kandinsky5.demo.running import CONVOLUTIONS, Running
from kandinsky5.demo.scene_batches import CaptionedScenes, batches_from
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.train.objective import by_time, draw_times, flow_loss
from kandinsky5.train.run import resume, run
from kandinsky5.train.update import Update, UpdateSettings

STATE = Path("text_to_image/state.safetensors")
ENCODED_AT_ONCE = 256
"""Pictures drawn and encoded together, to bound the memory of full-size activations."""


@dataclass(frozen=True, kw_only=True)
class TextToImageRecipe:
    """What decides the result.

    `batch` counts rows of the loss; each scene of a batch gives `draws` of them, with times and noise of their own, so
    that drawing, encoding and reading a caption is paid once for several. `place_weight` of the loss asks the states
    after a third of the blocks for rows and columns (`place_probe`). `start` is the digest of the weights that a run
    begins from, empty for random ones.
    """

    architecture: Architecture = field(default_factory=Architecture)
    update: UpdateSettings = field(default_factory=lambda: UpdateSettings(steps=10_000, peak=8e-4))
    batch: int = 512
    draws: int = 4
    micro_batches: int = 1
    text_length: int = TEXT_LENGTH
    unconditional: float = 0.1
    shift: float = flow.DEFAULT_SHIFT
    uniform_share: float = 0.5
    place_weight: float = 0.1
    start: str = ""
    seed: int = 5


@dataclass(frozen=True, kw_only=True)
class TrainedModules:
    """The three modules that train together, and the probe that goes no further than training."""

    network: Kandinsky5Transformer3DModel
    text_encoder: Qwen2_5_VLForConditionalGeneration
    pooled_encoder: CLIPTextModel
    place_probe: PlaceProbe

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by a name that says where they belong: all but Qwen's vision tower."""
        return {
            f"{owner}.{name}": parameter
            for owner, module in (
                ("network", self.network),
                ("text_encoder.model.language_model", self.text_encoder.model.language_model),
                ("pooled_encoder", self.pooled_encoder),
                ("place_probe", self.place_probe),
            )
            for name, parameter in module.named_parameters()
        }


def build_modules(recipe: TextToImageRecipe, qwen: Qwen2Tokenizer, clip: CLIPTokenizer) -> TrainedModules:
    """Freshly initialised modules; the same recipe and versions of the libraries give the same numbers."""
    torch.manual_seed(recipe.seed)
    return TrainedModules(
        network=build_network(recipe.architecture),
        text_encoder=build_text_encoder(recipe.architecture, qwen),
        pooled_encoder=build_pooled_encoder(recipe.architecture, clip),
        place_probe=PlaceProbe(recipe.architecture.model_dim),
    )


def train_text_to_image(
    recipe: TextToImageRecipe,
    running: Running,
    work: Path,
    autoencoder: AutoencoderKL,
    qwen: Qwen2Tokenizer,
    clip: CLIPTokenizer,
    begin: Callable[[TrainedModules], None] = lambda modules: None,
) -> bool:
    """Train, or continue what `work / STATE` holds; returns whether the run is finished.

    `begin` may put other weights into fresh modules; the recipe's `start` then says which.
    """
    tokens = PromptTokens(qwen, clip, recipe.text_length)
    scenes = CaptionedScenes(
        tokens,
        seed=recipe.seed,
        batch=recipe.batch // recipe.draws,
        unconditional=recipe.unconditional,
    )
    modules = build_modules(recipe, qwen, clip)
    begin(modules)
    for module in (modules.network, modules.text_encoder, modules.pooled_encoder, modules.place_probe):
        module.to(running.device).train()
        cast_parameters(module, running.dtype)
    update = Update(modules.parameters(), recipe.update)
    settings = asdict(recipe)
    resume(update, work / STATE, settings)
    batches = batches_from(
        scenes, range(update.step, recipe.update.steps), running.workers, pin=running.device.type == "cuda"
    )
    gradients = TextToImageGradients(modules, autoencoder, tokens.crop, update, recipe, running)
    return run(
        update,
        batches,
        gradients,
        rows_per_batch=recipe.batch,
        recipe=settings,
        path=work / STATE,
        limits=running.limits,
    )


class TextToImageGradients:
    """Gradients of one batch, in micro-batches: draw, encode the picture, encode the caption, predict, compare."""

    def __init__(
        self,
        modules: TrainedModules,
        autoencoder: AutoencoderKL,
        crop: int,
        update: Update,
        recipe: TextToImageRecipe,
        running: Running,
    ):
        self._modules = modules
        self._autoencoder = autoencoder.to(running.device).requires_grad_(False).eval()
        cast_parameters(self._autoencoder, running.dtype)
        self._crop = crop
        self._update = update
        self._recipe = recipe
        self._running = running
        self._draw: Callable[[Tensor, int], Tensor] = render
        self._states: list[Tensor] = []
        block = modules.network.visual_transformer_blocks[recipe.architecture.visual_blocks // 3]
        block.register_forward_hook(lambda _block, _inputs, states: self._states.append(states))
        self._compile()

    def __call__(self, batch: Mapping[str, Tensor], step: int) -> Mapping[str, Tensor]:
        """See `kandinsky5.train.run.Gradients`."""
        recipe, running = self._recipe, self._running
        generator = running.generator(recipe.seed, step)
        rows = {name: tensor.to(running.device, non_blocking=True) for name, tensor in batch.items()}
        losses, times, astray = [], [], []
        for part in range(recipe.micro_batches):
            share = {name: tensor.chunk(recipe.micro_batches)[part] for name, tensor in rows.items()}
            latents = self.latents(share["packed"]).repeat(recipe.draws, 1, 1, 1, 1)
            noise = torch.randn(latents.shape, generator=generator, device=latents.device)
            t = draw_times(len(latents), generator, shift=recipe.shift, uniform_share=recipe.uniform_share)
            loss = flow_loss(self._predictor(share), latents, noise, t)
            astray.append(self._modules.place_probe(self._states.pop()))
            (loss.sum() / recipe.batch + recipe.place_weight * astray[-1] / recipe.micro_batches).backward()
            self._update.masters.take_gradients()
            losses.append(loss.detach())
            times.append(t)
        loss, t = torch.cat(losses), torch.cat(times)
        place = torch.stack(astray).detach().mean()
        return {"loss": loss.mean(), "loss_by_time": by_time(loss, t), "place": place}

    @torch.no_grad()
    def latents(self, packed: Tensor) -> Tensor:
        """Clean latents (B, 1, h, w, 16) float32 of packed scenes."""
        size, dtype = self._recipe.architecture.image_size, self._running.dtype
        latents = [
            self._autoencoder.encode(self._draw(rows, size).to(dtype)).latent_dist.mean
            for rows in packed.split(ENCODED_AT_ONCE)
        ]
        return torch.cat(latents).float().permute(0, 2, 3, 1).unsqueeze(1)

    def _predictor(self, share: Mapping[str, Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """The velocity as a function of (point, times), for these captions."""
        network, draws = self._modules.network, self._recipe.draws
        text, pooled = self.encode(share["ids"].long(), share["clip_ids"].long())
        text, pooled, mask = text.repeat(draws, 1, 1), pooled.repeat(draws, 1), share["mask"].repeat(draws, 1)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            height, width = x.shape[2:4]
            return network(
                hidden_states=x,
                encoder_hidden_states=text,
                timestep=flow.MODEL_TIME_SCALE * t,
                pooled_projections=pooled,
                visual_rope_pos=[torch.arange(n, device=x.device) for n in (1, height // 2, width // 2)],
                text_rope_pos=torch.arange(text.shape[1], device=x.device),
                encoder_attention_mask=mask,
                return_dict=False,
            )[0]

        return predict

    def encode(self, ids: Tensor, clip_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Text states after the crop, and the pooled vector.

        Rows are padded on the right and both encoders are causal, so padding cannot reach a real token and no mask is
        needed here; the network gets one.
        """
        language = self._modules.text_encoder.model.language_model
        text = language(input_ids=ids, use_cache=False).last_hidden_state[:, self._crop :]
        return text, self._modules.pooled_encoder(input_ids=clip_ids).pooler_output

    def _compile(self) -> None:
        """Compile from outside what the run asks for; every shape is fixed."""
        compiles = self._running.compiles
        if compiles("network"):
            self._modules.network.compile_repeated_blocks(dynamic=False)
        if compiles("text"):
            for layer in self._modules.text_encoder.model.language_model.layers:
                layer.compile(dynamic=False)
        if compiles("autoencoder"):
            self._autoencoder.encoder.compile(dynamic=False, options=CONVOLUTIONS)
        if compiles("renderer"):
            self._draw = torch.compile(render, dynamic=False)
