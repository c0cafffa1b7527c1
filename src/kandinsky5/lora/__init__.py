"""Low-rank adapters of the network, as files and as what a network can take.

`record` is an adapter whatever file it came from, `names` how others call its tensors, `reading` and `writing` its
files, `fitting` whether a network can take it, `peft_form` what peft is given of it. Only safetensors are read. Nothing
here knows pipelines, training or how an adapter is computed with.
"""

from kandinsky5.lora.fitting import check_fits
from kandinsky5.lora.peft_form import from_network, peft_config, peft_tensors
from kandinsky5.lora.reading import read_lora, recognise
from kandinsky5.lora.record import Lora, LoraKind
from kandinsky5.lora.writing import LoraFormat, comfyui_tensors, write_lora

__all__ = [
    "Lora",
    "LoraFormat",
    "LoraKind",
    "check_fits",
    "comfyui_tensors",
    "from_network",
    "peft_config",
    "peft_tensors",
    "read_lora",
    "recognise",
    "write_lora",
]
