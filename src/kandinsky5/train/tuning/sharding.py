"""A network cut into pieces over processes by FSDP2, or HSDP where several groups hold all of it.

In: a network in float32, how many groups. Out: the same network, whose parameters are this process's pieces. What the
released model computes in float32 stays so; the rest is cast to the dtype of use when it is gathered. It refuses to
know what is trained.
"""

import warnings
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

PRECISE = ("time_embeddings", "visual_modulation", "text_modulation", "modulation")
"""Modules that compute in float32 (`Kandinsky5Transformer3DModel._keep_in_fp32_modules`)."""


SHARD = "shard"
"""The axis of the mesh along which weights are cut up."""


def make_mesh(device: torch.device, replicas: int) -> DeviceMesh:
    """The processes as a line, or as `replicas` lines, which must divide them. One process alone is a line of one."""
    if not distributed.is_initialized():
        store = distributed.HashStore()
        kind = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(kind, store=store, rank=0, world_size=1)
    count = distributed.get_world_size()
    if replicas == 1:
        return init_device_mesh(device.type, (count,), mesh_dim_names=(SHARD,))
    names = ("replicate", SHARD)
    return init_device_mesh(device.type, (replicas, count // replicas), mesh_dim_names=names)


def shard(network: Any, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Cut the network up: each block by itself, its float32 parts apart from the rest.

    FSDP2 warns of outputs that are views, which must not be written into; nothing here does.
    """
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    precise = MixedPrecisionPolicy(cast_forward_inputs=False)
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, output_dtype=None, cast_forward_inputs=False
    )
    for name, module in network.named_modules():
        if name.rpartition(".")[2] in PRECISE:
            fully_shard(module, mesh=mesh, mp_policy=precise)
    for block in (*network.text_transformer_blocks, *network.visual_transformer_blocks):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)
