"""Host memory while a large network is loaded: at most one shard above what stays."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kandinsky5.checkpoint.weights import weight_names
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from tests.model.tiny import config_of

SIZE = config_of(
    "t2i", model_dim=1024, ff_dim=4096, time_dim=128, num_visual_blocks=28, axes_dims=(16, 24, 24)
)
SHARD = 128 * 2**20

PROGRAM = """
import json, sys, torch
from pathlib import Path
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
import transformers, diffusers

def of_this_process(field):
    text = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith(field)))

def warm(folder):
    Kandinsky5Transformer3DModel.from_pretrained(folder)

warm(sys.argv[2])
before = of_this_process("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
network = Kandinsky5Transformer3DModel.from_pretrained(sys.argv[1], **eval(sys.argv[3]))
stays = sum(p.numel() * p.element_size() for p in network.parameters())
print(json.dumps({"peak": of_this_process("VmHWM") - before, "stays": stays}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 1 GB of bfloat16 in shards of 128 MiB, written shard by shard."""
    folder = tmp_path_factory.mktemp("large")
    with torch.device("meta"):
        network = Kandinsky5Transformer3DModel(**SIZE)
    network.save_config(folder)
    weight_map, shard, filled = {}, {}, 0
    items = list(network.state_dict().items())
    for place, (name, tensor) in enumerate(items):
        shard[name] = torch.randn(tensor.shape).to(torch.bfloat16)
        filled += shard[name].nbytes
        if filled > SHARD or place == len(items) - 1:
            file = f"diffusion_pytorch_model-{len(set(weight_map.values())) + 1:05d}-of-many.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
            shard, filled = {}, 0
    (folder / weight_names("diffusers")[1]).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["{}", "{'dtype': torch.bfloat16}", "{'dtype': torch.float32}"])
def test_at_most_one_shard_above_what_stays(large, network_folder, arguments):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(large), str(network_folder), arguments],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    largest = max(file.stat().st_size for file in large.glob("*.safetensors"))
    assert measured["stays"] > 0.9e9
    assert measured["peak"] <= measured["stays"] + largest + 32 * 2**20  # allocator and interpreter
