"""Worker processes: run a service in a process of its own, and call its methods from the parent.

One interpreter keeps one processor busy; with worker processes, a mount or a server uses several.
This package knows neither devices nor NBD. What a worker does for a mount is in
``mounting/workers/``, and for a server, with its worker pool, in ``server/workers/``.
"""

from .worker import Notify, Service, Worker, WorkerLostError

__all__ = ["Notify", "Service", "Worker", "WorkerLostError"]
