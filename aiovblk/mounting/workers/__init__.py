"""Serve a mount by a pool of worker processes, one for each connection."""
