"""Whether a folder is a working Kandinsky 5 checkpoint: one finding a check, from its files to a picture.

In: a folder in the published layout, and its row of the table if it has one. Out: findings, each with the figure it
rests on. Nothing is repaired. Refuses to know: how a folder came here, and how findings are shown.
"""

from kandinsky5.verification.checks import CHECKS, Finding, Outcome, verify

__all__ = ["CHECKS", "Finding", "Outcome", "verify"]
