"""Trains the embedded model's network, both text encoders and the vision tower, on drawing and editing at once.

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
from kandinsky5.demo.edit_batches import edit_tokens
from kandinsky5.demo.joint_batches import JointBatch, JointBatches
from kandinsky5.demo.place_probe import PlaceProbe
from kandinsky5.demo.prompt_tokens import TEXT_LENGTH, PromptTokens
from kandinsky5.demo.renderer import render
from kandinsky5.demo.running import CONVOLUTIONS, Running
from kandinsky5.demo.scene_batches import batches_from
from kandinsky5.demo.text_states import Rows, TextReader, TextStates
from kandinsky5.demo.thing_map import ThingMap
from kandinsky5.errors import RequestError
from kandinsky5.model.blocks import Modulation
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.prompts import Task
from kandinsky5.train.muon import hidden_matrices
from kandinsky5.train.objective import by_time, draw_times, flow_loss
from kandinsky5.train.run import resume, run
from kandinsky5.train.update import Update, UpdateSettings

STATE = Path("network/state.safetensors")
ENCODED_AT_ONCE = 256
"""Pictures drawn and encoded together, to bound the memory of full-size activations."""


@dataclass(frozen=True, kw_only=True)
class NetworkRecipe:
    """What decides the result.

    `batch` counts rows of the loss; each scene of a batch gives `draws` of them, with times and noise of their own, so
    that drawing, encoding and reading a caption is paid once for several. A share `edited` of the scenes is changed as
    an instruction says, the others are drawn from captions. `place_weight` of the loss asks the states after a third
    of the blocks for rows and columns (`place_probe`), `map_weight` those after two thirds for what stands where
    (`thing_map`). `replicas` processes take an equal share of each batch. `start` is the digest of the weights that a
    run begins from, empty for random ones.
    """

    architecture: Architecture = field(default_factory=Architecture)
    update: UpdateSettings = field(default_factory=lambda: UpdateSettings(steps=10_000, peak=8e-4))
    batch: int = 512
    draws: int = 4
    edited: float = 0.5
    micro_batches: int = 1
    text_length: int = TEXT_LENGTH
    unconditional: float = 0.1
    shift: float = flow.DEFAULT_SHIFT
    uniform_share: float = 0.5
    place_weight: float = 0.1
    map_weight: float = 0.1
    replicas: int = 1
    start: str = ""
    seed: int = 5

    @property
    def scenes(self) -> dict[Task, int]:
        """A replica's scenes of a batch by task. Raises RequestError where rows do not divide into equal parts."""
        count = self.batch // self.draws // self.replicas
        edits = round(count * self.edited) if self.architecture.editing else 0
        scenes: dict[Task, int] = {"text-to-image": count - edits, "editing": edits}
        if count * self.draws * self.replicas != self.batch or any(
            number % self.micro_batches for number in scenes.values()
        ):
            raise RequestError(
                f"A batch of {self.batch} is no whole number of scenes of {self.draws} rows, in {self.replicas} "
                f"replicas and {self.micro_batches} equal parts of each task ({scenes})."
            )
        if self.architecture.editing and not (scenes["editing"] and scenes["text-to-image"]):
            raise RequestError(f"A batch of {self.batch} rows leaves a task without scenes: {scenes}.")
        return scenes


@dataclass(frozen=True, kw_only=True)
class TrainedModules:
    """The three modules that train together, and the two readings that go no further than training."""

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


def build_modules(recipe: NetworkRecipe, qwen: Qwen2Tokenizer, clip: CLIPTokenizer) -> TrainedModules:
    """Freshly initialised modules; the same recipe and versions of the libraries give the same numbers."""
    torch.manual_seed(recipe.seed)
    return TrainedModules(
        network=build_network(recipe.architecture),
        text_encoder=build_text_encoder(recipe.architecture, qwen),
        pooled_encoder=build_pooled_encoder(recipe.architecture, clip),
        place_probe=PlaceProbe(recipe.architecture.model_dim),
        thing_map=ThingMap(recipe.architecture.model_dim),
    )


def task_tokens(recipe: NetworkRecipe, qwen: Qwen2Tokenizer, clip: CLIPTokenizer) -> dict[Task, PromptTokens]:
    """What makes token rows of each task's prompts, of one length after the crop: the network sees one shape."""
    return {
        "text-to-image": PromptTokens(qwen, clip, recipe.text_length),
        "editing": edit_tokens(qwen, clip, recipe.architecture.image_size, recipe.text_length),
    }


def train_network(
    recipe: NetworkRecipe,
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
    tokens = task_tokens(recipe, qwen, clip)
    scenes = JointBatches(tokens, recipe.scenes, seed=recipe.seed, unconditional=recipe.unconditional)
    modules = build_modules(recipe, qwen, clip)
    begin(modules)
    for module in (
        modules.network,
        modules.text_encoder,
        modules.pooled_encoder,
        modules.place_probe,
        modules.thing_map,
    ):
        module.to(running.device).train()
        cast_parameters(module, running.dtype)
    update = Update(modules.parameters(), recipe.update, running.replicas, modules.hidden())
    settings = asdict(recipe)
    resume(update, work / STATE, settings)
    numbers = running.replicas.numbers(update.step, recipe.update.steps)
    batches = batches_from(scenes, numbers, running.workers, pin=running.device.type == "cuda")
    gradients = NetworkGradients(modules, autoencoder, tokens, update, recipe, running)
    return run(
        update,
        batches,
        gradients,
        rows_per_batch=recipe.batch,
        recipe=settings,
        path=work / STATE,
        limits=running.limits,
    )


def drawn_scenes(share: Mapping[Task, Rows]) -> Tensor:
    """The packed scenes that a micro-batch is to become: those of the captions, then the targets of the edits."""
    captioned = share["text-to-image"]["packed"]
    return torch.cat([captioned, share["editing"]["target"]]) if "editing" in share else captioned


class NetworkGradients:
    """Gradients of one batch, in micro-batches: draw, encode pictures, read texts, predict, compare."""

    def __init__(
        self,
        modules: TrainedModules,
        autoencoder: AutoencoderKL,
        tokens: Mapping[Task, PromptTokens],
        update: Update,
        recipe: NetworkRecipe,
        running: Running,
    ):
        self._modules = modules
        self._autoencoder = autoencoder.to(running.device).requires_grad_(False).eval()
        cast_parameters(self._autoencoder, running.dtype)
        self.read = TextReader(modules.text_encoder, modules.pooled_encoder, tokens)
        self._update = update
        self._recipe = recipe
        self._running = running
        self._draw: Callable[[Tensor, int], Tensor] = render
        self._states: list[Tensor] = []
        self._listen()
        self._compile()

    def __call__(self, batch: JointBatch, step: int) -> Mapping[str, Tensor]:
        """See `kandinsky5.train.run.Gradients`. Losses are logged by task, and those by task by time.

        `map` is the loss of `thing_map` over drawn rows: in its last interval of time only the caption can have told.
        """
        recipe, running = self._recipe, self._running
        generator = running.generator(recipe.seed, step)
        losses: list[Tensor] = []
        times: list[Tensor] = []
        astray: list[Tensor] = []
        unread: list[Tensor] = []
        for part in range(recipe.micro_batches):
            share = {task: self._share(rows, part) for task, rows in batch.items()}
            clean, source, pictures = self.latents(share, generator)
            clean, source = (rows.repeat(recipe.draws, 1, 1, 1, 1) for rows in (clean, source))
            noise = torch.randn(clean.shape, generator=generator, device=clean.device)
            t = draw_times(len(clean), generator, shift=recipe.shift, uniform_share=recipe.uniform_share)
            read = self.read(share, pictures).repeated(recipe.draws)
            self._states.clear()
            loss = flow_loss(self._predictor(read, source), clean, noise, t)
            early, late = self._states
            astray.append(self._modules.place_probe(early))
            map_loss = self._modules.thing_map(late, drawn_scenes(share))
            share_of_all = len(loss) / recipe.batch
            asked = recipe.place_weight * astray[-1] + recipe.map_weight * map_loss.mean()
            (loss.sum() / recipe.batch + share_of_all * asked).backward()
            self._update.masters.take_gradients()
            for kept, of_rows in ((losses, loss), (unread, map_loss), (times, t)):
                kept.append(of_rows.detach().unflatten(0, (recipe.draws, -1)))
        maps = self._by_task(unread, times)
        return {
            "loss": torch.cat(losses, 1).mean(),
            "place": torch.stack(astray).detach().mean(),
            "map": maps["drawing"],
            "map_by_time": maps["drawing_by_time"],
            **self._by_task(losses, times),
        }

    def _listen(self) -> None:
        """Keep the states after a third and after two thirds of the blocks, for what is asked of them."""
        blocks = self._modules.network.visual_transformer_blocks

        def keep(_block: nn.Module, _inputs: object, states: Tensor) -> None:
            self._states.append(states)

        for block in (blocks[len(blocks) // 3], blocks[len(blocks) * 2 // 3]):
            block.register_forward_hook(keep)

    def _share(self, rows: Rows, part: int) -> dict[str, Tensor]:
        """One micro-batch of a task's rows, on the device."""
        return {
            name: tensor.chunk(self._recipe.micro_batches)[part].to(self._running.device, non_blocking=True)
            for name, tensor in rows.items()
        }

    def _by_task(self, losses: list[Tensor], times: list[Tensor]) -> dict[str, Tensor]:
        """Losses (draws, scenes) of micro-batches, by task and by time."""
        drawn = self._recipe.scenes["text-to-image"] // self._recipe.micro_batches
        of_task = {"drawing": slice(0, drawn), "editing": slice(drawn, None)}
        numbers: dict[str, Tensor] = {}
        for task, rows in of_task.items():
            loss = torch.cat([part[:, rows].flatten() for part in losses])
            if len(loss):
                t = torch.cat([part[:, rows].flatten() for part in times])
                numbers |= {task: loss.mean(), f"{task}_by_time": by_time(loss, t)}
        return numbers

    @torch.no_grad()
    def latents(
        self, share: Mapping[Task, Rows], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a micro-batch is to become, and what of it the network and the vision tower are shown.

        A picture is to become the mean of its posterior; of a source the network sees a sample, as the pipeline gives
        it one: its deviation is small (0.03 of a latent's in the weights of the package), but not nothing.

        Returns:
            Clean latents (B, 1, h, w, 16), source latents and mask (B, 1, h, w, 17) or without channels where the
            network takes none, float32; and the sources' pictures (edits, 3, S, S).
        """
        packed = drawn_scenes(share)
        if "editing" not in share:
            mean = self.encode_scenes(packed)[1]
            return mean, mean[..., :0], None
        pictures, mean, deviation = self.encode_scenes(torch.cat([packed, share["editing"]["source"]]))
        drawn, rows = len(share["text-to-image"]["packed"]), len(packed)
        clean = mean[:rows]
        source = clean.new_zeros(*clean.shape[:-1], clean.shape[-1] + 1)
        noise = torch.randn(mean[rows:].shape, generator=generator, device=mean.device)
        source[drawn:, ..., :-1] = mean[rows:] + deviation[rows:] * noise
        source[drawn:, ..., -1] = 1
        return clean, source, pictures[rows:]

    @torch.no_grad()
    def encode_scenes(self, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (B, 3, S, S) in [-1, 1] of packed scenes; mean and deviation of their latents (B, 1, h, w, 16)."""
        size, dtype = self._recipe.architecture.image_size, self._running.dtype
        pictures = [self._draw(rows, size) for rows in packed.split(ENCODED_AT_ONCE)]
        posteriors = [self._autoencoder.encode(drawn.to(dtype)).latent_dist for drawn in pictures]
        mean, deviation = (
            torch.cat([getattr(one, part) for one in posteriors]).float().permute(0, 2, 3, 1).unsqueeze(1)
            for part in ("mean", "std")
        )
        return torch.cat(pictures), mean, deviation

    def _predictor(self, read: TextStates, source: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The velocity as a function of (point, times), for these texts and sources."""
        network = self._modules.network

        def predict(x: Tensor, t: Tensor) -> Tensor:
            height, width = x.shape[2:4]
            return network(
                hidden_states=torch.cat([x, source], dim=-1),
                encoder_hidden_states=read.text,
                timestep=flow.MODEL_TIME_SCALE * t,
                pooled_projections=read.pooled,
                visual_rope_pos=[torch.arange(n, device=x.device) for n in (1, height // 2, width // 2)],
                text_rope_pos=torch.arange(read.text.shape[1], device=x.device),
                encoder_attention_mask=read.mask,
                return_dict=False,
            )[0]

        return predict

    def _compile(self) -> None:
        """Compile from outside what the run asks for; every shape is fixed."""
        compiles = self._running.compiles
        if compiles("network"):
            self._modules.network.compile_repeated_blocks(dynamic=False)
        if compiles("text"):
            self.read.compile()
        if compiles("autoencoder"):
            self._autoencoder.encoder.compile(dynamic=False, options=CONVOLUTIONS)
        if compiles("renderer"):
            self._draw = torch.compile(render, dynamic=False)
