"""What a tokenizer's folder holds beside the tokenizer: the picture and video settings of Qwen's processor.

Where torchvision is missing only the tokenizer can be built, and a pipeline saved from it would lose the rest, which
AutoProcessor (and so diffusers) needs. The files are small; they are kept as they were read and written again.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from transformers import Qwen2VLImageProcessorPil

from kandinsky5.errors import CheckpointError

PROCESSOR_FILES = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
)


@dataclass(frozen=True, kw_only=True)
class ProcessorFiles:
    """A tokenizer that stands for a processor: the index entry of the processor, and its files."""

    tokenizer: Any
    entry: tuple[str, str]
    files: dict[str, bytes]

    @classmethod
    def read(cls, folder: Path, tokenizer: Any, entry: tuple[str, str]) -> Self:
        """From the folder that the tokenizer was loaded from."""
        present = [folder / name for name in PROCESSOR_FILES if (folder / name).is_file()]
        return cls(tokenizer=tokenizer, entry=entry, files={file.name: file.read_bytes() for file in present})

    def write(self, folder: Path) -> None:
        """Into the folder that the tokenizer is going to be saved in."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def picture_settings(self) -> dict[str, Any]:
        """What the files say of pictures, empty if nothing.

        Raises:
            CheckpointError: a file that is no JSON object.
        """
        for name, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
            try:
                settings = json.loads(self.files.get(name, b"{}"))
                settings = settings if part is None else settings.get(part, {})
                if settings:
                    return dict(settings)
            except (ValueError, AttributeError, TypeError) as error:
                raise CheckpointError(f"tokenizer/{name} is no JSON object: {error}") from error
        return {}


def build_picture_processor(
    tokenizer: Any, files: ProcessorFiles | None, vision_config: Any
) -> Qwen2VLImageProcessorPil:
    """Qwen's image processor, the half of it that needs no torchvision, so that pixels are the same everywhere.

    Its settings are those of the processor that the tokenizer is part of, or of the files beside the tokenizer, or the
    published ones; patches are always those of the vision tower that takes them.
    """
    own = getattr(tokenizer, "image_processor", None)
    settings = own.to_dict() if own is not None else files.picture_settings() if files is not None else {}
    settings |= {
        "patch_size": vision_config.patch_size,
        "merge_size": vision_config.spatial_merge_size,
        "temporal_patch_size": vision_config.temporal_patch_size,
    }
    return Qwen2VLImageProcessorPil.from_dict(settings)
