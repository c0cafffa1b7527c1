"""LoRA on the pipelines: diffusers' methods over `kandinsky5.lora`.

Comes in: what diffusers' `load_lora_weights` takes. Goes out: a network with the adapter in it, put there by peft, or a
`CheckpointError` before anything is changed. Choosing, weighing, fusing and taking out (`set_adapters`, `fuse_lora`,
`unfuse_lora`, `unload_lora_weights`, `delete_adapters`) are diffusers' own. It refuses to know formats of files.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import KandinskyLoraLoaderMixin
from torch import Tensor, nn

from kandinsky5.checkpoint.finite import is_finite
from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.hub import HubArguments
from kandinsky5.hub.adapters import adapter_among, fetch_adapter
from kandinsky5.lora import Lora, check_fits, peft_config, peft_tensors, read_lora, recognise
from kandinsky5.model.scaled import ScaledLinear

STORED_ONLY = (torch.float8_e4m3fn, torch.float8_e5m2)
"""Dtypes of weights that a layer is cast out of for its product."""

EXPECTED_REMARKS = ("Already found a `peft_config`", "TorchaoLoraLinear was instantiated without")
"""What peft warns of: a second adapter, and packed weights that nothing can be fused into; both are meant."""


class AdapterLoading(KandinskyLoraLoaderMixin):
    """`load_lora_weights` that recognises every format and refuses adapters of other models."""

    @classmethod
    def read_lora(cls, source: str | Path | Mapping[str, Tensor] | Lora, **kwargs: Any) -> Lora:
        """The adapter in a file, a folder, a repository of the hub, or a mapping of tensors.

        Args:
            source: a path, a hub id, tensors by the names of any format, or an adapter that was read before.
            kwargs: `weight_name`, the file in a folder or repository that holds several (of a repository no other is
                fetched); `subfolder`; and diffusers' arguments about the hub (`revision`, `token`, `cache_dir`,
                `local_files_only`, `force_download`).

        Raises:
            CheckpointError: no such file, a damaged one, or one that holds no adapter.
            RequestError: arguments that would be ignored; pickles.
        """
        if kwargs.pop("use_safetensors", None) is False:
            raise RequestError("use_safetensors=False would open pickles, which can run code; leave it out.")
        weight_name, subfolder = kwargs.pop("weight_name", None), kwargs.pop("subfolder", None) or ""
        hub = HubArguments.taken_from(kwargs)
        if kwargs:
            raise RequestError(f"{', '.join(sorted(kwargs))} would be ignored; leave it out.")
        if isinstance(source, Lora):
            return source
        if isinstance(source, Mapping):
            return recognise(source)
        place = Path(source)
        if place.is_file() or place.suffix == ".safetensors":
            if weight_name not in (None, place.name):
                raise RequestError(f"weight_name={weight_name!r:.80} beside the file {place}; leave one out.")
            return read_lora(place)
        if place.is_dir():
            return read_lora(_file_in(place / subfolder, weight_name))
        return read_lora(
            fetch_adapter(
                str(source),
                hub.access,
                wanted=weight_name,
                subfolder=subfolder,
                revision=hub.revision,
                force=hub.force,
            )
        )

    @classmethod
    def lora_state_dict(cls, pretrained_model_name_or_path_or_dict: Any, **kwargs: Any) -> Any:
        """The adapter's tensors in diffusers' names; with `return_lora_metadata=True` also peft's config.

        Arguments and errors are those of `read_lora`.
        """
        with_config = kwargs.pop("return_lora_metadata", False)
        lora = cls.read_lora(pretrained_model_name_or_path_or_dict, **kwargs)
        tensors, config = _for_diffusers(lora)
        return (tensors, config) if with_config else tensors

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Put an adapter into the network, and switch it on; others are off until `set_adapters` names them too.

        Args:
            pretrained_model_name_or_path_or_dict: as `read_lora` takes it. Names of diffusers, peft, ComfyUI, kohya and
                the authors' trainer are recognised; LoRA, DoRA and LoKr.
            adapter_name: to address it by, any text without a dot; "default_0" and so on by default.
            hotswap: replace the adapter of that name in place, as diffusers describes it.
            kwargs: those of `read_lora`, and `low_cpu_mem_usage`.

        Raises:
            CheckpointError: no such file, a damaged one, or an adapter of another model, in words.
            RequestError: a name that is taken or none, a network whose layers are in float8 or that is wrapped by
                torch.compile, or no peft.
        """
        if find_spec("peft") is None:
            raise RequestError(
                "An adapter needs peft, which the extra lora brings: pip install 'kandinsky5[lora]'."
            )
        low_cpu_mem_usage = kwargs.pop("low_cpu_mem_usage", True)
        if hasattr(self.transformer, "_orig_mod"):
            raise RequestError(
                "The network is wrapped by torch.compile, and diffusers does not look inside for adapters: load them "
                "first, or compile in place (pipe.transformer.compile())."
            )
        lora = self.read_lora(pretrained_model_name_or_path_or_dict, **kwargs)
        check_fits(lora, self.transformer)
        self._check_can_adapt(lora, adapter_name, hotswap)
        if adapter_name is None and not hotswap:  # diffusers counts adapters, and meets one that is there
            loaded = getattr(self.transformer, "peft_config", {})
            adapter_name = next(name for i in count() if (name := f"default_{i}") not in loaded)
        tensors, config = _for_diffusers(_in_the_network_s_dtypes(lora, self.transformer))
        with warnings.catch_warnings(), _words_about_factors(lora):
            for remark in EXPECTED_REMARKS:
                warnings.filterwarnings("ignore", remark)
            self.load_lora_into_transformer(
                tensors,
                transformer=self.transformer,
                adapter_name=adapter_name,
                metadata=config,
                _pipeline=self,
                low_cpu_mem_usage=low_cpu_mem_usage,
                hotswap=hotswap,
            )

    @classmethod
    def save_lora_weights(cls, *args: Any, **kwargs: Any) -> None:
        """As diffusers does; `kandinsky5.lora.write_lora` also writes ComfyUI's names.

        Raises:
            RequestError: pickles were asked for.
        """
        if kwargs.get("safe_serialization") is False:
            raise RequestError(
                "safe_serialization=False would write pickles, which are not read here; leave it out."
            )
        super().save_lora_weights(*args, **kwargs)

    def _check_can_adapt(self, lora: Lora, name: str | None, hotswap: bool) -> None:
        if name is not None and (not isinstance(name, str) or not name or "." in name):
            raise RequestError(f"adapter_name={name!r:.80} must be a text without a dot, such as 'style'.")
        if name is not None and any(hasattr(kind(), name) for kind in (nn.ModuleDict, nn.ParameterDict)):
            raise RequestError(
                f"adapter_name={name!r} is a word of torch's modules, in which peft keeps adapters by their names; "
                "choose another."
            )
        loaded = getattr(self.transformer, "peft_config", {})
        if name in loaded and not hotswap:
            raise RequestError(
                f"There is an adapter {name!r} already; choose another name, or delete_adapters."
            )
        modules = dict(self.transformer.named_modules())
        changed = [modules.get(f"{layer}.base_layer") or modules[layer] for layer in lora.layers]
        # Any of them: diffusers asks for the state of the whole network, which such layers do not give.
        if any(isinstance(module, ScaledLinear) for module in modules.values()):
            raise RequestError(
                "The network's layers are float8 (mode fp8), which take no adapter: load and fuse it first "
                "(fuse_lora(), then unload_lora_weights()), and choose the mode then."
            )
        if any(type(layer.weight.data) is Tensor and layer.weight.dtype in STORED_ONLY for layer in changed):
            raise RequestError(
                "The network's layers are stored in float8 (layerwise casting), into which peft would cast the adapter "
                "too: load it first, and call enable_layerwise_casting() then."
            )


@contextmanager
def _words_about_factors(lora: Lora) -> Iterator[None]:
    """What diffusers refuses before it changes anything: factors that no one `decompose_factor` of peft makes."""
    try:
        yield
    except ValueError as error:
        if lora.kind != "lokr" or "decompose_factor" not in str(error):
            raise
        raise CheckpointError(
            f"{lora.source} is a LoKr whose layers are factorised in ways that peft does not make together; train it "
            "with one factor for all layers, or as a LoRA."
        ) from error


def _for_diffusers(lora: Lora) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    config = peft_config(lora)
    tensors = {f"transformer.{name}": tensor for name, tensor in peft_tensors(lora).items()}
    return tensors, None if config is None else {f"transformer.{name}": v for name, v in config.items()}


def _in_the_network_s_dtypes(lora: Lora, network: Any) -> Lora:
    """Each layer's tensors in the dtype of the layer: peft would compute in the file's."""
    modules = dict(network.named_modules())
    layers = {}
    for layer, parts in lora.layers.items():
        base = modules.get(f"{layer}.base_layer") or modules[layer]
        dtype = base.weight.dtype
        layers[layer] = {
            name: tensor.to(dtype) if dtype.is_floating_point else tensor for name, tensor in parts.items()
        }
        if not all(map(is_finite, layers[layer].values())):
            raise CheckpointError(
                f"{lora.source} has values of layer {layer} that {dtype} cannot hold; load the network in "
                "torch.bfloat16 or torch.float32."
            )
    return Lora(kind=lora.kind, layers=layers, scales=lora.scales, source=lora.source, trigger=lora.trigger)


def _file_in(folder: Path, wanted: str | None) -> Path:
    """The one file of an adapter in a folder. Raises CheckpointError where it cannot be told."""
    if wanted is not None:
        return folder / wanted
    return folder / adapter_among([file.name for file in folder.glob("*")], None, str(folder))
