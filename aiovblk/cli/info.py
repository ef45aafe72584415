"""``aiovblk info``: show what a disk, an export, a device or a disk in an object store is."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..client import RemoteDevice
from ..device import OPERATIONS, BlockDevice, can
from ..storage import FileDevice, objects
from ..text import escape
from . import values
from .attached import NODE, is_attached, resolve
from .diskspec import DiskSpec, read_key
from .errors import SpecError
from .layers import source_of
from .list_devices import inspect_device
from .object_store import describe_snapshots, snapshots_table
from .options import SPEC_HELP, add_json, add_loop
from .parser import CommandParser
from .redaction import redact
from .runner import async_command
from .sizes import format_size
from .spec import find_scheme, open_spec, parse_path, split_block_size

Facts = dict[str, object]
"""What is known, by name, as JSON has it."""


def configure(parser: CommandParser) -> None:
    """Describe the command and its options."""
    parser.usage = f"%(prog)s [OPTION...] SPEC | {NODE}"
    parser.description = (
        "Show what a SPEC names: size, block size, what it can do; of an export what its server "
        "tells; of a disk in an object store its snapshots and who writes to it; of an attached "
        "device its server and its users. Changes nothing, and needs no right to write."
    )
    parser.add_argument(
        "spec", metavar=f"SPEC | {NODE}", type=values.text, help=f"what to look at: {SPEC_HELP}"
    )
    add_json(parser)
    add_loop(parser)
    parser.show_examples(
        ("a disk in a bucket", "aiovblk info s3://bucket/disk"),
        ("the size of an export, in bytes", "aiovblk info nbd://server/disk --json | jq .size"),
    )
    parser.set_defaults(command=async_command(show))


async def show(arguments: Namespace) -> None:
    """``aiovblk info``: print the facts, as lines or as a JSON object."""
    facts = await describe(arguments.spec)
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        print(as_text(facts))


async def describe(spec: str) -> Facts:
    """Find out what a SPEC, or the node of an attached device, names; sizes in bytes.

    Raises:
        SpecError, OSError, ValueError: it cannot be found, opened or read.

    """
    if spec.startswith(("/dev/nbd", "/dev/ublkb")):
        attached = resolve(spec)
        if not is_attached(attached):
            raise SpecError(f"{spec} is not attached")
        return {"kind": "attached device", **asdict(inspect_device(attached))}
    if find_scheme(spec).is_stored:
        disk = DiskSpec.parse(spec)
        if disk.snapshot is None:
            return _stored_facts(await objects.describe(disk.url, key=read_key()))
    try:
        async with open_spec(spec, read_only=True, list_contexts=True) as device:
            try:
                source = source_of(device)
                return {"spec": redact(spec), **_device_facts(device), **_facts_of(source)}
            finally:
                await device.unmount()
    except BlockingIOError:
        if not spec.startswith("file:"):
            raise
        return {"spec": spec, **_locked_file_facts(parse_path(split_block_size(spec)[0][5:]))}


def _device_facts(device: BlockDevice) -> Facts:
    return {
        "kind": type(source_of(device)).__name__,
        "size": device.size,
        "block_size": device.block_size,
        "rotational": device.rotational,
        "multi_conn": device.multi_conn,
        "operations": sorted(each for each in OPERATIONS if can(device, each)),
    }


def _facts_of(device: BlockDevice) -> Facts:
    """Return what is known of a device of this class beside."""
    if isinstance(device, RemoteDevice):
        info = device.info
        return {
            "kind": "NBD export",
            "description": info.description,
            "flags": [flag.name or hex(flag) for flag in info.flags],
            "minimum_block": info.minimum_block,
            "preferred_block": info.preferred_block,
            "maximum_payload": info.maximum_payload,
            "contexts": list(device.offered_contexts or ()),
        }
    if isinstance(device, FileDevice):
        return {"kind": "file", **_file_facts(device.path), "writer": None}
    return {}


def _file_facts(path: str) -> Facts:
    # st_blocks is in units of 512 bytes, whatever the file system has (stat(2)).
    return {"allocated": os.stat(path).st_blocks * 512, "writable": os.access(path, os.W_OK)}


def _locked_file_facts(path: str) -> Facts:
    """Return what is known of a file that another process has locked, and so may write to."""
    return {
        "kind": "file",
        "size": os.stat(path).st_size,
        **_file_facts(path),
        "writer": _holder_of_lock(path) or "a process that cannot be seen",
    }


def _holder_of_lock(path: str) -> str | None:
    """Return the process that has locked a file (flock), as /proc/locks has it."""
    inode = os.stat(path).st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        _, kind, _, mode, pid, where, *_ = line.split()
        if (kind, mode, where.rpartition(":")[2]) == ("FLOCK", "WRITE", f"{inode}"):
            return f"process {pid}"
    return None


def _stored_facts(disk: objects.DiskDescription) -> Facts:
    return {
        "kind": "disk in an object store",
        "where": disk.where,
        "size": disk.size,
        "block_size": disk.block_size,
        "chunk_size": disk.chunk_size,
        "compressed": disk.compressed,
        "encrypted": disk.encrypted,
        "clone_of": list(disk.origins),
        "writer": None if disk.writer is None else str(disk.writer),
        "snapshots": describe_snapshots(disk.snapshots),
    }


def as_text(facts: Mapping[str, object]) -> str:
    """Format the facts as a line each, and snapshots as a table below."""
    snapshots: Any = facts.get("snapshots")
    width = max(map(len, facts))
    lines = [
        f"{name.replace('_', ' '):<{width}}  {_shown(name, value)}"
        for name, value in facts.items()
        if name != "snapshots"
    ]
    return "\n".join([*lines, *(["", snapshots_table(snapshots)] if snapshots else [])])


def _shown(name: str, value: object) -> str:
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return escape(", ".join(map(str, value)))
    if isinstance(value, int) and name in _SIZES:
        return f"{format_size(value)} ({value} bytes)"
    return escape(str(value))


_SIZES = frozenset({"size", "allocated", "chunk_size", "maximum_payload"})
