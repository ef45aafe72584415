"""The phases of a mount, and that a mount runs through them and no others."""

from __future__ import annotations

from typing import Any

import pytest

import aiovblk
from aiovblk import Error
from aiovblk import kernel as kernel_room
from aiovblk.mounting.state import TRANSITIONS, MountState, Phase
from aiovblk.storage import MemoryDevice

from ...support.fake_kernel import FakeKernel

LAST = {Phase.NOT_MOUNTED, Phase.HANDED_OVER, Phase.UNMOUNTED}


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> list[Phase]:
    """Every phase that any mount enters."""
    entered: list[Phase] = []
    enter = MountState.enter

    def record(state: MountState, phase: Phase) -> None:
        enter(state, phase)
        entered.append(phase)

    monkeypatch.setattr(MountState, "enter", record)
    return entered


def test_every_phase_is_reachable_and_only_the_last_lead_nowhere() -> None:
    assert set(TRANSITIONS) == set(Phase)
    reached, new = {Phase.ATTACHING}, {Phase.ATTACHING}
    while new:
        new = {after for phase in new for after in TRANSITIONS[phase]} - reached
        reached |= new
    assert reached == set(Phase)
    assert {phase for phase, after in TRANSITIONS.items() if not after} == LAST


async def test_no_other_transition_is_possible() -> None:
    for phase, followers in TRANSITIONS.items():
        for other in set(Phase) - followers:
            state = MountState()
            state.phase = phase
            with pytest.raises(AssertionError):
                state.enter(other)


async def test_conditions_that_end_a_mount_request_its_unmount() -> None:
    for mark in ("mark_disconnected", "mark_stream_ended", "mark_attachment_ended"):
        state = MountState()
        getattr(state, mark)()
        assert state.stop_requested.done()
        getattr(state, mark)()  # once more does nothing


async def test_handover_may_be_requested_again_after_it_was_refused() -> None:
    state = MountState()
    state.request_handover()
    waiting = state.handover_refused
    state.refuse_handover("it hangs")
    assert waiting.result() == "it hangs"
    assert not state.handover_requested.done()
    assert not state.handover_refused.done()
    state.request_handover()
    assert state.handover_requested.done()


async def test_mount_serves_and_is_unmounted(kernel: FakeKernel, phases: list[Phase]) -> None:
    async with aiovblk.mounted(MemoryDevice(1 << 20)) as mount:
        assert mount._lifecycle.state.phase is Phase.SERVING
    assert phases == [Phase.SERVING, Phase.UNMOUNTING, Phase.UNMOUNTED]


async def test_device_that_cannot_be_attached_is_not_mounted(
    phases: list[Phase], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise aiovblk.NBDUnavailableError(2, "no driver")

    monkeypatch.setattr(kernel_room, "attach", refuse)
    with pytest.raises(aiovblk.NBDUnavailableError):
        async with aiovblk.mounted(MemoryDevice(1 << 20)):
            pass
    assert phases == [Phase.NOT_MOUNTED]


async def test_detach_without_survive_leaves_the_phase(kernel: FakeKernel) -> None:
    async with aiovblk.mounted(MemoryDevice(1 << 20)) as mount:
        with pytest.raises(Error, match="has to be mounted with survive="):
            await mount.detach()
        assert mount._lifecycle.state.phase is Phase.SERVING
