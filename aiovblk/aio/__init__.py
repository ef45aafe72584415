"""What asyncio lacks: graceful tasks, range locks, a gate, coalescing, gathering, retries."""
