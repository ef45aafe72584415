"""The lease of a writer: its format, its renewal, and whether its holder is alive."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from aiovblk.storage.objects.lease import Holder, Lease, LeaseRecord, wait_until_free

from ....support.object_store import Bucket, once

HOLDER = Holder("host", "boot", 1, 1, 1)
TERMS = LeaseRecord(1, HOLDER, 30.0, "nonce")


def test_lease_is_read_as_it_was_written() -> None:
    assert LeaseRecord.decode(TERMS.encode()) == TERMS


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"holder": 1}', "\xff", "null", "[" * 100_000])
def test_what_is_no_lease_is_none(text: str) -> None:
    assert LeaseRecord.decode(text.encode("latin1")) is None


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": "soon"},
        {"seconds": -1},
        {"seconds": 1e9},
        {"seconds": float("nan")},
        {"epoch": "one"},
        {"nonce": 7},
        {"holder": {**asdict(HOLDER), "pid": "self"}},
        {"holder": {**asdict(HOLDER), "pid": 1 << 70}},
    ],
)
def test_lease_that_could_not_be_honoured_is_none(change: dict[str, Any]) -> None:
    assert LeaseRecord.decode(json.dumps(asdict(TERMS) | change).encode()) is None


async def test_lease_is_renewed_although_damaged_by_another() -> None:
    client = Bucket().client()
    await client.put("lease", b'{"epoch": "one"}')
    assert await Lease(client, 1).renew() is None
    await wait_until_free(Bucket().client())


async def test_writer_that_puts_its_lease_over_a_later_ones_notices_when_both_have_renewed() -> (
    None
):
    bucket = Bucket()
    client = bucket.client()
    earlier, later = Lease(client, 1), Lease(bucket.client(), 2)

    async def be_later() -> None:
        assert await later.renew() is None

    once(client, "put lease", be_later)
    assert await earlier.renew() is None
    assert await later.renew() is None
    assert await earlier.renew() == Holder.this_process()
    assert await later.renew() is None


# Which processes are alive


def test_this_process_lives() -> None:
    assert not Holder.this_process().is_known_dead()


def test_process_that_has_ended_is_dead_and_so_is_one_whose_number_is_used_again() -> None:
    here = Holder.this_process()
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
        assert replace(here, pid=ended.pid).is_known_dead()
    assert replace(here, started=here.started - 1).is_known_dead()


def test_zombie_process_is_dead() -> None:
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert replace(Holder.this_process(), pid=ended.pid).is_known_dead()


def test_process_elsewhere_is_not_known_to_be_dead() -> None:
    here = Holder.this_process()
    for other in (replace(here, boot="other", pid=1), replace(here, pids=1, pid=1)):
        assert not replace(other, started=0).is_known_dead()


def test_process_that_cannot_be_seen_is_not_known_to_be_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with /proc mounted with hidepid=, for the processes of other users."""
    here = Holder.this_process()
    read_text = Path.read_text

    def hide(path: Path) -> str:
        if path.name == "stat":
            raise FileNotFoundError(path)
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", hide)
    assert not here.is_known_dead()
