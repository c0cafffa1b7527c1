"""The Hugging Face hub: what a task needs of a repository, fetching and checking it, and what is already here.

In: a hub id, a revision, and how the hub may be reached. Out: a folder in the client's own cache, whole and checked, or
one of our errors with one line. Refuses to know: tensors, pipelines, and how anything is shown. Reading and writing the
cache is left to `huggingface_hub`.
"""

from kandinsky5.hub.access import HubAccess
from kandinsky5.hub.cache import CachedModel, cached, missing_files
from kandinsky5.hub.selection import Plan, PlannedFile, plan
from kandinsky5.hub.transfer import FetchedBytes, check_room, fetch, fetch_planned

__all__ = [
    "CachedModel",
    "FetchedBytes",
    "HubAccess",
    "Plan",
    "PlannedFile",
    "cached",
    "check_room",
    "fetch",
    "fetch_planned",
    "missing_files",
    "plan",
]
