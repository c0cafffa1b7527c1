"""The network in bitsandbytes' four bits: packed in place, and loaded from a folder that holds it so.

diffusers loads such a folder on a GPU only, and there all of it at once; this does it anywhere, a tensor at a time. The
folder is the same, and diffusers reads it. Comes in: a network in bfloat16, or a packed folder's tensors. Goes out: the
network with `Linear4bit` layers. Refuses to know: which layers are worth it.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor, nn

from kandinsky5.checkpoint.safetensors_header import StoredTensor
from kandinsky5.errors import CheckpointError, RequestError

STATE: Final = ".quant_state.bitsandbytes__nf4"
"""End of the name of what describes a packed weight."""


def settings(kept: Collection[str]) -> Any:
    """The config that is saved with such a network; `kept` are the parts that are not packed."""
    from diffusers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(kept),
    )


def pack(network: Any, names: Collection[str], kept: Collection[str], device: torch.device) -> None:
    """Replace linear layers by packed ones, one after the other.

    Args:
        network: in bfloat16, on the host.
        names: of the layers.
        kept: parts that are not packed, for the config.
        device: where weights are packed, in turn; a GPU is a hundred times faster at it.
    """
    replace_layers(network, names, device)
    _mark(network, settings(kept))


def replace_layers(model: nn.Module, names: Collection[str], device: torch.device) -> None:
    """The layers of any model, as `pack` does it, and nothing else."""
    for name in names:
        layer: Any = model.get_submodule(name)
        weight = _parameter(layer.weight.data).to(device).to("cpu")
        model.set_submodule(name, _layer(layer, weight))


def load(network: Any, stored: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> None:
    """Give a network without storage the tensors of its packed folder.

    Raises:
        CheckpointError: a tensor that is missing, of another shape, or in another packing.
    """
    if config.get("bnb_4bit_quant_type") != "nf4" or config.get("bnb_4bit_quant_storage", "uint8") != "uint8":
        raise CheckpointError("Of bitsandbytes' formats only nf4 in bytes is read here.")
    packed = {name.removesuffix(STATE) for name in stored if name.endswith(STATE)}
    for name in packed:
        layer_name = name.removesuffix(".weight")
        try:
            layer = network.get_submodule(layer_name)
        except AttributeError:
            raise CheckpointError(
                f"{stored[name + STATE].file} packs {layer_name}, which is no layer."
            ) from None
        values = dict(_read({n: t for n, t in stored.items() if n == name or n.startswith(f"{name}.")}))
        network.set_submodule(layer_name, _layer(layer, _restored(name, values, stored)))
    rest = {
        n: t for n, t in stored.items() if not any(n == p or n.startswith(f"{p}.") for p in _near(n, packed))
    }
    for name, tensor in _read(rest):
        owner, _, leaf = name.rpartition(".")
        place = network.get_submodule(owner)._parameters
        if leaf not in place or place[leaf].shape != tensor.shape:
            raise CheckpointError(f"Tensor {name!r} in {stored[name].file} does not fit the network.")
        place[leaf] = nn.Parameter(tensor, requires_grad=False)
    missing = [name for name, parameter in network.named_parameters() if parameter.is_meta]
    if missing:
        raise CheckpointError(f"The packed network has no tensor {missing[0]!r}.")
    from diffusers import BitsAndBytesConfig

    known = {name: value for name, value in config.items() if not name.startswith("_")}
    _mark(network, BitsAndBytesConfig(**known))


def _near(name: str, packed: Collection[str]) -> Iterator[str]:
    """The packed weight that a tensor's name begins with, if there is one."""
    head, _, _ = name.partition(".weight")
    if f"{head}.weight" in packed:
        yield f"{head}.weight"


def _read(tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    files = {tensor.file for tensor in tensors.values()}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name, tensor in tensors.items():
                if tensor.file == file:
                    yield name, opened.get_tensor(tensor.name)


def _restored(name: str, values: dict[str, Tensor], stored: Mapping[str, StoredTensor]) -> Any:
    from bitsandbytes.nn import Params4bit

    try:
        data = values.pop(name)
        return Params4bit.from_prequantized(
            data=data, quantized_stats=values, requires_grad=False, device="cpu"
        )
    except (KeyError, ValueError, RuntimeError, UnicodeDecodeError) as error:
        place = stored[name + STATE].file
        raise CheckpointError(f"Weight {name!r} in {place} is not whole: {error}.") from error


def _parameter(weight: Tensor) -> Any:
    from bitsandbytes.nn import Params4bit

    return Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)


def _layer(layer: nn.Linear, weight: Any) -> nn.Module:
    """A packed layer in the place of a plain one, with its bias."""
    from bitsandbytes.nn import Linear4bit

    if type(layer) is not nn.Linear or weight.quant_state.shape != layer.weight.shape:
        raise CheckpointError(
            f"A packed weight of shape {tuple(weight.quant_state.shape)} fits no such layer."
        )
    with torch.device("meta"):
        packed = Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
        )
    packed.weight = weight
    weight.module = packed
    packed.bias = layer.bias
    return packed.train(layer.training)


def _mark(network: Any, config: Any) -> None:
    """What diffusers looks at, to save the network and to know what it is."""
    from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer

    network.register_to_config(quantization_config=config.to_dict())
    network.hf_quantizer = BnB4BitDiffusersQuantizer(config, pre_quantized=True)
    network.is_loaded_in_4bit = network.is_quantized = True
    network.quantization_method = config.quant_method


def check_arguments_of_packed(arguments: Mapping[str, Any]) -> None:
    """Refuse what a packed network cannot honour. Raises RequestError."""
    for name in ("device_map", "quantization_config", "output_loading_info", "parallel_config"):
        if arguments.get(name):
            raise RequestError(
                f"{name} cannot be used with a network that is stored in four bits; leave it out."
            )
