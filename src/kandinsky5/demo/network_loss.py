"""What the embedded model's network is asked of a micro-batch: draw, encode pictures, read texts, predict, compare.

Comes in: modules, a finished autoencoder, and packed scenes with token rows. Goes out: a scalar loss, and numbers by
task and by time for the log. Scenes are drawn and encoded here; nothing here knows of optimisers, guidance or files.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTokenizer, Qwen2Tokenizer

from kandinsky5.demo.architecture import Architecture, cast_parameters
from kandinsky5.demo.edit_batches import edit_tokens
from kandinsky5.demo.joint_batches import JointBatch
from kandinsky5.demo.prompt_tokens import PromptTokens
from kandinsky5.demo.renderer import render
from kandinsky5.demo.running import CONVOLUTIONS, Running
from kandinsky5.demo.text_states import Rows, TextReader
from kandinsky5.demo.trained_modules import TrainedModules, architecture_of
from kandinsky5.errors import RequestError
from kandinsky5.prompts import Task
from kandinsky5.train.objective import by_time, draw_times
from kandinsky5.train.rectified_flow import Points, losses
from kandinsky5.train.settings import TIME_DENSITIES, TrainingSettings

ENCODED_AT_ONCE: Final = 256
"""Pictures drawn and encoded together, to bound the memory of full-size activations."""


def scenes_of(settings: TrainingSettings) -> dict[Task, int]:
    """Scenes of a micro-batch by task: `draws` rows each, `editing_share` of them edits where the model edits.

    Raises RequestError where rows do not divide into scenes, or leave a task without any.
    """
    drawn, rows = settings.data.drawn, settings.run.micro_batch
    assert drawn is not None
    count, left = divmod(rows, drawn.draws)
    if left:
        raise RequestError(
            f"run.micro_batch = {rows} is no whole number of scenes of data.sources.draws = {drawn.draws} rows."
        )
    editing = settings.model.task == "editing"
    edits = round(count * settings.objective.editing_share) if editing else 0
    scenes: dict[Task, int] = {"text-to-image": count - edits, "editing": edits}
    if editing and not all(scenes.values()):
        raise RequestError(f"run.micro_batch = {rows} leaves a task without scenes: {scenes}.")
    return scenes


def task_tokens(size: Architecture, qwen: Qwen2Tokenizer, clip: CLIPTokenizer) -> dict[Task, PromptTokens]:
    """What makes token rows of each task's prompts, of one length after the crop: the network sees one shape."""
    return {
        "text-to-image": PromptTokens(qwen, clip),
        "editing": edit_tokens(qwen, clip, size.image_size),
    }


def drawn_scenes(share: Mapping[Task, Rows]) -> Tensor:
    """The packed scenes that a micro-batch is to become: those of the captions, then the targets of the edits."""
    captioned = share["text-to-image"]["packed"]
    return torch.cat([captioned, share["editing"]["target"]]) if "editing" in share else captioned


class NetworkLoss:
    """The loss of a micro-batch, over all modules that learn.

    Each scene gives `draws` rows, so that drawing, encoding and reading a caption is paid once for several.
    `place_weight` of the loss asks the states after a third of the blocks for rows and columns (`place_probe`),
    `map_weight` those after two thirds for what stands where (`thing_map`).
    """

    def __init__(
        self,
        modules: TrainedModules,
        autoencoder: AutoencoderKL,
        tokens: Mapping[Task, PromptTokens],
        settings: TrainingSettings,
        running: Running,
    ):
        assert settings.data.drawn is not None
        self._modules = modules
        self._autoencoder = autoencoder.to(running.device).requires_grad_(False).eval()
        cast_parameters(self._autoencoder, running.dtype)
        self.read = TextReader(modules.text_encoder, modules.pooled_encoder, tokens)
        self._source = settings.data.drawn
        self._objective = settings.objective
        self._seed = settings.run.seed
        self._size = architecture_of(settings.recipe()).image_size
        self._running = running
        self._draw: Callable[[Tensor, int], Tensor] = render
        self._states: list[Tensor] = []
        self._listen()
        self._compile()

    def __call__(self, batch: JointBatch, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Micro-batch `number`'s loss, and numbers for the log: losses by task, and those by task by time.

        `map` is the loss of `thing_map` over drawn rows: in its last interval of time only the caption can have told.
        """
        source, draws = self._source, self._source.draws
        generator = self._running.generator(self._seed, number)
        rows = {task: self._on_device(of_task) for task, of_task in batch.items()}
        clean, shown, pictures = self.latents(rows, generator)
        clean, shown = (latents.repeat(draws, 1, 1, 1, 1) for latents in (clean, shown))
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        uniform_share = TIME_DENSITIES[self._objective.times]
        t = draw_times(len(clean), generator, shift=self._objective.shift, uniform_share=uniform_share)
        read = self.read(rows, pictures).repeated(draws)
        self._states.clear()
        points = Points(
            clean=clean, noise=noise, t=t, source=shown, text=read.text, mask=read.mask, pooled=read.pooled
        )
        of_rows = losses(self._modules.network, points)
        early, late = self._states
        place = self._modules.place_probe(early)
        unread = self._modules.thing_map(late, drawn_scenes(rows))
        asked = source.place_weight * place + source.map_weight * unread.mean()
        drawn = len(rows["text-to-image"]["ids"])
        maps = by_task(unread.detach(), t, draws, drawn)
        numbers = {
            "loss": of_rows.detach().mean(),
            "place": place.detach(),
            "map": maps["drawing"],
            "map_by_time": maps["drawing_by_time"],
            **by_task(of_rows.detach(), t, draws, drawn),
        }
        return of_rows.sum() / len(of_rows) + asked, numbers

    def _listen(self) -> None:
        """Keep the states after a third and after two thirds of the blocks, for what is asked of them."""
        blocks = self._modules.network.visual_transformer_blocks

        def keep(_block: nn.Module, _inputs: object, states: Tensor) -> None:
            self._states.append(states)

        for block in (blocks[len(blocks) // 3], blocks[len(blocks) * 2 // 3]):
            block.register_forward_hook(keep)

    def _on_device(self, rows: Rows) -> dict[str, Tensor]:
        return {name: tensor.to(self._running.device, non_blocking=True) for name, tensor in rows.items()}

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
        size, dtype = self._size, self._running.dtype
        pictures = [self._draw(rows, size) for rows in packed.split(ENCODED_AT_ONCE)]
        posteriors = [self._autoencoder.encode(drawn.to(dtype)).latent_dist for drawn in pictures]
        mean, deviation = (
            torch.cat([getattr(one, part) for one in posteriors]).float().permute(0, 2, 3, 1).unsqueeze(1)
            for part in ("mean", "std")
        )
        return torch.cat(pictures), mean, deviation

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


def by_task(values: Tensor, t: Tensor, draws: int, drawn: int) -> dict[str, Tensor]:
    """Values (draws * scenes,) of rows at times `t`: the mean of each task, of which `drawn` scenes come first.

    "TASK_by_time" has its sums and counts by interval of time, (2, bins).
    """
    numbers: dict[str, Tensor] = {}
    for task, scenes in {"drawing": slice(0, drawn), "editing": slice(drawn, None)}.items():
        of_task, times = (rows.unflatten(0, (draws, -1))[:, scenes].flatten() for rows in (values, t))
        if len(of_task):
            numbers |= {task: of_task.mean(), f"{task}_by_time": by_time(of_task, times)}
    return numbers
