"""Triton kernels compiled for cards that are not here."""

import re
import subprocess
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CARDS = {"ampere": 80, "hopper": 90}


def compiled(kernel, types, constants, *, warps, card, divisible=(), stages=3):
    """A kernel as for a launch.

    Args:
        types: of its pointers and numbers; pointers are divisible by 16.
        constants: the rest of its arguments.
        divisible: numbers that are, too.
        stages: how many loads of a loop are under way at once.
    """
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    aligned = [name for name, kind in types.items() if kind.startswith("*") or name in divisible]
    source = ASTSource(
        kernel,
        signature,
        constexprs={places[name]: value for name, value in constants.items()},
        attrs={places[name]: [["tt.divisibility", 16]] for name in aligned},
    )
    target = GPUTarget("cuda", CARDS[card], 32)
    return triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})


def bytes_on_the_stack(binary: bytes, folder: Path) -> int:
    """What a kernel keeps in memory for want of registers."""
    file = folder / "kernel.cubin"
    file.write_bytes(binary)
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    told = subprocess.run(
        [program, "--dump-resource-usage", file], capture_output=True, text=True, check=True
    )
    return int(re.findall(r"STACK:(\d+)", told.stdout)[-1])
