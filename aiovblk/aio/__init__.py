"""What asyncio lacks: graceful tasks, range locks, a pausable gate, coalescing, gathering, retry with backoff."""
