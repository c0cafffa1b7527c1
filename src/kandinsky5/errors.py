"""The three errors that are not ours: the user's input, the user's files, the machine's room.

Every edge maps these, and only these, to its own vocabulary (an exit code, an HTTP body). A message says what was
wrong, with which value, and what would work. Each also derives from the built-in that callers of diffusers catch today.
"""


class RequestError(ValueError):
    """The request itself cannot be carried out: a size, a count, a combination of arguments."""


class CheckpointError(OSError):
    """A file or folder of weights is missing, damaged, or not what it claims to be; the message names it."""


class CapacityError(RuntimeError):
    """The machine has no room for this now: a full queue, too little memory."""
