"""Check a device by rounds of random requests from a seed; some rounds end in a crash.

A check repeats: choose the requests of a round (:mod:`.generator`), run them concurrently
(:mod:`.runner`), compare each result with what the blocks may hold (:mod:`.model`), then crash,
reopen or verify the disk (:mod:`.disk`). The same seed gives the same requests.
"""

from __future__ import annotations

import asyncio
import contextlib
from random import Random

from ..arguments import check_count, check_seconds
from ..device import BlockDevice, DeviceFactory
from .disk import CheckedDisk, Crash
from .generator import GeneratedRequest, RequestGenerator
from .results import CheckFailed
from .runner import OutcomeCounts, RequestRunner, loop_turns

MIN_SAMPLES = 20
"""Requests of one kind, at least one of which must have succeeded."""

# How a round ends, with weights; "look" verifies the disk.
_ENDS = {"crash": 4, "reopen": 2, "look": 5, "nothing": 9}


async def check_block_device(
    open: DeviceFactory,
    *,
    crash: Crash | None = None,
    seed: int = 0,
    rounds: int = 200,
    concurrency: int = 10,
    timeout: float = 60,
) -> None:
    """Check that a device does what the contract of :class:`aiovblk.BlockDevice` says.

    Runs rounds of concurrent requests, which often overlap; some of their handlers are cancelled,
    and some of these are run again. Results are compared with what each block may hold. Between
    rounds the device is sometimes flushed, unmounted and opened again; or, with ``crash``, cut off
    with requests in flight. The device may fail requests by an OSError, but not all of one kind.

    The contents of the disk are overwritten, unless it is read-only: then they are read, and must
    not change. Of a large disk a few MiB are used.

    Args:
        open: opens the disk; called again after each unmount and each crash. It may be async.
        crash: called with the open device in place of ``unmount()``, while its handlers run: makes
            the disk look as if the power had failed at this moment, and the device dead. The
            handlers are cancelled afterwards. It may be async. None for no crashes.
        seed: the same seed gives the same requests.
        rounds: number of rounds, of up to 40 requests each.
        concurrency: requests in flight at most; 1 for a device that is mounted with that.
        timeout: seconds for each round, unmount, and other step.

    Raises:
        CheckFailed: the device breaks the contract. The message has the seed, the round, the
            request, and what was wrong.
        TypeError, ValueError: a number is impossible, or ``open`` is not a function.

    Cancellation: safe; the device is unmounted.

    """
    _check_factory(open)
    check_count("rounds", rounds)
    check_count("concurrency", concurrency)
    check_seconds("timeout", timeout)
    check = _Check(CheckedDisk(open, crash, seed, timeout), seed, concurrency, timeout)
    try:
        await check.run(rounds)
    except CheckFailed as exc:
        exc.seed, exc.round = seed, check.round
        raise
    finally:
        await check.cancel()


def _check_factory(open: object) -> None:
    if isinstance(open, BlockDevice) or not callable(open):
        raise TypeError(
            "the disk is opened several times: give a function that opens it (a class, an async"
            f" function, lambda: Disk(...)), not {open!r}"
        )


class _Check:
    """One check of one disk."""

    def __init__(self, disk: CheckedDisk, seed: int, concurrency: int, timeout: float) -> None:
        self.round: int | None = None
        self._disk = disk
        self._seed = seed
        self._concurrency = concurrency
        self._timeout = timeout
        self._outcomes = OutcomeCounts()
        self._runner: RequestRunner | None = None
        self._running: list[asyncio.Task[None]] = []

    async def run(self, rounds: int) -> None:
        """Run all rounds."""
        disk = self._disk
        await disk.open_first()
        generator = RequestGenerator(
            disk.regions,
            disk.block_size,
            read_only=disk.read_only,
            concurrency=self._concurrency,
        )
        for self.round in range(rounds):
            random = Random(f"{self._seed} {self.round}")
            await self._run_round(random, generator.round(random))
        await self._finish_round("reopen")
        self._check_outcomes()

    async def cancel(self) -> None:
        """Cancel what runs, and unmount the device, whatever state it is in."""
        for task in self._running:
            task.cancel()
        if self._runner is not None:
            with contextlib.suppress(CheckFailed):
                await self._runner.stop(self._timeout)
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._disk.cancel()

    async def _run_round(self, random: Random, chains: list[list[GeneratedRequest]]) -> None:
        end = random.choices(list(_ENDS), list(_ENDS.values()))[0]
        finished, pause = random.randint(0, sum(map(len, chains))), random.randint(0, 3)
        runner = RequestRunner(
            self._disk.device, self._disk.model, self._outcomes, f"round {self.round}"
        )
        running = [runner.run_chain(chain) for chain in chains]
        if end == "crash" and self._disk.can_crash:
            running.append(self._crash(runner, finished, pause))
        self._runner, self._running = runner, [asyncio.ensure_future(each) for each in running]
        await self._wait_for_requests(runner)
        await self._finish_round(end)

    async def _wait_for_requests(self, runner: RequestRunner) -> None:
        done, late = await asyncio.wait(
            self._running, timeout=self._timeout, return_when=asyncio.FIRST_EXCEPTION
        )
        for each in done:
            each.result()
        if late:
            raise CheckFailed(f"after {self._timeout} s this still runs: {runner.unfinished}")

    async def _crash(self, runner: RequestRunner, finished: int, pause: int) -> None:
        """Crash a few turns of the loop after this many requests are finished."""
        await runner.wait_finished(finished)
        await loop_turns(pause)
        runner.over = True
        await self._disk.crash()
        await runner.stop(self._timeout)

    async def _finish_round(self, how: str) -> None:
        disk = self._disk
        if how == "crash" and disk.can_crash:
            await disk.open_again("after a crash")
        elif how == "reopen":
            await disk.close()
            await disk.open_again("after flush and unmount")
        elif how == "look":
            await disk.verify("with nothing in flight")
        disk.model.forget_hidden()

    def _check_outcomes(self) -> None:
        for command, error in self._outcomes.errors.items():
            failed = self._outcomes.failed[command]
            if failed >= MIN_SAMPLES and not self._outcomes.succeeded[command]:
                raise CheckFailed(
                    f"all {failed} calls of {command} have failed, the last with {error!r}"
                ) from error
