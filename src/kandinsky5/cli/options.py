"""The options of `kandinsky5 generate` and `kandinsky5 edit`: their names, forms and help.

In: nothing. Out: a type for each option, which typer reads. Refuses to know: what is done with them.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from kandinsky5.provenance import PictureFormat
from kandinsky5.variants import VARIANTS


class Precision(StrEnum):
    """The dtype the weights are run in; `kandinsky5.placement` says what auto stands for."""

    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class FitTo(StrEnum):
    """How a source of another shape is brought to the size; `kandinsky5.geometry.FitKind`."""

    cover = "cover"
    pad = "pad"
    stretch = "stretch"


Prompt = Annotated[
    str | None,
    Argument(
        help="What the picture shows; - reads one prompt a line from standard input.", show_default=False
    ),
]
SourcePicture = Annotated[Path, Argument(metavar="SOURCE", help="Picture to edit.", show_default=False)]
Instruction = Annotated[
    str | None,
    Argument(help="What to change; - reads one instruction a line from standard input.", show_default=False),
]
Output = Annotated[
    str | None,
    Option(
        "-o",
        "--output",
        metavar="FILE|FOLDER/",
        help="Picture to write, numbered when there are several (name-1.png ...), or a folder for pictures named by "
        "prompt and seed. Default: the current folder.",
    ),
]
Model = Annotated[
    str | None,
    Option(
        metavar="NAME|ID|FOLDER",
        help=f"One of {', '.join(v.name for v in VARIANTS)}; a hub id; a folder. Default: {VARIANTS[0].name}.",
    ),
]


class ModeName(StrEnum):
    """Modes of the network, as `placement.MODES` has them, and how one is chosen or none."""

    auto = "auto"
    ordinary = "ordinary"
    exact = "exact"
    fp8 = "fp8"
    fp8_attention = "fp8-attention"


Size = Annotated[str | None, Option(metavar="WxH", help="Pixels, multiples of 16. Default: the model's.")]
EditSize = Annotated[
    str | None,
    Option(
        metavar="WxH|source",
        help="Pixels, multiples of 16; or source, for its own shape. Default: the model's size nearest in shape.",
    ),
]
Fit = Annotated[
    FitTo | None,
    Option(
        help="Bring a source of another shape to the size: cover cuts off what reaches beyond, pad adds white, stretch "
        "distorts. Default: cover.",
        show_default=False,
    ),
]
Compare = Annotated[
    bool, Option("--compare", help="Also write NAME-compare, with the source on the left of the result.")
]
Steps = Annotated[int | None, Option(help="Steps of the flow. Default: the model's.")]
Guidance = Annotated[
    float | None, Option(help="How closely to follow the prompt; 1 is off. Default: the model's.")
]
Negative = Annotated[str | None, Option(metavar="TEXT", help="What to keep away from.")]
Seed = Annotated[
    int | None, Option(help="Start of the noise; picture i of --n uses seed + i. Default: a new one.")
]
Count = Annotated[int | None, Option("-n", "--n", help="Pictures of each prompt.")]
Expand = Annotated[
    bool,
    Option("--expand", help="Have the text encoder write the prompt out first; not with the embedded model."),
]
FromFile = Annotated[
    str | None, Option(metavar="FILE", help="Read prompts from a file, one a line; - is standard input.")
]
Like = Annotated[
    Path | None,
    Option(metavar="PICTURE", help="Start from the request stored in a picture; other options change it."),
]
Loras = Annotated[
    list[str] | None,
    Option(
        "--lora",
        metavar="FILE[:WEIGHT]",
        help="Adapter to draw with: a safetensors file, a folder or a hub id, at weight 1 unless another is said; may "
        "be repeated. none: without those of --like.",
    ),
]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[Precision, Option("--precision", help="Dtype the weights are run in.")]
Mode = Annotated[
    ModeName,
    Option(
        "--mode",
        help="The way through the network: ordinary; exact, its arithmetic in fewer passes over memory; fp8, its "
        "products in float8; fp8-attention, its attention too; auto, exact where that is faster. See "
        "docs/performance.md.",
    ),
]
Memory = Annotated[
    str | None,
    Option(
        metavar="8GB[:16GB]|auto",
        help="Memory of the device that may be used, and of the host; auto is what is free. What does not fit is "
        "packed or streamed. Default: all of the model on the device.",
        show_default=False,
    ),
]
Format = Annotated[PictureFormat | None, Option("--format", help="Default: by the suffix of -o, else png.")]
Quality = Annotated[int | None, Option(min=1, max=100, help="Of jpg and webp. Default: 92.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace files that are there.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="No bar and no remarks.")]
AsJson = Annotated[bool, Option("--json", help="Print one JSON object a picture.")]
