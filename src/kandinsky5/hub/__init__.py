"""The Hugging Face hub: what a task needs of a repository, fetching and checking it, and what is already here.

In: a hub id, a revision, and how the hub may be reached. Out: a folder in the client's own cache, whole and checked, or
one of our errors with one line. `fetch` is the way of every hub id, whether it comes from Python or the command line.
Refuses to know: tensors and pipelines.
"""

from kandinsky5.hub import need
from kandinsky5.hub.access import HubAccess
from kandinsky5.hub.arguments import HubArguments
from kandinsky5.hub.bars import FetchedBytes, Watch, bars, unseen
from kandinsky5.hub.cache import CachedModel, cached, missing_files
from kandinsky5.hub.need import Need
from kandinsky5.hub.selection import Plan, PlannedFile, plan
from kandinsky5.hub.transfer import check_room, fetch, fetch_planned

__all__ = [
    "CachedModel",
    "FetchedBytes",
    "HubAccess",
    "HubArguments",
    "Need",
    "Plan",
    "PlannedFile",
    "Watch",
    "bars",
    "cached",
    "check_room",
    "fetch",
    "fetch_planned",
    "missing_files",
    "need",
    "plan",
    "unseen",
]
