"""How a component's files are packed, by its config: the formats whose parts are known here.

Comes in: a `config.json` as a mapping. Goes out: a format's name. Refuses to know: the libraries.
"""

from collections.abc import Mapping
from typing import Any, Final

PLAIN: Final = "bf16"
"""Weights as they are stored, in whatever dtype."""


def stored_format(config: Mapping[str, Any]) -> str | None:
    """`PLAIN`, "int8", "fp8" or "nf4"; None for a packing whose parts are not known here."""
    settings = config.get("quantization_config")
    if settings is None:
        return PLAIN
    if not isinstance(settings, dict):
        return None
    if settings.get("quant_method") == "bitsandbytes":
        return (
            "nf4" if settings.get("bnb_4bit_quant_type") == "nf4" and settings.get("load_in_4bit") else None
        )
    kind = settings.get("quant_type")
    default = kind.get("default") if isinstance(kind, dict) else None
    named = default.get("_type") if isinstance(default, dict) else None
    return {"Int8WeightOnlyConfig": "int8", "Float8WeightOnlyConfig": "fp8"}.get(str(named))
