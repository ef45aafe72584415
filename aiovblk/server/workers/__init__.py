"""A server whose clients are served by a pool of worker processes."""
