"""What to tell a person whose words the embedded model has never seen.

In: prompts. Out: lines with examples, or none. Refuses to know: pictures and models; a hint never stops anything.
"""

from collections.abc import Sequence


def hints_for(prompts: Sequence[str]) -> list[str]:
    """Lines to show when a prompt names nothing of the embedded model's world; empty when all do."""
    from kandinsky5.demo import captions

    strange = [prompt for prompt in prompts if not captions.names_a_shape(prompt)]
    if not strange:
        return []
    examples = captions.examples(3, seed=0)
    return [
        f"The embedded model draws abstract compositions and may not know what {strange[0]!r:.60} is. It knows, say:",
        *(f"  {example}" for example in examples),
        "Photographs and everything else need a published model: --model t2i-lite-sft.",
    ]
