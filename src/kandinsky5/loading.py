"""From a name, a folder or a hub id to a pipeline on its device.

Comes in: what a person calls a model, and where and how it should run. Goes out: a pipeline, or an error that says
which. It refuses to know what a pipeline does.
"""

from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.placement import resolve_device, resolve_dtype
from kandinsky5.variants import resolve_model


def load_pipeline(model: str, *, device: str = "auto", dtype: str = "auto") -> Kandinsky5T2IPipeline:
    """The pipeline of a known checkpoint, a folder or a hub id, on its device.

    Args:
        model: a name from `kandinsky5 info`, a folder in the published layout, or a hub id.
        device: "auto", or anything `torch.device` takes.
        dtype: "auto", "float32", "bfloat16" or "float16".

    Raises:
        RequestError: a name, device or dtype that does not exist.
        CheckpointError: weights that are missing or cannot be read.
    """
    source = resolve_model(model)
    chosen_device = resolve_device(device)
    chosen_dtype = resolve_dtype(dtype, chosen_device)
    pipeline = Kandinsky5T2IPipeline.from_pretrained(source.location, dtype=chosen_dtype)
    return pipeline.to(chosen_device)
