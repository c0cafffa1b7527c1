"""Many requests, one model: a worker process that draws, and the service that feeds it.

`service` (accepts, waits in line, answers), `ticket` (what it has accepted), `line` (whose turn it is),
`process` (the worker, seen from outside), `watch` (whether it lives), `worker` (the process that owns the pipeline),
`stepwise` (several requests in one forward pass), `preview` (a look at a picture before it is done), `messages` (what
the two processes say to each other). Nothing here knows HTTP.
"""

from kandinsky5.service.messages import Begun, Card, Failed, Finished, Previewed, Report, Stepped
from kandinsky5.service.service import Service
from kandinsky5.service.ticket import Limits, Ticket

__all__ = [
    "Begun",
    "Card",
    "Failed",
    "Finished",
    "Limits",
    "Previewed",
    "Report",
    "Service",
    "Stepped",
    "Ticket",
]
