"""The public pipelines. `base` is what they share, one file each is a task, the rest is diffusers' vocabulary.

`prompt_input` (texts or embeddings), `callbacks` (after each step), `output` (what comes back), `published`
(`model_index.json`).
"""

from kandinsky5.pipelines.output import KandinskyImagePipelineOutput
from kandinsky5.pipelines.text_to_image import Kandinsky5T2IPipeline

__all__ = ["Kandinsky5T2IPipeline", "KandinskyImagePipelineOutput"]
