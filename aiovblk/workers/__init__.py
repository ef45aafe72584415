"""Processes that serve beside this one, since one interpreter keeps one processor busy.

Knows neither devices nor NBD: a worker runs a service, whose methods the parent calls.
"""

from .worker import Notify, Service, Worker, WorkerLostError

__all__ = ["Notify", "Service", "Worker", "WorkerLostError"]
