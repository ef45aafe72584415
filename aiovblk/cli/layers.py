"""Put layers on a device: ``--layer`` for each of them, ``--cache`` and ``--overlay`` for two."""

from __future__ import annotations

import hashlib
import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self, get_args

from ..device import BlockDevice
from ..storage import BlockSize, Layer
from ..storage.cache import Policy
from . import values
from .contents import Contents
from .errors import UsageError
from .layerkinds import CACHE_POLICY, KINDS, LayerKind, Settings
from .parser import Options
from .spec import device_for_worker, open_spec

LAYER_HELP = """put a layer on the device: NAME, or NAME:OPTION=VALUE,OPTION=VALUE, of the names
above. The first one given is next to the device, each further one is on top of it. A comma in a
value is written twice"""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A layer as the command line names it, parsed.

    Attributes:
        name: of its kind, see :data:`.layerkinds.KINDS`.
        settings: its options.
        shown: how the user wrote it, for messages.

    """

    name: str
    settings: Settings
    shown: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``NAME:OPTION=VALUE,...``, for argparse.

        Raises:
            ArgumentTypeError: there is no such layer or option, or a value is impossible.

        """
        name, _, rest = text.partition(":")
        if name not in KINDS:
            raise ArgumentTypeError(f"there is no layer {name!r}; there are: {', '.join(KINDS)}")
        kind = KINDS[name]
        settings: dict[str, Any] = {}
        for field in _fields(rest):
            option, equals, value = field.partition("=")
            if option not in kind.options:
                known = ", ".join(kind.options) or "none"
                raise ArgumentTypeError(f"{name} has no option {option!r}; there are: {known}")
            if not equals or option in settings:
                reason = "is given twice" if equals else "needs a value"
                raise ArgumentTypeError(f"option {option} of {name} {reason}")
            try:
                settings[option] = kind.options[option](value)
            except ArgumentTypeError as exc:
                raise ArgumentTypeError(f"option {option} of {name} {exc}") from None
        if kind.required and settings.keys().isdisjoint(kind.required):
            options = " or ".join(f"{option}=" for option in kind.required)
            raise ArgumentTypeError(f"{name} needs {options}")
        return cls(name, settings, f"--layer {name}")

    @property
    def kind(self) -> LayerKind:
        """Its kind."""
        return KINDS[self.name]

    @property
    def identity(self) -> str:
        """What tells it from other layers of its kind, for what is kept of its contents."""
        path = self.settings.get("path")
        found = {**self.settings, "path": path and os.path.realpath(path)}
        return (
            f"{self.name} {hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:32]}"
        )


def _fields(text: str) -> list[str]:
    """Split at commas; two of them are one of a value."""
    escaped = text.replace(",,", "\0")
    return [field.replace("\0", ",") for field in escaped.split(",")] if text else []


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers on a device, the one that is next to it first."""

    layers: tuple[LayerSpec, ...] = ()

    @classmethod
    def parse(cls, *texts: str) -> Self:
        """Parse each layer, see :meth:`LayerSpec.parse`."""
        return cls(tuple(map(LayerSpec.parse, texts)))

    @classmethod
    def of(cls, arguments: Namespace) -> Self:
        """Read the layers from a command line.

        Raises:
            UsageError: the options do not fit together.

        """
        layers = [*(arguments.layer or ()), *_cache_options(arguments)]
        if arguments.overlay is not None:
            layers.append(LayerSpec("overlay", {"path": arguments.overlay}, "--overlay"))
        if arguments.workers is not None:
            for layer in layers:
                if not layer.kind.for_workers:
                    raise UsageError(
                        f"no {layer.shown} with --workers: each worker would have its own"
                    )
        return cls(tuple(layers))

    def check_shareable(self) -> None:
        """Refuse a file for several devices, of a cache or an overlay.

        Raises:
            UsageError: a layer names a file.

        """
        for layer in self.layers:
            if not {"path", "with"}.isdisjoint(layer.settings):
                raise UsageError(
                    f"{layer.shown} names one file or device, which is for one SPEC only; serve"
                    " each SPEC by its own command"
                )

    @property
    def reads_only(self) -> bool:
        """Whether nothing is written to the device below."""
        return any(layer.kind.reads_only for layer in self.layers)

    async def apply(self, device: BlockDevice, spec: str) -> BlockDevice:
        """Put the layers on a device; unmount all of it if that fails."""
        stack = device
        try:
            contents = Contents.of(source_of(device), spec) if self.layers else None
            for layer in self.layers:
                assert contents is not None  # there is a layer
                stack = await layer.kind.apply(stack, layer.settings, contents)
                if layer.kind.changes_contents:
                    contents = contents.behind(layer.identity)
        except BaseException:
            await stack.unmount()
            raise
        return stack


def _cache_options(arguments: Namespace) -> Iterable[LayerSpec]:
    given = {
        "size": ("--cache", arguments.cache),
        "path": ("--cache-path", arguments.cache_path),
        "policy": ("--cache-policy", arguments.cache_policy),
    }
    chosen = {name: each for name, each in given.items() if each[1] is not None}
    if not chosen:
        return
    option = next(reversed(chosen.values()))[0]
    if arguments.cache is None:
        raise UsageError(f"cache size missing: add --cache SIZE to {option}")
    shown = "--cache-path" if arguments.cache_path is not None else "--cache"
    yield LayerSpec("cache", {name: value for name, (_, value) in chosen.items()}, shown)


def source_of(device: BlockDevice) -> BlockDevice:
    """Return the device that the SPEC names, below a layer for the block size."""
    return device.inner if isinstance(device, BlockSize) else device


def stack_of(device: BlockDevice) -> Iterator[BlockDevice]:
    """Yield the layers from the top, then the device below all of them."""
    while isinstance(device, Layer):
        yield device
        device = device.inner
    yield device


@asynccontextmanager
async def open_stack(
    spec: str, layers: Layers, *, read_only: bool = False, block_size: int | None = None
) -> AsyncIterator[BlockDevice]:
    """Open the device that a SPEC names, with layers on it; see :func:`.spec.open_spec`."""
    below = read_only or layers.reads_only
    async with open_spec(spec, read_only=below, block_size=block_size) as device:
        stack = await layers.apply(device, spec)
        if read_only:
            stack.read_only = True
        yield stack


async def stack_for_worker(
    spec: str,
    layers: Layers,
    *,
    read_only: bool = False,
    block_size: int | None = None,
    any_part: bool = False,
) -> BlockDevice:
    """Open a device with layers in a worker process; see :func:`.spec.device_for_worker`."""
    device = await device_for_worker(
        spec,
        read_only=read_only or layers.reads_only,
        block_size=block_size,
        any_part=any_part,
    )
    return await layers.apply(device, spec)


def add_layer(options: Options, name: str, description: str) -> None:
    """Add the option for one layer, which may be given several times."""
    options.add_argument(
        name, type=LayerSpec.parse, action="append", metavar="LAYER", help=description
    )


def layers_help() -> str:
    """List the layers, with their options, for the help of a command."""
    lines = ["Layers for --layer, with their options:"]
    for name, kind in KINDS.items():
        lines.append(f"  {name:<12}{kind.help}")
        options = list(kind.options)
        lines += [
            f"    {', '.join(options[first : first + 6])}" for first in range(0, len(options), 6)
        ]
    return "\n\n".join([lines[0], "\n".join(lines[1:])])


def add_layers(options: Options) -> None:
    """Add the options for layers."""
    add_layer(options, "--layer", f"{LAYER_HELP}; --cache and --overlay follow in this order")
    options.add_argument(
        "--overlay",
        type=values.text,
        metavar="PATH",
        help="write to this file, and leave what SPEC names unchanged (copy-on-write)",
    )
    options.add_argument(
        "--cache",
        type=values.size,
        metavar="SIZE",
        help="cache this much of the device in memory, or in a file",
    )
    options.add_argument(
        "--cache-path", type=values.text, metavar="PATH", help="the file of the cache"
    )
    options.add_argument(
        "--cache-policy",
        choices=get_args(Policy),
        help=f"how writes are cached (default {CACHE_POLICY})",
    )
