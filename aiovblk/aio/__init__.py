"""What asyncio lacks; knows neither devices nor NBD.

* :mod:`.tasks`: graceful tasks, whose ``cancel()`` requests a graceful shutdown
* :mod:`.rangelock`: a range lock, which excludes overlapping ranges of bytes
* :mod:`.gate`: a gate that changes pass concurrently, and that a pause closes
* :mod:`.coalesce`: coalescing of concurrent calls into one run (group commit, shared flush)
* :mod:`.gather`: concurrent requests that end together, with a limit as by a semaphore
* :mod:`.backoff`: retry with exponential backoff
* :mod:`.ratelimit`: token buckets, and a fair queue before them

The limiter of concurrent handlers, which connections share, is in ``dispatch/concurrency.py``.
"""
