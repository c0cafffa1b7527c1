"""Examples become what a step needs: latents of pictures and states of texts, computed once and kept in the cache.

In: examples, the pipeline whose autoencoder and text encoders are used, a cache. Out: `Learnable`s that name entries of
the cache, and the flaws. A picture that is smaller than its size is a flaw unless enlarging was asked for. It
refuses to know the network and the order of learning.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.pictures import fit_picture
from kandinsky5.pictures.arrays import to_pixels
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from kandinsky5.train.data.cache import TensorCache, config_of, digest_of_files, fingerprint, key_of
from kandinsky5.train.data.examples import Example, Flaw, PictureBytes
from kandinsky5.train.data.sizes import Size, enlarged, nearest_size
from kandinsky5.train.settings import DataSettings

ENCODING_VERSION: Final = 1
"""Goes up when this package comes to encode the same picture or text otherwise, so that older entries are not used."""

FEW: Final = 20
"""Examples below which one bad file is not yet more than any limit."""


@dataclass(frozen=True, kw_only=True)
class Learnable:
    """An example whose parts are in the cache, by their keys.

    size: (width, height). texts: one key a caption. empty: the key of no words, beside the same source. source: None
    for a picture to be drawn from words alone.
    """

    name: str
    size: Size
    picture: str
    texts: tuple[str, ...]
    empty: str
    source: str | None
    share: float
    digest: str


class Encoder:
    """The frozen half of a pipeline, and what it has encoded so far."""

    def __init__(
        self,
        drawing: Kandinsky5T2IPipeline,
        editing: Kandinsky5I2IPipeline | None,
        settings: DataSettings,
        sizes: Sequence[Size],
        cache: TensorCache,
    ):
        self._drawing = drawing
        self._editing = editing
        self._settings = settings
        self._sizes = list(sizes)
        self._cache = cache
        self._of_pictures = [ENCODING_VERSION, fingerprint(drawing.vae), config_of(drawing.vae)]
        self._of_texts: list[Any] = [ENCODING_VERSION]
        for encoder in (drawing.text_encoder, drawing.text_encoder_2):
            self._of_texts += [fingerprint(encoder), config_of(encoder)]
        for tokenizer in (drawing.tokenizer, drawing.tokenizer_2):
            self._of_texts.append(digest_of_files(tokenizer))

    @torch.no_grad()
    def encode(self, example: Example) -> Learnable | Flaw:
        """What is to be learnt from an example, or why nothing can be.

        Raises:
            CheckpointError: the cache cannot be written.
            RequestError: an edit for a network that cannot edit.
        """
        if example.source is not None and self._editing is None:
            raise RequestError(
                f"{example.picture.name} is an edit, and the model takes no source picture: use an editing checkpoint "
                'and model.task = "editing".'
            )
        try:
            digest = example.picture.digest()
            picture, size = self._target(example.picture, digest)
            source = None if example.source is None else self._source(example.source, size)
            shown = (example.source, size) if example.source is not None else None
            return Learnable(
                name=example.picture.name,
                size=size,
                picture=picture,
                texts=tuple(self.text(text, shown) for text in example.texts),
                empty=self.text("", shown),
                source=source,
                share=example.share,
                digest=digest,
            )
        except CheckpointError:
            raise
        except (RequestError, OSError) as error:
            return Flaw(name=example.picture.name, reason=str(error))

    def text(self, text: str, shown: tuple[PictureBytes, Size] | None = None) -> str:
        """The key of a text's states, encoded if they are not there; `shown` is an edit's source and its size."""
        task = "editing" if shown is not None else "text-to-image"
        tokens = self._settings.max_tokens if shown is None else self._settings.max_edit_tokens
        key = key_of(
            kind="text",
            text=text,
            task=task,
            template=self._drawing.config.template,
            tokens=tokens,
            encoders=self._of_texts,
            source=None if shown is None else [shown[0].digest(), shown[1], self._settings.fit],
        )
        if key not in self._cache:
            if shown is not None and self._editing is not None:
                picture = fit_picture(shown[0].open(), shown[1], self._settings.fit)[0]  # type: ignore[arg-type]
                states, pooled, _ = self._editing.encode_prompt(
                    text, picture, max_sequence_length=tokens, width=shown[1][0], height=shown[1][1]
                )
            else:
                states, pooled, _ = self._drawing.encode_prompt(text, max_sequence_length=tokens)
            self._cache.put(key, {"text": states[0], "pooled": pooled[0]})
        return key

    def _target(self, picture: PictureBytes, digest: str) -> tuple[str, Size]:
        """The key of what is to be drawn, and its size. Raises RequestError for a picture that is too small."""
        settings = self._settings
        key = key_of(
            kind="picture", digest=digest, sizes=self._sizes, fit=settings.fit, upscale=settings.upscale,
            autoencoder=self._of_pictures,
        )  # fmt: skip
        entry = self._cache.get(key)
        if entry is None:
            opened = picture.open()
            size = nearest_size(*opened.size, self._sizes)
            scale = enlarged(*opened.size, size, settings.fit)  # type: ignore[arg-type]
            if scale > 1 and not settings.upscale:
                raise RequestError(
                    f"is {opened.width}x{opened.height}, smaller than {size[0]}x{size[1]} by {scale:.2f}; "
                    "data.upscale = true would enlarge it"
                )
            entry = self._posterior(opened, size)
            self._cache.put(key, entry)
        factor = self._drawing.vae_scale_factor_spatial
        height, width = entry["mean"].shape[1:3]
        return key, (width * factor, height * factor)

    def _source(self, picture: PictureBytes, size: Size) -> str:
        key = key_of(
            kind="source",
            digest=picture.digest(),
            size=size,
            fit=self._settings.fit,
            autoencoder=self._of_pictures,
        )
        if key not in self._cache:
            self._cache.put(key, self._posterior(picture.open(), size))
        return key

    def _posterior(self, picture: Image.Image, size: Size) -> dict[str, Tensor]:
        """Mean and deviation (1, h, w, C) of the latents, scaled as the network takes them; float16 on the CPU."""
        vae: Any = self._drawing.vae
        pixels = to_pixels([fit_picture(picture, size, self._settings.fit)[0]])  # type: ignore[arg-type]
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        return {
            name: (part.float() * vae.config.scaling_factor).permute(0, 2, 3, 1).half()
            for name, part in (("mean", posterior.mean), ("deviation", posterior.std))
        }


def check_flaws(found: int, flaws: Sequence[Flaw], limit: float) -> None:
    """Refuse data of which too much is bad.

    Raises:
        RequestError: more than the limit's share is flawed, or nothing is left.
    """
    listed = "; ".join(f"{flaw.name}: {flaw.reason}" for flaw in flaws[:5])
    if not found:
        raise RequestError(f"Nothing can be learnt from: {len(flaws)} files are unusable. {listed}")
    allowed = max(limit * (found + len(flaws)), 1 if limit > 0 and found + len(flaws) < FEW else 0)
    if len(flaws) > allowed:
        raise RequestError(
            f"{len(flaws)} of {found + len(flaws)} files are unusable, more than data.bad_limit = {limit:g} allows. "
            f"{listed}"
        )


def held_back(rows: Iterable[Learnable], share: float) -> tuple[list[Learnable], list[Learnable]]:
    """(to learn from, for the validation loss): by the pictures' own hashes, so that more pictures change no choice."""
    rows = list(rows)
    chosen = [int(row.digest[:8], 16) < share * 2**32 for row in rows]
    return (
        [row for row, back in zip(rows, chosen, strict=True) if not back],
        [row for row, back in zip(rows, chosen, strict=True) if back],
    )
