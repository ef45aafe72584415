"""A mount whose handlers run in worker processes, one for each connection."""
