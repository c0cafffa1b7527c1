"""Both tasks in one numbered batch, so that one set of worker processes makes them side by side.

Comes in: how many scenes to draw and how many to edit. Goes out: a mapping from task to what that task's own batches
hold. It knows nothing of either's content.
"""

from torch import Tensor
from torch.utils.data import Dataset

from kandinsky5.demo.edit_batches import InstructedEdits
from kandinsky5.demo.prompt_tokens import PromptTokens
from kandinsky5.demo.scene_batches import CaptionedScenes
from kandinsky5.prompts import Task

JointBatch = dict[Task, dict[str, Tensor]]


class JointBatches(Dataset[JointBatch]):
    """Batch `index` has that of `CaptionedScenes` and that of `InstructedEdits`; a task without scenes is left out."""

    def __init__(
        self,
        tokens: dict[Task, PromptTokens],
        scenes: dict[Task, int],
        *,
        seed: int,
        unconditional: float,
    ):
        kinds: dict[Task, type[CaptionedScenes | InstructedEdits]] = {
            "text-to-image": CaptionedScenes,
            "editing": InstructedEdits,
        }
        self._parts = {
            task: kind(tokens[task], seed=seed, batch=scenes[task], unconditional=unconditional)
            for task, kind in kinds.items()
            if scenes[task]
        }

    def __getitem__(self, index: int) -> JointBatch:
        return {task: part[index] for task, part in self._parts.items()}
