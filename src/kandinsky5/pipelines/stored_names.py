"""What stored tensors of the libraries' models are called by the library of today.

Published folders were saved by older versions; the libraries rename while they load, and so do these, for the check
that nothing is missing. Each maps any spelling to one.
"""

VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def qwen_name(name: str) -> str:
    """Qwen2.5-VL before transformers 4.52: `model.layers...`, `visual...`; since: `model.language_model...`."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.language_model.", "model.visual.")):
        return name.replace("model.", "model.language_model.", 1)
    return name


def clip_name(name: str) -> str:
    """CLIP's text model before transformers 5: everything below `text_model.`."""
    return name.removeprefix("text_model.")


def vae_name(name: str) -> str:
    """AutoencoderKL before diffusers 0.15: other names for the attention of the middle block."""
    parts = name.split(".")
    if "attentions" in parts and len(parts) > 1:
        parts[-2] = VAE_ATTENTION.get(parts[-2], parts[-2])
    return ".".join(parts)
