"""Both text encoders learn to read captions before the network learns to draw them.

Comes in: a recipe, two tokenizers and a working folder. Goes out: a file with the encoders' averaged weights, for a
network's run to begin with. The published system's encoders were trained on text; these have to learn English from
nothing, and a drawing loss tells them little of "upper left" or "beneath" (docs/decisions/places.md). Here they are
asked directly. Nothing here knows of pictures.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
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
from kandinsky5.demo.prompt_tokens import PromptTokens
from kandinsky5.demo.running import Remarks, Running
from kandinsky5.demo.scene_batches import batches_from, draw_caption
from kandinsky5.demo.text_states import TextReader, TextStates
from kandinsky5.demo.world import draw_scene
from kandinsky5.errors import CheckpointError
from kandinsky5.train.lesson import PlainLesson
from kandinsky5.train.replicas import ALONE
from kandinsky5.train.settings import OptimiserSettings, Plan, RunSettings, WatchSettings
from kandinsky5.train.training import Training
from kandinsky5.train.tuning.holders import ReplicatedWeights
from kandinsky5.train.tuning.stepper import Stepper

FOLDER = Path("reading")
ENCODERS = FOLDER / "encoders.safetensors"
"""The encoders as they are at the newest checkpoint, float32, by the names that a network's run gives them."""

OPTIMISER = OptimiserSettings(rate=1e-3, weight_decay=0.01, warmup=100, decay_share=0.25)
RUN = RunSettings(
    steps=2500, batch=256, micro_batch=256, seed=5, ema=0.999, checkpointing=False, save_every=500
)


@dataclass(frozen=True, kw_only=True)
class ReadingRecipe:
    """What decides the result, and when it pauses. Rows are captions."""

    architecture: Architecture = field(default_factory=Architecture)
    optimiser: OptimiserSettings = OPTIMISER
    run: RunSettings = RUN

    def plan(self, output: Path) -> Plan:
        """As the trainer takes it."""
        recipe = {
            "architecture": asdict(self.architecture),
            "optimiser": asdict(self.optimiser),
            "run": self.run.recipe(),
        }
        return Plan(
            output=output,
            optimiser=self.optimiser,
            run=self.run,
            recipe=recipe,
            watch=WatchSettings(log_every=50),
        )


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
    torch.manual_seed(recipe.run.seed)
    size = recipe.architecture
    return Readers(
        text_encoder=build_text_encoder(size, qwen),
        pooled_encoder=build_pooled_encoder(size, clip),
        answerer=Answerer(size.text_dim, size.pooled_dim),
    )


class ReadingLesson(PlainLesson):
    """Endless captions, and questions after each."""

    def __init__(
        self, recipe: ReadingRecipe, running: Running, work: Path, qwen: Qwen2Tokenizer, clip: CLIPTokenizer
    ):
        tokens = PromptTokens(qwen, clip)
        readers = build_readers(recipe, qwen, clip)
        for module in (readers.text_encoder, readers.pooled_encoder, readers.answerer):
            module.to(running.device).train()
        for encoder in (readers.text_encoder, readers.pooled_encoder):
            cast_parameters(encoder, running.dtype)
        self.weights = ReplicatedWeights(readers.parameters(), ALONE)
        self.device = running.device
        self._running = running
        self._file = work / ENCODERS
        self._captions = CaptionQuestions(tokens, seed=recipe.run.seed, batch=recipe.run.micro_batch)
        self._answerer = readers.answerer
        self._read = TextReader(readers.text_encoder, readers.pooled_encoder, {"text-to-image": tokens})
        if running.compiles("text"):
            self._read.compile()

    def batches(self, numbers: range) -> Iterable[dict[str, Tensor]]:
        """See `CaptionQuestions`."""
        return batches_from(self._captions, numbers, self._running.workers, pin=self._running.pins)

    def loss(self, batch: Mapping[str, Tensor], number: int) -> tuple[Tensor, dict[str, Tensor]]:
        """What wrong answers cost, read from the text states and from the pooled vector; how many are right."""
        rows = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        of_text, of_whole = self._answerer(self._read({"text-to-image": rows}), rows["questions"])
        losses = answer_losses(of_text, rows["answers"])
        whole = answer_losses(of_whole, rows["answers"])
        of_both = torch.stack([*losses.values(), *whole.values()])
        numbers = {
            **losses,
            "loss": of_both.sum(),
            "of_whole": of_both[len(losses) :].sum(),
            "right": right_answers(of_text, rows["answers"]),
        }
        return of_both.sum(), numbers

    def keep(self, stepper: Stepper) -> None:
        """The encoders, for a network's run to begin with."""
        learnt = {
            name: value.cpu().contiguous()
            for name, value in stepper.learnt().items()
            if not name.startswith("answerer.")
        }
        partial = self._file.with_suffix(".partial")
        save_file(learnt, partial)
        partial.replace(self._file)


def train_reading(
    recipe: ReadingRecipe, running: Running, work: Path, qwen: Qwen2Tokenizer, clip: CLIPTokenizer
) -> bool:
    """Train, or continue, to leave `work / ENCODERS`; returns whether the run is finished."""
    lesson = ReadingLesson(recipe, running, work, qwen, clip)
    return Training(recipe.plan(work / FOLDER), lesson, Remarks()).carry_out()


@torch.no_grad()
def take_reading(file: Path, learners: Mapping[str, nn.Parameter]) -> None:
    """Put the encoders of a file into parameters of these names; others are left as they are.

    Raises CheckpointError for a file that cannot be read, or that is of another architecture.
    """
    try:
        learnt = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    for name, value in learnt.items():
        if name not in learners or learners[name].shape != value.shape:
            raise CheckpointError(f"{file} cannot begin this run: it differs in {name}.")
        learners[name].copy_(value)
