"""Handover: a live device goes from one process to another, with its connections if it has any.

The old server: ``provider.py`` listens for successors and releases the device to one, by the steps
of ``release.py``. The new server: ``takeover.py``. What they say to each other: ``endpoint.py``.
"""
