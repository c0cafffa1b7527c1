"""The public pipelines. `base` is what they share, one file each is a task, the rest is diffusers' vocabulary.

`prompt_input` (texts or embeddings), `callbacks` (after each step), `output` (what comes back), `published`
(`model_index.json`), `encoder_parts` (what is not loaded of the text encoder).
"""

from kandinsky5.pipelines.encoder_parts import bring_in
from kandinsky5.pipelines.output import KandinskyImagePipelineOutput
from kandinsky5.pipelines.text_to_image import Kandinsky5T2IPipeline

__all__ = ["Kandinsky5T2IPipeline", "KandinskyImagePipelineOutput", "bring_in"]
