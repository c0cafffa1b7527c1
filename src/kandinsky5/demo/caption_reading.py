"""Both text encoders learn to read captions before the network learns to draw them.

Comes in: a recipe, two tokenizers and a working folder. Goes out: a state file with the encoders' averaged weights, for
a network's run to begin with. The published system's encoders were trained on text; these have to learn English from
nothing, and a drawing loss tells them little of "upper left" or "beneath" (docs/decisions/places.md). Here they are
asked directly. Nothing here knows of pictures.
"""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import CLIPTextModel, CLIPTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from kandinsky5.demo.architecture import (
    Architecture,
    build_pooled_encoder,
    build_text_encoder,
    cast_parameters,
)
from kandinsky5.demo.caption_questions import ANSWERS, KIND_OPTIONS, UNASKED, ask, question_rows
from kandinsky5.demo.prompt_tokens import TEXT_LENGTH, PromptTokens
from kandinsky5.demo.running import Running
from kandinsky5.demo.scene_batches import batches_from, draw_caption
from kandinsky5.demo.text_states import TextReader, TextStates
from kandinsky5.demo.world import draw_scene
from kandinsky5.train.run import resume, run
from kandinsky5.train.state_file import load_state
from kandinsky5.train.update import Update, UpdateSettings

STATE = Path("reading/state.safetensors")


@dataclass(frozen=True, kw_only=True)
class ReadingRecipe:
    """What decides the result. `batch` counts captions."""

    architecture: Architecture = field(default_factory=Architecture)
    update: UpdateSettings = field(default_factory=lambda: UpdateSettings(steps=2500, peak=1e-3, warmup=100))
    batch: int = 256
    text_length: int = TEXT_LENGTH
    seed: int = 5


class CaptionQuestions(Dataset[dict[str, Tensor]]):
    """Batch `index` has `ids`, `mask`, `clip_ids` as `PromptRows`, `questions` (B, Q, 4) and `answers` (B, Q, 6)."""

    def __init__(self, tokens: PromptTokens, *, seed: int, batch: int):
        self._tokens = tokens
        self._seed = seed
        self._batch = batch

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = random.Random(f"caption questions {self._seed} {index}")
        captions = [draw_caption(draw_scene(rng), rng, self._tokens) for _ in range(self._batch)]
        rows = self._tokens.rows([caption.text for caption, _ in captions], [cuts for _, cuts in captions])
        asked = [question_rows(ask(caption.claims, rng)) for caption, _ in captions]
        return {
            **rows.columns(),
            "questions": torch.tensor([questions for questions, _ in asked]),
            "answers": torch.tensor([answers for _, answers in asked]),
        }


class Answerer(nn.Module):
    """Answers questions from text states, by one look at them, and from the pooled vector; goes no further.

    One attention layer with the question as its query: what a thing is called, where it is and how many there are has
    to stand together in the encoder's states, for nothing afterwards could bring it together.
    """

    def __init__(self, text_dim: int, pooled_dim: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.kinds = nn.ModuleList(nn.Embedding(len(options), text_dim) for options in 2 * KIND_OPTIONS)
        self.to_query = nn.Sequential(nn.Linear(text_dim, text_dim), nn.GELU(), nn.Linear(text_dim, text_dim))
        self.to_key = nn.Linear(text_dim, text_dim)
        self.to_value = nn.Linear(text_dim, text_dim)
        self.from_pooled = nn.Linear(pooled_dim, text_dim)
        self.from_text = _answers(text_dim)
        self.from_whole = _answers(text_dim)

    def forward(self, states: TextStates, questions: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits (B, Q, answers) by attribute, as read from the text states and from the pooled vector.

        `questions` (B, Q, 4) are indices as `Question.row` gives them.
        """
        parts = [kind(index) for kind, index in zip(self.kinds, questions.unbind(-1), strict=True)]
        asked = torch.stack(parts).sum(0)
        text = states.text.float()
        query, key, value = (
            rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for rows in (self.to_query(asked), self.to_key(text), self.to_value(text))
        )
        seen = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=states.mask[:, None, None]
        )
        seen = seen.transpose(1, 2).flatten(2)
        whole = self.from_pooled(states.pooled.float())[:, None].expand_as(seen)
        widths = [len(options) for options in ANSWERS.values()]

        def split(logits: Tensor) -> dict[str, Tensor]:
            return dict(zip(ANSWERS, logits.split(widths, dim=-1), strict=True))

        return (
            split(self.from_text(torch.cat([seen, asked], dim=-1))),
            split(self.from_whole(torch.cat([whole, asked], dim=-1))),
        )


def _answers(width: int) -> nn.Module:
    answers = sum(len(options) for options in ANSWERS.values())
    return nn.Sequential(
        nn.LayerNorm(2 * width), nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, answers)
    )


def answer_losses(logits: Mapping[str, Tensor], answers: Tensor) -> dict[str, Tensor]:
    """Cross-entropy by attribute, over the questions that ask for it; 0 where none does."""
    losses = {}
    for index, (name, given) in enumerate(logits.items()):
        true = answers[..., index].flatten()
        total = functional.cross_entropy(given.flatten(0, 1), true, ignore_index=UNASKED, reduction="sum")
        losses[name] = total / (true != UNASKED).sum().clamp_min(1)
    return losses


@torch.no_grad()
def right_answers(logits: Mapping[str, Tensor], answers: Tensor) -> Tensor:
    """By attribute, (2, 6): how many answers are right, and how many were asked for, of those that say something.

    That a caption does not say a size is right most of the time without reading it.
    """
    found = torch.stack([given.argmax(dim=-1) for given in logits.values()], dim=-1)
    silent = torch.tensor([options[0] is None for options in ANSWERS.values()], device=answers.device)
    counted = (answers != UNASKED) & ~((answers == 0) & silent)
    return torch.stack([((found == answers) & counted).sum((0, 1)), counted.sum((0, 1))]).float()


@dataclass(frozen=True, kw_only=True)
class Readers:
    """The encoders that learn to read, and who asks them."""

    text_encoder: Qwen2_5_VLForConditionalGeneration
    pooled_encoder: CLIPTextModel
    answerer: Answerer

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that learn; those of the encoders by the names that a network's run gives them."""
        owners = {
            "text_encoder.model.language_model": self.text_encoder.model.language_model,
            "pooled_encoder": self.pooled_encoder,
            "answerer": self.answerer,
        }
        return {
            f"{owner}.{name}": parameter
            for owner, module in owners.items()
            for name, parameter in module.named_parameters()
        }


def build_readers(recipe: ReadingRecipe, qwen: Qwen2Tokenizer, clip: CLIPTokenizer) -> Readers:
    """Freshly initialised."""
    torch.manual_seed(recipe.seed)
    size = recipe.architecture
    return Readers(
        text_encoder=build_text_encoder(size, qwen),
        pooled_encoder=build_pooled_encoder(size, clip),
        answerer=Answerer(size.text_dim, size.pooled_dim),
    )


def train_reading(
    recipe: ReadingRecipe, running: Running, work: Path, qwen: Qwen2Tokenizer, clip: CLIPTokenizer
) -> bool:
    """Train, or continue what `work / STATE` holds; returns whether the run is finished."""
    tokens = PromptTokens(qwen, clip, recipe.text_length)
    captions = CaptionQuestions(tokens, seed=recipe.seed, batch=recipe.batch)
    readers = build_readers(recipe, qwen, clip)
    for module in (readers.text_encoder, readers.pooled_encoder, readers.answerer):
        module.to(running.device).train()
    for encoder in (readers.text_encoder, readers.pooled_encoder):
        cast_parameters(encoder, running.dtype)
    update = Update(readers.parameters(), recipe.update)
    settings = asdict(recipe)
    resume(update, work / STATE, settings)
    read = TextReader(readers.text_encoder, readers.pooled_encoder, {"text-to-image": tokens})
    if running.compiles("text"):
        read.compile()

    def gradients(batch: Mapping[str, Tensor], step: int) -> dict[str, Tensor]:
        rows = {name: tensor.to(running.device, non_blocking=True) for name, tensor in batch.items()}
        of_text, of_whole = readers.answerer(read({"text-to-image": rows}), rows["questions"])
        losses = answer_losses(of_text, rows["answers"])
        whole = answer_losses(of_whole, rows["answers"])
        of_both = torch.stack([*losses.values(), *whole.values()])
        of_both.sum().backward()
        update.masters.take_gradients()
        return losses | {
            "of_whole": of_both[len(losses) :].sum(),
            "right": right_answers(of_text, rows["answers"]),
        }

    return run(
        update,
        batches_from(
            captions,
            range(update.step, recipe.update.steps),
            running.workers,
            pin=running.device.type == "cuda",
        ),
        gradients,
        rows_per_batch=recipe.batch,
        recipe=settings,
        path=work / STATE,
        limits=running.limits,
    )


@torch.no_grad()
def take_reading(
    recipe: ReadingRecipe,
    work: Path,
    qwen: Qwen2Tokenizer,
    clip: CLIPTokenizer,
    learners: Mapping[str, nn.Parameter],
) -> None:
    """Put the averaged weights of a finished run into parameters of these names; others are left as they are.

    Raises CheckpointError where `work` holds no such run, or one of another architecture.
    """
    readers = build_readers(recipe, qwen, clip)
    update = Update(readers.parameters(), recipe.update)
    update.restore(*load_state(work / STATE))
    for name, average in update.average().items():
        if not name.startswith("answerer."):
            learners[name].copy_(average)
