"""The options of a mount: the same for ``mount``, ``mounted`` and ``MountOptions``."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from typing import Any

import pytest

import aiovblk
from aiovblk.dispatch import DEFAULT_SLOW_REQUEST, MAX_CONCURRENCY, HandlerLimits
from aiovblk.mounting.handover.options import Handover
from aiovblk.mounting.options import MountOptions

LIMITS = HandlerLimits(
    concurrency=MAX_CONCURRENCY, handler_timeout=None, slow_request=DEFAULT_SLOW_REQUEST
)


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def test_mount_and_mounted_have_the_same_signature() -> None:
    one, other = parameters(aiovblk.mount), parameters(aiovblk.mounted)
    assert one.pop("task_status")
    assert list(one.values()) == list(other.values())


def test_options_are_those_of_the_signature_with_the_same_defaults() -> None:
    options: dict[str, Any] = {}
    for field in dataclasses.fields(MountOptions):
        value = getattr(MountOptions(limits=LIMITS), field.name)
        if field.name in ("limits", "handover"):
            options |= {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        else:
            options[field.name] = value
    signature = parameters(aiovblk.mounted)
    del signature["device"], signature["path"]
    assert options == {name: parameter.default for name, parameter in signature.items()}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"survive": 60}, "survive takes an identity"),
        ({"replace": True}, "replace takes an identity"),
        ({"identity": "v", "survive": 0}, "survive must be a positive number of seconds"),
        ({"identity": ""}, "1 to 255 printable characters"),
        ({"identity": "v" * 256}, "1 to 255 printable characters"),
        ({"identity": "a\nb"}, "1 to 255 printable characters"),
        ({"identity": " v"}, "no space around them"),
    ],
)
def test_handover_that_cannot_be_is_refused_where_it_is_made(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        Handover(**options)


def test_options_that_exclude_each_other_are_refused_where_they_are_made() -> None:
    with pytest.raises(ValueError, match="use netlink"):
        MountOptions(attach="ioctl", limits=LIMITS, handover=Handover(identity="v"))
    with pytest.raises(ValueError, match="leave connections out"):
        MountOptions(connections=2, workers=2, limits=LIMITS)


def test_limits_can_be_sent_to_a_worker() -> None:
    assert pickle.loads(pickle.dumps(LIMITS)) == LIMITS


@pytest.mark.parametrize("name", ["concurrency", "handler_timeout", "slow_request", "busy_poll"])
def test_limits_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(LIMITS, **{name: 0})
