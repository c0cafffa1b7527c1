"""Whose turn it is to load: one thread of this process at a time.

While diffusers and transformers build and fill a model they swap functions of torch for all threads (initialisation,
registering of parameters, the default dtype). Two loads at a time fail, and what one restores is what the other had
put there, so that every later load fails too. Refuses to know: what is loaded.
"""

import threading
from typing import Final

TURN: Final = threading.RLock()
"""Held around the libraries' `from_pretrained` and around models built without storage; a pipeline's load loads
models."""
