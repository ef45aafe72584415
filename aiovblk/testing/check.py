"""Random requests to a device, which must do what the contract of BlockDevice says."""

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
"""Requests of one kind of which one should have succeeded."""

# How often a round ends in which way.
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

    It is given rounds of concurrent requests, which often overlap; some of their handlers are
    cancelled, and run again or not. What it answers is compared with what each block may hold.
    Now and then it is flushed, unmounted and opened again; or, if there is a ``crash``, cut off
    with requests in flight. The device may fail requests by an OSError, but not all of a kind.

    What the disk holds is overwritten, unless it is read-only: then it is read, and must not
    change. Of a large disk a few MiB are used.

    Args:
        open: opens the disk; called again after each unmount and each crash. It may be async.
        crash: called with the open device in place of ``unmount()``, while its handlers run: makes
            the medium look as if the power had failed at this moment, and the device dead. The
            handlers are cancelled afterwards. It may be async. None if there is no such thing.
        seed: the same seed makes the same requests.
        rounds: how many; each has up to 40 requests.
        concurrency: how many may be in flight; 1 for a device that is to be mounted so.
        timeout: seconds that a round, an unmount and the like may take.

    Raises:
        TypeError, ValueError: a number cannot be.
        CheckFailed: it does not. It tells the seed, the round, the request, and what was wrong.
        TypeError: ``open`` is no function that opens the disk.

    Cancellation: safe; the device is unmounted.

    """
    if isinstance(open, BlockDevice) or not callable(open):
        raise TypeError(
            "the disk is opened again and again: give a function that makes it (a class, an async"
            f" function, lambda: Disk(...)), not {open!r}"
        )
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
        """Play all rounds."""
        disk = self._disk
        await disk.open_first()
        planner = RequestGenerator(
            disk.regions,
            disk.block_size,
            read_only=disk.read_only,
            concurrency=self._concurrency,
        )
        for self.round in range(rounds):
            random = Random(f"{self._seed} {self.round}")
            await self._run_round(random, planner.round(random))
        await self._finish_round("reopen")
        self._check_outcomes()

    async def cancel(self) -> None:
        """Let go of the device, whatever state it is in."""
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
        player = RequestRunner(
            self._disk.device, self._disk.model, self._outcomes, f"round {self.round}"
        )
        playing = [player.run_chain(chain) for chain in chains]
        if end == "crash" and self._disk.can_crash:
            playing.append(self._crash(player, finished, pause))
        self._runner, self._running = player, [asyncio.ensure_future(each) for each in playing]
        await self._run_to_the_end(player)
        await self._finish_round(end)

    async def _run_to_the_end(self, player: RequestRunner) -> None:
        done, late = await asyncio.wait(
            self._running, timeout=self._timeout, return_when=asyncio.FIRST_EXCEPTION
        )
        for each in done:
            each.result()
        if late:
            raise CheckFailed(f"after {self._timeout} s this still runs: {player.unfinished}")

    async def _crash(self, player: RequestRunner, finished: int, pause: int) -> None:
        """Crash when so many requests are done with, and a few turns of the loop later."""
        await player.reached(finished)
        await loop_turns(pause)
        player.over = True
        await self._disk.crash()
        await player.stop(self._timeout)

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
