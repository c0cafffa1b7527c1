"""The public pipelines, one file each. `base` is their components, loading and saving; `encoding` is what becomes of
words, `drawing` how they draw.

The rest is diffusers' vocabulary: `call` (what is asked for), `prompt_input` (texts or embeddings), `callbacks` (after
each step), `output` (what comes back), `published` (`model_index.json`); and `encoder_parts`, what is not loaded of the
text encoder.
"""

from kandinsky5.pipelines.encoder_parts import bring_in
from kandinsky5.pipelines.image_to_image import Kandinsky5I2IPipeline
from kandinsky5.pipelines.output import KandinskyImagePipelineOutput
from kandinsky5.pipelines.text_to_image import Kandinsky5T2IPipeline

__all__ = ["Kandinsky5I2IPipeline", "Kandinsky5T2IPipeline", "KandinskyImagePipelineOutput", "bring_in"]
