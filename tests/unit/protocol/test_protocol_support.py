"""The page on protocol support mentions each name of the specification."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

import pytest

from aiovblk.protocol import Command, CommandFlag, Info, Option, OptionReply, ReplyType
from aiovblk.protocol import TransmissionFlag as Transmission

TEXT = (Path(__file__).parents[3] / "docs" / "reference" / "protocol-support.md").read_text()


@pytest.mark.parametrize(
    "kind", [Option, OptionReply, Info, Transmission, Command, CommandFlag, ReplyType]
)
def test_each_name_is_there(kind: type[Enum]) -> None:
    words = set(re.findall(r"\w+", TEXT))
    assert {member.name for member in kind} <= words
