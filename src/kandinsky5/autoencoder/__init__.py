"""FLUX's autoencoder, diffusers' class, made fast where fused kernels run.

Comes in: a loaded `AutoencoderKL`. Goes out: the same object with the same weights, whose encoder and decoder compute
with channels last. Refuses to know: how latents are scaled, pipelines, who chose it (`placement`).
"""

from kandinsky5.autoencoder.preparing import prepare_for_speed, undo

__all__ = ["prepare_for_speed", "undo"]
