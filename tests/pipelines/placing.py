"""The ways a pipeline can be put on a GPU."""

import torch

WAYS = ("resident", "model offload", "sequential offload", "group offload", "group offload, leaf, stream")


def place(pipe, how):
    """Put a pipeline there in one of `WAYS`."""
    if how == "resident":
        pipe.to("cuda")
    elif how == "model offload":
        pipe.enable_model_cpu_offload()
    elif how == "sequential offload":
        pipe.enable_sequential_cpu_offload()
    else:
        pipe.enable_group_offload(
            onload_device=torch.device("cuda"),
            offload_type="leaf_level" if "leaf" in how else "block_level",
            use_stream="stream" in how,
            **({} if "leaf" in how else {"num_blocks_per_group": 1}),
        )
