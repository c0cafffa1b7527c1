"""What every Kandinsky 5 image pipeline is: seven components, and what their checkpoint says.

Comes in: components, or a saved folder. Goes out: a pipeline with the checkpoint's defaults. How it draws is in
`drawing`, what a caller may ask in the pipelines themselves.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler
from transformers import CLIPTextModel, CLIPTokenizer, Qwen2_5_VLForConditionalGeneration

from kandinsky5.checkpoint.arrival import check_arrived
from kandinsky5.checkpoint.document import read_object
from kandinsky5.checkpoint.finite import check_finite
from kandinsky5.checkpoint.turn import TURN
from kandinsky5.errors import RequestError
from kandinsky5.geometry import NATIVE_SIZES, VAE_FACTOR
from kandinsky5.hub import HubArguments, Watch, bars, need
from kandinsky5.model.arguments import NETWORK_ONLY, check_arguments
from kandinsky5.model.loading import checkpoint_errors, refuse_pickles, requested_dtype, single_file
from kandinsky5.model.packed import unpack_into
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines.adapters import AdapterLoading
from kandinsky5.pipelines.callbacks import TENSOR_NAMES
from kandinsky5.pipelines.encoder_parts import (
    TEXT_ENCODER_PARTS,
    TextEncoderPart,
    bring_in,
    check_parts,
    is_kept_in,
    leaving_out,
    remember,
    stored_packed,
)
from kandinsky5.pipelines.folder import KINDS, CheckedFolder, check_folder, stored_tensors
from kandinsky5.pipelines.load_values import check_load_values
from kandinsky5.pipelines.processor_files import ProcessorFiles
from kandinsky5.pipelines.published import QWEN_PROCESSORS, published_index, with_our_classes
from kandinsky5.pipelines.quantization import check_quantization, check_quantized, write_as_packed
from kandinsky5.pipelines.saving import check_savable, joined_later
from kandinsky5.pipelines.single_file import OF_THE_FILE, check_around_file
from kandinsky5.pipelines.staging import staged
from kandinsky5.pipelines.turns import Turns
from kandinsky5.prompts import TEMPLATE_NAMES, Task

NETWORK_CONFIG = need.Need(parts=(need.Part(folder="transformer"),))
"""Of a pipeline on the hub, its index and what says which network it has: some kilobytes."""

MAX_SHARD = "5GB"
"""Of a saved weight file, as the published ones; it bounds what a save holds beside the components."""


class ImagePipeline(DiffusionPipeline, AdapterLoading):
    """Base of the public pipelines.

    Args:
        transformer: the network.
        vae: FLUX's autoencoder; its config gives the size of a latent and the default size of a picture.
        text_encoder: Qwen2.5-VL.
        tokenizer: its processor, or only its tokenizer.
        text_encoder_2: CLIP's text model.
        tokenizer_2: its tokenizer.
        scheduler: a flow-matching scheduler; its `shift` belongs to the checkpoint.
        default_steps, default_guidance: used by a call that names none; saved with the checkpoint.
        template: "release" (the words the published weights were trained with) or "corrected".

    Attributes:
        batched_guidance: evaluate both guidance branches in one forward pass (they fall apart into two by themselves
            when memory does not allow it).
        plan: the `kandinsky5.memory.Plan` that the components are placed by; None where the caller places them.
    """

    task: ClassVar[Task]
    text_encoder_parts: ClassVar[tuple[TextEncoderPart, ...]] = ()
    """What the task uses of Qwen2.5-VL beside the language model; the rest is left on disk by `from_pretrained`."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->vae"
    _callback_tensor_inputs: ClassVar[list[str]] = list(TENSOR_NAMES)

    def __init__(
        self,
        transformer: Kandinsky5Transformer3DModel,
        vae: AutoencoderKL,
        text_encoder: Qwen2_5_VLForConditionalGeneration,
        tokenizer: Any,
        text_encoder_2: CLIPTextModel,
        tokenizer_2: CLIPTokenizer,
        scheduler: FlowMatchEulerDiscreteScheduler,
        default_steps: int = 50,
        default_guidance: float = 3.5,
        template: str = "release",
    ):
        super().__init__()
        if template not in TEMPLATE_NAMES:
            raise RequestError(f"template={template!r} is not one of {', '.join(TEMPLATE_NAMES)}.")
        if transformer is not None:
            self.check_network(transformer.config)
        bring_in(text_encoder, self.text_encoder_parts)  # where another task's pipeline left them on disk
        self.register_modules(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            scheduler=scheduler,
        )
        self.register_to_config(
            default_steps=default_steps, default_guidance=default_guidance, template=template
        )
        levels = len(vae.config.block_out_channels) if vae is not None else None
        self.vae_scale_factor_spatial = VAE_FACTOR if levels is None else 2 ** (levels - 1)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor_spatial)
        self.batched_guidance = True
        self.plan: Any = None
        self._turns = Turns()
        self._processor: ProcessorFiles | None = None

    # -- Loading and saving -----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        text_encoder_parts: Collection[TextEncoderPart] = (),
        **kwargs: Any,
    ) -> Self:
        """The pipeline of a folder or a hub id.

        Takes diffusers' arguments: components by name, `dtype` (one, or one a component; `torch_dtype` is its older
        name), `variant`, `revision`, `token`, `cache_dir`, `local_files_only`, `device_map`, `quantization_config` and
        the rest. Without a dtype each component keeps the one it is stored in. Before anything is loaded all files,
        names and shapes are held to the configs (`pipelines.folder`); afterwards weights must be finite.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            text_encoder_parts: of "vision" and "head", what to load of the text encoder although the task does not use
                it. What is not loaded stays on disk until `bring_in` or saving asks for it (`pipelines.encoder_parts`).
            kwargs: diffusers' arguments.

        Raises:
            CheckpointError (an OSError): files that are missing, damaged, pickled, or not what they claim to be; a hub
                that refuses or is out of reach.
            CapacityError: the disk has no room for what is fetched.
            RequestError (a ValueError): a dtype or a device map that is none, `use_safetensors=False`, a revision of a
                folder, an unknown part, and any other argument that would be ignored.
        """
        check_parts(text_encoder_parts)
        components, settings = cls._get_signature_keys(cls)
        check_arguments(kwargs, {*components, *settings}, but=NETWORK_ONLY)
        dtype = requested_dtype(kwargs)
        refuse_pickles(kwargs)
        source = str(pretrained_model_name_or_path)
        brought = [name for name in components if name in kwargs]
        quantization = kwargs.get("quantization_config")
        check_load_values(dtype, kwargs.get("device_map"), ("transformer", *KINDS))
        check_quantization(quantization, {"transformer", *KINDS}, brought)
        wanted = need.pipeline(cls.task, without=brought, variant=kwargs.get("variant"))
        hub = HubArguments.taken_from(kwargs)
        if "transformer" not in brought:
            cls.check_checkpoint(source, hub)
        folder = hub.folder(source, wanted)
        checked = check_folder(folder, brought, kwargs.get("variant"))
        if "transformer" not in brought:
            cls._check_network_in(folder)
        kwargs["dtype"] = checked.dtypes_for(dtype)
        encoder = checked.models.get("text_encoder")
        needed = {*cls.text_encoder_parts, *text_encoder_parts}
        needed |= set() if encoder is None else stored_packed(encoder.tensors)
        packs = quantization is None and any(model.is_packed for model in checked.models.values())
        parts = TEXT_ENCODER_PARTS.keys() - needed
        with TURN, leaving_out(parts), checkpoint_errors(source, is_packed=packs):
            pipeline = super().from_pretrained(str(folder), **{**checked.absent, **kwargs, **checked.light})
        for name, model in checked.models.items():
            loaded = getattr(pipeline, name)
            check_finite(loaded, folder / name)
            if model.is_packed:
                unpack_into(loaded, loaded.dtype)
            if not model.is_packed or getattr(loaded, "hf_quantizer", None) is None:
                check_arrived(loaded, model.tensors, folder / name, KINDS[name].current_name)
        if encoder is not None:
            remember(pipeline.text_encoder, encoder.tensors, is_packed=encoder.is_packed)
        check_quantized(pipeline, quantization)
        bring_in(pipeline.text_encoder, text_encoder_parts)  # of an encoder that was passed
        pipeline.register_to_config(_name_or_path=source)
        pipeline._keep_processor(folder, checked)
        return pipeline

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | Path, **kwargs: Any) -> Self:
        """The pipeline whose network is in one file, such as the authors' `kandinsky5lite_t2i.safetensors`.

        Args:
            pretrained_model_link_or_path: path of the safetensors file.
            config: folder or hub id that the other components come from. Not needed when all six are passed by name.
            kwargs: components by name, and the arguments of `from_pretrained`; where all six are passed, of those about
                loading only `dtype`, `device_map` and `disable_mmap` are taken, for the network.

        Raises:
            CheckpointError: a file that is damaged or holds something else.
            RequestError: nowhere to take the other components from, or an argument that would be ignored.
        """
        file = single_file(pretrained_model_link_or_path)
        base, keys = kwargs.pop("config", None), cls._get_signature_keys(cls)
        is_whole = check_around_file(file, kwargs, components=keys[0], settings=keys[1], base=base)
        dtype = requested_dtype(kwargs)
        refuse_pickles(kwargs)
        own = {name: kwargs[name] for name in OF_THE_FILE if name in kwargs}
        wanted = dtype.get("transformer", dtype.get("default")) if isinstance(dtype, dict) else dtype
        network = Kandinsky5Transformer3DModel.from_single_file(file, dtype=wanted, **own)
        if not is_whole:
            return cls.from_pretrained(base, transformer=network, dtype=dtype, **kwargs)
        bring_in(kwargs["text_encoder"], kwargs.pop("text_encoder_parts", ()))
        taken = {name: part for name, part in kwargs.items() if name in {*keys[0], *keys[1]}}
        return cls(transformer=network, **taken)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """A pipeline for this task over the components of another one, which shares them.

        Each component keeps its dtype (diffusers' method makes all of them float32, also for the other pipeline,
        unless told otherwise). Parts of the text encoder that this task uses are brought in; see `bring_in`.

        Args:
            pipeline: a Kandinsky 5 image pipeline of this package.
            kwargs: components and settings to replace, and `dtype` (or `torch_dtype`) to cast all components to.

        Raises:
            RequestError: a pipeline of other components, or a text encoder whose missing parts cannot join it.
            CheckpointError: the missing parts are gone from disk.
        """
        if not isinstance(pipeline, ImagePipeline):
            raise RequestError(
                f"{cls.__name__}.from_pipe takes an image pipeline of this package, not {type(pipeline).__name__} of "
                f"{type(pipeline).__module__.split('.')[0]}; use {cls.__name__}.from_pretrained."
            )
        dtype = requested_dtype(kwargs)
        components, settings = cls._get_signature_keys(cls)
        taken = {name: getattr(pipeline, name) for name in components}
        taken |= {name: pipeline.config[name] for name in settings if name in pipeline.config}
        made = cls(**{**taken, **kwargs})
        made.plan, made.batched_guidance = pipeline.plan, pipeline.batched_guidance
        made._turns = pipeline._turns
        if "_name_or_path" in pipeline.config:
            made.register_to_config(_name_or_path=pipeline.config["_name_or_path"])
        if made.tokenizer is pipeline.tokenizer and pipeline._processor is not None:
            made._processor = pipeline._processor
            made.register_to_config(tokenizer=pipeline._processor.entry)
        return made if dtype is None else made.to(dtype=dtype)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As diffusers' method.

        Raises:
            RequestError: a plan has placed the components (`memory=`), each where it must be.
        """
        self._refuse_where_placed()
        return super().to(*args, **kwargs)

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As diffusers' method. Raises RequestError as `to` does."""
        self._refuse_where_placed()
        super().enable_sequential_cpu_offload(*args, **kwargs)

    def enable_model_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As diffusers' method. Raises RequestError as `to` does."""
        self._refuse_where_placed()
        super().enable_model_cpu_offload(*args, **kwargs)

    def enable_group_offload(self, *args: Any, **kwargs: Any) -> None:
        """As diffusers' method. Raises RequestError as `to` does."""
        self._refuse_where_placed()
        super().enable_group_offload(*args, **kwargs)

    def _refuse_where_placed(self) -> None:
        if self.plan is not None:
            raise RequestError(
                "This pipeline was placed by its plan (memory=), and is not moved, cast or offloaded; load it again "
                "without."
            )

    @property
    def _execution_device(self) -> torch.device:
        """Where inputs go: components that stream are elsewhere when they rest."""
        return super()._execution_device if self.plan is None else torch.device(self.plan.device)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write a folder in the published layout, which diffusers loads too; diffusers' arguments.

        What is left on disk of the text encoder is copied from there, file by file. The folder appears when everything
        is written; of a folder that exists, files are replaced then.

        Raises:
            CheckpointError: the folder cannot be written, or what was left on disk is gone or was changed.
            RequestError: pickles were asked for, layers are offloaded one by one or wear adapters, or the text encoder
                was quantised without all its parts.
        """
        if kwargs.get("safe_serialization") is False:
            raise RequestError(
                "safe_serialization=False would write pickles, which are not read here; leave it out."
            )
        check_savable(self.components)
        write_as_packed(self.text_encoder)
        self.register_modules(**joined_later(self.components, self.config))
        target = Path(save_directory).absolute()
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", target.name)
        kwargs.setdefault("max_shard_size", MAX_SHARD)
        with staged(target) as folder:
            if self._processor is not None and self._processor.tokenizer is self.tokenizer:
                self._processor.write(folder / "tokenizer")
            super().save_pretrained(str(folder), **kwargs)
        if is_kept_in(self.text_encoder, target / "text_encoder"):  # saved over its own source
            remember(self.text_encoder, stored_tensors("text_encoder", target, kwargs.get("variant")))

    def _keep_processor(self, folder: Path, checked: CheckedFolder) -> None:
        """Remember the processor that only the tokenizer was built of, so that it is saved again."""
        if "tokenizer" not in checked.light:
            return
        library, named = checked.index["tokenizer"]
        if named in QWEN_PROCESSORS and named != type(self.tokenizer).__name__:
            self._processor = ProcessorFiles.read(folder / "tokenizer", self.tokenizer, (library, named))
            self.register_to_config(tokenizer=self._processor.entry)

    # -- What the checkpoint says ---------------------------------------------------------------------------------

    @classmethod
    def check_network(cls, config: Mapping[str, Any]) -> None:
        """Raise RequestError for a network, known by its config, that this pipeline cannot run. This one runs any."""

    @classmethod
    def check_checkpoint(cls, source: str, hub: HubArguments, watch: Watch = bars) -> None:
        """`check_network` of a folder or a hub id: some kilobytes, before gigabytes are fetched.

        Raises:
            RequestError, CheckpointError: as `check_network` and `HubArguments.folder`.
        """
        if cls.task == "editing":
            cls._check_network_in(replace(hub, force=False).folder(source, NETWORK_CONFIG, watch))

    @classmethod
    def _check_network_in(cls, folder: Path) -> None:
        """`check_network` of a pipeline's folder, where it has a network."""
        if (config := folder / "transformer" / "config.json").is_file():
            cls.check_network(read_object(config))

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """`model_index.json`, with the network's class replaced by ours in memory."""
        return with_our_classes(super().load_config(*args, **kwargs))

    def register_to_config(self, **kwargs: Any) -> None:
        """Register settings, and components under the names that other libraries find in a `model_index.json`.

        Whatever changes a component comes by here: `register_modules`, and an assignment to its attribute.
        """
        super().register_to_config(**published_index(kwargs))

    @property
    def default_size(self) -> tuple[int, int]:
        """(width, height) of a picture whose size is not given, from the autoencoder's `sample_size`."""
        if self.vae is None:
            return NATIVE_SIZES[0]
        side = self.vae.config.sample_size
        return (side, side) if isinstance(side, int) else (side[1], side[0])

    @property
    def default_steps(self) -> int:
        """Steps of a call that names none."""
        return self.config.default_steps

    @property
    def default_guidance(self) -> float:
        """Guidance of a call that names none."""
        return self.config.default_guidance

    @property
    def resolutions(self) -> list[tuple[int, int]]:
        """(width, height) pairs the checkpoint was trained on. Other multiples of 16 can be run."""
        return list(NATIVE_SIZES) if self.default_size in NATIVE_SIZES else [self.default_size]
