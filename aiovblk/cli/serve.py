"""``aiovblk serve``: serve devices over the NBD network protocol until a signal."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

from ..device import BlockDevice, DeviceFactory
from ..server import DRAIN_TIMEOUT, HANDSHAKE_TIMEOUT, MAX_CONNECTIONS, Export, Server, serve
from ..storage.http import redact_url
from ..tls import psk_server_context, server_context
from . import values
from .errors import SpecError, UsageError
from .layers import Layers, open_stack
from .options import (
    SPEC_HELP,
    add_block_size,
    add_handling,
    add_number,
    add_seconds,
    add_workers,
)
from .runner import async_command, run_until_signal, warning_of_slow_requests
from .spec import device_for_worker
from .stdio import standard_streams

CERTIFICATES_HELP = "server-cert.pem and server-key.pem, for TLS; ca-cert.pem, to verify clients"

MAX_INHERITED = 1 << 16
"""Sockets that a service manager may pass; more than its limit of open files (RLIMIT_NOFILE)."""

SD_LISTEN_FDS_START = 3
"""The descriptor of the first socket that systemd passes (socket activation)."""


def configure(parser: ArgumentParser) -> None:
    """Describe the command and its options."""
    parser.description = (
        "Serve devices over the NBD protocol until Ctrl-C or SIGTERM, which let requests in flight "
        "end; a second signal ends them by force. Listens on localhost, port 10809, by default, or "
        "on the sockets that systemd passes (socket activation). Prints `serving URI` for each "
        "export once it can be used."
    )
    parser.add_argument(
        "specs",
        metavar="SPEC | NAME=SPEC",
        nargs="+",
        help=f"NAME is the export that clients ask for; SPEC is {SPEC_HELP}",
    )
    _add_listening(parser)
    parser.add_argument(
        "--description", default="", metavar="TEXT", help="description of the exports"
    )
    _add_tls(parser)
    add_number(parser, "--max-connections", MAX_CONNECTIONS, "clients at the same time")
    add_block_size(parser)
    add_handling(parser)
    add_workers(parser)
    add_seconds(
        parser, "--handshake-timeout", HANDSHAKE_TIMEOUT, "for a client to choose its export"
    )
    add_seconds(
        parser, "--idle-timeout", None, "for a client without requests; then it is disconnected"
    )
    add_seconds(parser, "--drain-timeout", DRAIN_TIMEOUT, "for requests in flight at shutdown")
    parser.set_defaults(command=async_command(serve_until_signal))


def _add_listening(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--socket", type=values.text, metavar="PATH", help="listen on a Unix socket"
    )
    parser.add_argument("--host", metavar="H", help="listen on this address; '' for all")
    parser.add_argument(
        "--port",
        type=values.count(minimum=0, maximum=65535),
        metavar="N",
        help="listen on this port; 0 for any",
    )
    parser.add_argument(
        "--stdio", action="store_true", help="serve one client at standard input and output"
    )


def _add_tls(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--tls-certificates", type=values.text, metavar="DIRECTORY", help=CERTIFICATES_HELP
    )
    parser.add_argument(
        "--tls-psk-file",
        type=values.text,
        metavar="FILE",
        help="pre-shared keys for TLS, lines of USER:HEXKEY",
    )
    parser.add_argument(
        "--tls",
        choices=["require", "offer"],
        help="whether clients must use TLS (default: require)",
    )
    parser.add_argument(
        "--tls-verify-peer", action="store_true", help="accept only clients with a certificate"
    )


async def serve_until_signal(arguments: Namespace) -> None:
    """Serve ``arguments.specs``; return once all clients are disconnected."""
    named = parse_exports(arguments.specs)
    _check_files(arguments, named)
    await run_until_signal(
        partial(_serve, arguments, named), lambda live, force: live.close(force=force)
    )


async def _serve(arguments: Namespace, named: dict[str, str], live: asyncio.Future[Server]) -> None:
    async with AsyncExitStack() as stack:
        sockets = _sockets(arguments, stack)
        exports = {
            name: Export(
                await _open_device(arguments, spec, stack), description=arguments.description
            )
            for name, spec in named.items()
        }
        server = await stack.enter_async_context(
            serve(
                exports,
                unix=arguments.socket,
                host=arguments.host,
                port=arguments.port,
                sockets=sockets,
                tls=await _tls(arguments),
                require_tls=arguments.tls != "offer",
                workers=arguments.workers,
                max_connections=arguments.max_connections,
                handshake_timeout=arguments.handshake_timeout,
                idle_timeout=arguments.idle_timeout,
                drain_timeout=arguments.drain_timeout,
                concurrency=arguments.concurrency,
                handler_timeout=arguments.handler_timeout,
                slow_request=arguments.slow_request,
                busy_poll=arguments.busy_poll,
            )
        )
        stack.enter_context(warning_of_slow_requests(server.events()))
        live.set_result(server)
        # The program that passed the sockets often reads the standard output itself.
        for uri in server.uris:
            print(f"serving {uri}", flush=True, file=sys.stderr if sockets else sys.stdout)
        await server.wait()


async def _open_device(
    arguments: Namespace, spec: str, stack: AsyncExitStack
) -> BlockDevice | DeviceFactory:
    layers = Layers.of(arguments)
    if arguments.workers is None:
        opening = open_stack(
            spec, layers, read_only=arguments.read_only, block_size=arguments.block_size
        )
        return await stack.enter_async_context(opening)
    factory = partial(
        device_for_worker,
        spec,
        read_only=arguments.read_only,
        block_size=arguments.block_size,
        any_part=True,
    )
    # Opened once here, so that errors show at once, and not when the first client connects.
    device = await factory()
    await device.unmount()
    if not device.multi_conn:
        raise SpecError(
            f"{redact_url(spec)} cannot have workers: each client would get a device of its own,"
            " and nothing says that they are one disk; if they are, declare multi_conn = True"
        )
    return factory


def parse_exports(specs: list[str]) -> dict[str, str]:
    """Return the SPECs by the name of their export.

    Args:
        specs: either one SPEC, whose export has the empty name, or several of the form NAME=SPEC.

    Raises:
        UsageError: a name is missing, or occurs twice.

    """
    exports: dict[str, str] = {}
    for each in specs:
        name, equals, spec = each.partition("=")
        if not equals or ":" in name:  # the sign is part of a URI, say
            name, spec = "", each
        if name in exports:
            reason = f"{name!r} occurs twice" if name else "there is more than one SPEC"
            raise UsageError(f"{reason}; write NAME=SPEC for each, with names that differ")
        exports[name] = spec
    return exports


def _check_files(arguments: Namespace, named: dict[str, str]) -> None:
    """Refuse a cache file or an overlay file for several devices."""
    for option, path in (
        ("--overlay", arguments.overlay),
        ("--cache-path", arguments.cache_path),
    ):
        if path is not None and len(named) > 1:
            raise UsageError(
                f"{option} names one file, which is for one SPEC only; serve each SPEC by its own"
                " command"
            )


def _sockets(arguments: Namespace, stack: AsyncExitStack) -> list[socket.socket] | None:
    chosen = (
        arguments.socket is not None or arguments.host is not None or arguments.port is not None
    )
    passed = _passed_by_systemd()
    if bool(passed) + chosen + arguments.stdio > 1:
        raise UsageError(
            "--stdio, sockets from systemd (LISTEN_FDS), and --socket, --host, --port"
            " exclude each other"
        )
    if arguments.stdio:
        return [stack.enter_context(standard_streams())]
    return passed or None


def _passed_by_systemd() -> list[socket.socket]:
    """Take the sockets of socket activation (sd_listen_fds(3)); children do not inherit them."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return []
    number = os.environ.pop("LISTEN_FDS", "0")
    try:
        count = values.count(minimum=0, maximum=MAX_INHERITED)(number)
    except ArgumentTypeError as exc:
        raise UsageError(f"LISTEN_FDS {exc}") from None
    os.environ.pop("LISTEN_FDNAMES", None)
    sockets = [socket.socket(fileno=SD_LISTEN_FDS_START + number) for number in range(count)]
    for sock in sockets:
        sock.set_inheritable(False)
    return sockets


async def _tls(arguments: Namespace) -> ssl.SSLContext | Callable[[], ssl.SSLContext] | None:
    load = _tls_loader(arguments)
    if load is None:
        return None
    context = await asyncio.to_thread(load)  # so that errors show at once
    return context if arguments.workers is None else load


def _tls_loader(arguments: Namespace) -> Callable[[], ssl.SSLContext] | None:
    if arguments.tls_certificates is not None and arguments.tls_psk_file is not None:
        raise UsageError("--tls-certificates and --tls-psk-file exclude each other")
    if arguments.tls_verify_peer and arguments.tls_certificates is None:
        raise UsageError("--tls-verify-peer needs --tls-certificates DIRECTORY, with ca-cert.pem")
    if arguments.tls_certificates is not None:
        return partial(
            server_context, arguments.tls_certificates, verify_peer=arguments.tls_verify_peer
        )
    if arguments.tls_psk_file is not None:
        return partial(psk_server_context, arguments.tls_psk_file)
    if arguments.tls is not None:
        raise UsageError("TLS needs --tls-certificates DIRECTORY or --tls-psk-file FILE")
    return None
