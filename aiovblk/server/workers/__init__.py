"""A worker pool for a server: clients are served by several processes."""
