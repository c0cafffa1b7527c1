"""How the network is loaded: from a folder or a hub id, or from one file, checked before and after.

Comes in: what diffusers' `from_pretrained` and `from_single_file` take. Goes out: the network with every tensor that
its config implies, finite, in the dtype it is stored in unless another is asked for. It refuses to know what the
network computes.
"""

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError
from torch import nn

from kandinsky5.checkpoint.arrival import check_arrived
from kandinsky5.checkpoint.document import read_object, reason
from kandinsky5.checkpoint.finite import check_finite
from kandinsky5.checkpoint.packing import PLAIN, stored_format
from kandinsky5.checkpoint.quantizer import check_quantizer
from kandinsky5.checkpoint.safetensors_header import StoredTensor, read_header
from kandinsky5.checkpoint.turn import TURN
from kandinsky5.checkpoint.weights import (
    TORCH_DTYPES,
    common_dtype,
    compare,
    compare_packed,
    read_weights,
    unpacked_dtype,
    weight_names,
)
from kandinsky5.errors import CapacityError, CheckpointError, RequestError
from kandinsky5.hub import HubArguments, need
from kandinsky5.model import four_bits
from kandinsky5.model.arguments import check_arguments
from kandinsky5.model.layout import check_config, implied_config
from kandinsky5.model.packed import unpack_into

logger = logging.getLogger(__name__)

_stored_dtypes: ContextVar[Mapping[str, torch.dtype]] = ContextVar(
    "stored dtypes of the load that is running"
)


class CheckedLoading(ModelMixin, ConfigMixin):
    """`from_pretrained` and `from_single_file` that prove what they load."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """The network of a folder or a hub id.

        Takes diffusers' arguments: `subfolder`, `dtype` (or `torch_dtype`), `device_map`, `quantization_config`,
        `variant`, `revision`, `token`, `cache_dir`, `local_files_only` and the rest. Without a dtype every tensor keeps
        the one it is stored in (unless the blocks themselves are stored in several, which cannot run together); with
        one, time embedding and modulation are float32. Before anything is loaded, files, names and shapes are held to
        `config.json`; afterwards values must be finite (what is on disk is not looked at).

        Raises:
            CheckpointError (an OSError): files that are missing, damaged, pickled, or not what the config says; a hub
                that refuses or is out of reach.
            CapacityError: the disk has no room for what is fetched.
            RequestError (a ValueError): a dtype that is none, `use_safetensors=False`, a revision of a folder, and
                any other argument that would be ignored.
        """
        check_arguments(kwargs, cls._get_init_keys(cls))
        kwargs["dtype"] = requested_dtype(kwargs)
        refuse_pickles(kwargs)
        subfolder = kwargs.get("subfolder") or ""
        wanted = need.network(subfolder, variant=kwargs.get("variant"))
        root = HubArguments.taken_from(kwargs).folder(str(pretrained_model_name_or_path), wanted)
        folder = root / subfolder
        stored = cls._check_folder(folder, kwargs)
        keep: dict[str, torch.dtype] = {}
        if kwargs["dtype"] is None:
            kwargs["dtype"] = cls._widest_if_mixed(stored, folder)
        if kwargs["dtype"] is None:
            keep = {name: TORCH_DTYPES[t.dtype] for name, t in stored.items() if t.dtype in TORCH_DTYPES}
        packing = read_object(folder / cls.config_name).get("quantization_config") or {}
        if packing.get("quant_method") == "bitsandbytes":
            return cls._from_four_bits(folder, stored, packing, kwargs)
        is_packed = bool(packing) and kwargs.get("quantization_config") is None
        with TURN, _keeping(keep), checkpoint_errors(folder, is_packed=is_packed):
            loaded = super().from_pretrained(str(root), **kwargs)
        network = loaded[0] if isinstance(loaded, tuple) else loaded  # output_loading_info=True gives a pair
        network.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        check_finite(network, folder)
        if is_packed and kwargs["dtype"] is not None:
            unpack_into(network, kwargs["dtype"])
        if getattr(network, "hf_quantizer", None) is None:
            check_arrived(network, stored, folder)
        return loaded

    @classmethod
    def _from_four_bits(
        cls, folder: Path, stored: Mapping[str, StoredTensor], packing: Any, kwargs: dict[str, Any]
    ) -> Self:
        """The network of a folder that bitsandbytes packed. What is not packed keeps the dtype it is stored in."""
        four_bits.check_arguments_of_packed(kwargs)
        config = read_object(folder / cls.config_name)
        config.pop("quantization_config")
        with TURN, torch.device("meta"):
            network = cls.from_config(config)
        with checkpoint_errors(folder, is_packed=True):
            four_bits.load(network, stored, packing)
        network.register_to_config(_name_or_path=str(folder))
        check_finite(network, folder)
        return network.eval()

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | Path, **kwargs: Any) -> Self:
        """The network of one safetensors file, such as the authors' `kandinsky5lite_t2i.safetensors`.

        The config is inferred from the shapes; fields passed by name (`axes_dims=...`) replace what was inferred.
        Other arguments are those of `from_pretrained`.

        Raises:
            CheckpointError: a file that is damaged or holds something else.
        """
        file = single_file(pretrained_model_link_or_path)
        config = {**implied_config(read_header(file), file), "_class_name": cls.__name__}
        # A folder around the file, so that one way of loading serves both.
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / weight_names("diffusers")[0]).symlink_to(file)
            (Path(folder) / cls.config_name).write_text(json.dumps(config), encoding="utf-8")
            try:
                network = cls.from_pretrained(folder, **kwargs)
            except CheckpointError as error:
                inside = str(Path(folder) / weight_names("diffusers")[0])
                raise CheckpointError(
                    str(error).replace(inside, str(file)).replace(folder, str(file))
                ) from error
        network.register_to_config(_name_or_path=str(file))
        return network

    @classmethod
    def from_config(cls, config: Any = None, **kwargs: Any) -> Any:
        """A network with this config; while a checkpoint is being loaded, in the dtypes it is stored in."""
        built = super().from_config(config, **kwargs)
        _set_dtypes(built[0] if isinstance(built, tuple) else built, _stored_dtypes.get({}))
        return built

    @classmethod
    def _widest_if_mixed(cls, stored: Mapping[str, StoredTensor], folder: Path) -> torch.dtype | None:
        """The blocks run in one dtype: the widest, with a warning, where they are stored in several; else None."""
        blocks = {name: stored[name] for name in cls._block_names(stored)}
        if len({tensor.dtype for tensor in blocks.values()}) < 2:
            return None
        widest = common_dtype(blocks)
        logger.warning(
            "The blocks in %s are stored in several dtypes and loaded in the widest, %s.", folder, widest
        )
        return widest

    @classmethod
    def _check_folder(cls, folder: Path, kwargs: dict[str, Any]) -> dict[str, StoredTensor]:
        """Everything that can be known without reading a tensor; what is stored.

        A quantised checkpoint that is to be loaded without a dtype gets that of the tensors that are not packed.
        """
        file = folder / cls.config_name
        config = read_object(file)
        stored = read_weights(folder, "diffusers", kwargs.get("variant"))
        fields = cls._get_init_keys(cls)
        config.update({name: value for name, value in kwargs.items() if name in fields})
        check_config(config, stored, file)
        check_quantizer(config, "diffusers", file)
        try:
            with TURN, torch.device("meta"):
                expected = cls.from_config(config).state_dict()
        except Exception as error:  # whatever a lying config leads to
            raise CheckpointError(
                f"{file} describes no network that can be built: {reason(error)}"
            ) from error
        shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
        form = stored_format(config)
        if form == PLAIN:
            compare(stored, shapes, folder)
            return stored
        if kwargs["dtype"] is None:
            kwargs["dtype"] = unpacked_dtype(stored, cls._block_names(expected))
        compare_packed(stored, shapes, folder, form)
        return stored

    @classmethod
    def _block_names(cls, names: Iterable[str]) -> set[str]:
        """Of all but what is kept in float32."""
        return {name for name in names if not set(cls._keep_in_fp32_modules or ()) & set(name.split("."))}


def requested_dtype(arguments: dict[str, Any]) -> Any:
    """Take `dtype` or the older `torch_dtype` out of arguments; None and "auto" ask for the stored dtypes.

    Raises:
        RequestError: both, or something that is no dtype.
    """
    dtype, older = arguments.pop("dtype", None), arguments.pop("torch_dtype", None)
    if dtype is not None and older is not None:
        raise RequestError("dtype and torch_dtype are the same argument; pass dtype.")
    dtype = older if dtype is None else dtype
    if isinstance(dtype, str) and dtype == "auto":
        return None
    for value in dtype.values() if isinstance(dtype, dict) else [dtype]:
        if value is not None and not isinstance(value, torch.dtype):
            raise RequestError(f"dtype={value!r} is not a torch.dtype, such as torch.bfloat16.")
    return dtype


def refuse_pickles(arguments: dict[str, Any]) -> None:
    """Ask diffusers for safetensors only."""
    if arguments.get("use_safetensors") is False:
        raise RequestError("use_safetensors=False would open pickles, which can run code; leave it out.")
    arguments["use_safetensors"] = True


def single_file(path: str | Path) -> Path:
    """The absolute path of a safetensors file.

    Raises:
        CheckpointError: no such file, or of another kind.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is not a .safetensors file; pickles (.bin, .pt, .ckpt) can run code and are not read here."
        )
    if not file.is_file():
        raise CheckpointError(f"{path} is missing; download it first and pass the path of the file.")
    return file.absolute()


@contextmanager
def checkpoint_errors(where: str | Path, *, is_packed: bool = False) -> Iterator[None]:
    """What libraries raise about files, as a `CheckpointError` on one line.

    Args:
        where: what to name.
        is_packed: the files say how they are packed, and the caller does not: whatever a quantiser raises, an
            `ImportError` too, is then about the files.
    """
    try:
        yield
    except (CheckpointError, RequestError, CapacityError):
        raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{where} cannot be loaded: {reason(error)}") from error
    except Exception as error:
        if not is_packed or isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        raise CheckpointError(
            f"{where} cannot be loaded as its quantization_config says: {type(error).__name__}: {reason(error)}"
        ) from error


@contextmanager
def _keeping(dtypes: Mapping[str, torch.dtype]) -> Iterator[None]:
    token = _stored_dtypes.set(dtypes)
    try:
        yield
    finally:
        _stored_dtypes.reset(token)


def _set_dtypes(network: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give parameters without storage the dtype that their values will arrive in."""
    for name, dtype in dtypes.items():
        owner, _, leaf = name.rpartition(".")
        module = network.get_submodule(owner)
        parameter = getattr(module, leaf)
        if parameter.is_meta and parameter.dtype != dtype:
            empty = torch.empty_like(parameter, dtype=dtype)
            setattr(module, leaf, nn.Parameter(empty, requires_grad=parameter.requires_grad))
