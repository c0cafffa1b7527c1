"""What a tokenizer's folder holds beside the tokenizer: the picture and video settings of Qwen's processor.

Where torchvision is missing only the tokenizer can be built, and a pipeline saved from it would lose the rest, which
AutoProcessor (and so diffusers) needs. The files are small; they are kept as they were read and written again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

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
