"""What holds for the whole suite: no network, and few threads, since the tiny models gain nothing from more."""

import os

# Read by the libraries when they are first imported, so before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
