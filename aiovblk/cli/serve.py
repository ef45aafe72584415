"""``aiovblk serve``: serve devices over the NBD network protocol until a signal."""

from __future__ import annotations

import asyncio
import ssl
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

from ..device import BlockDevice, DeviceFactory
from ..server import DRAIN_TIMEOUT, HANDSHAKE_TIMEOUT, MAX_CONNECTIONS, Export, Server, serve
from ..storage.http import redact_url
from ..tls import psk_server_context, server_context
from . import values
from .bitmap import taking_bitmap_commands
from .child import run_beside, variables_of
from .errors import SpecError, UsageError
from .layers import Layers, open_stack, stack_for_worker
from .listening import Listening
from .options import SPEC_HELP, add_device, add_handling, add_loop, add_number, add_seconds
from .parser import CommandParser
from .pidfile import pidfile
from .privileges import Identity
from .runner import async_command, run_until_signal, warning_of_slow_requests

CERTIFICATES_HELP = "server-cert.pem and server-key.pem, for TLS; ca-cert.pem, to verify clients"


def configure(parser: CommandParser) -> None:
    """Describe the command and its options."""
    parser.usage = "%(prog)s [OPTION...] SPEC | NAME=SPEC..."
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
        help=f"what to serve: NAME is the export that clients ask for; SPEC is {SPEC_HELP}",
    )
    _add_listening(parser)
    _add_process(parser)
    _add_tls(parser)
    add_device(parser)
    add_handling(parser)
    _add_limits(parser)
    add_loop(parser)
    parser.show_examples(
        ("a disk in memory, on a Unix socket", "aiovblk serve memory:1G --socket /run/disk.sock"),
        (
            "two exports, to all the network, by TLS",
            "aiovblk serve a=file:a.img b=s3://bucket/b --host '' --tls-certificates /etc/pki/disk",
        ),
        (
            "for the length of one command",
            "aiovblk serve s3://bucket/disk --run 'qemu-img convert \"$uri\" disk.qcow2'",
        ),
    )
    parser.set_defaults(command=async_command(serve_until_signal))


def _add_listening(parser: CommandParser) -> None:
    group = parser.add_argument_group("listening")
    group.add_argument("--socket", type=values.text, metavar="PATH", help="listen on a Unix socket")
    group.add_argument("--host", metavar="H", help="listen on this address; `''` for all")
    group.add_argument(
        "--port",
        type=values.count(minimum=0, maximum=65535),
        metavar="N",
        help="listen on this port; 0 for any",
    )
    group.add_argument(
        "--stdio", action="store_true", help="serve one client at standard input and output"
    )
    group.add_argument(
        "--description", default="", metavar="TEXT", help="description of the exports"
    )


def _add_process(parser: CommandParser) -> None:
    group = parser.add_argument_group("process")
    group.add_argument(
        "--run",
        type=values.text,
        metavar="COMMAND",
        help="run a shell command with $uri (also as $nbd), $unixsocket or $port, $exportname and, "
        "where TLS is required, $tls (of the first SPEC) in its environment, and end with it, with "
        "its exit status; listens on a private Unix socket by default",
    )
    group.add_argument(
        "--pidfile",
        type=values.text,
        metavar="PATH",
        help="write the number of this process to this file while clients can connect; an older "
        "regular file is replaced. With --user or --group it is written before SPEC is opened",
    )
    group.add_argument(
        "--user",
        type=values.text,
        metavar="USER",
        help="go on as this user, in all their groups, once the sockets are bound and the keys for "
        "TLS are read; SPEC is opened as this user. The environment stays as it is, HOME too",
    )
    group.add_argument(
        "--group",
        type=values.text,
        metavar="GROUP",
        help="go on in this group instead of the user's own",
    )


def _add_limits(parser: CommandParser) -> None:
    group = parser.add_argument_group("limits for clients")
    add_number(group, "--max-connections", MAX_CONNECTIONS, "clients at the same time")
    add_seconds(
        group, "--handshake-timeout", HANDSHAKE_TIMEOUT, "for a client to choose its export"
    )
    add_seconds(
        group, "--idle-timeout", None, "for a client without requests; then it is disconnected"
    )
    add_seconds(group, "--drain-timeout", DRAIN_TIMEOUT, "for requests in flight at shutdown")
    parser.set_variables(
        max_connections="AIOVBLK_MAX_CONNECTIONS",
        idle_timeout="AIOVBLK_IDLE_TIMEOUT",
        drain_timeout="AIOVBLK_DRAIN_TIMEOUT",
    )


def _add_tls(parser: CommandParser) -> None:
    group = parser.add_argument_group("TLS")
    group.add_argument(
        "--tls-certificates", type=values.text, metavar="DIRECTORY", help=CERTIFICATES_HELP
    )
    group.add_argument(
        "--tls-psk-file",
        type=values.text,
        metavar="FILE",
        help="pre-shared keys for TLS, lines of USER:HEXKEY",
    )
    group.add_argument(
        "--tls",
        choices=["require", "offer"],
        help="whether clients must use TLS (default: require)",
    )
    group.add_argument(
        "--tls-verify-peer", action="store_true", help="accept only clients with a certificate"
    )


async def serve_until_signal(arguments: Namespace) -> int | None:
    """Serve ``arguments.specs``; return once all clients are disconnected.

    Returns:
        The exit status of the command that ``--run`` gives.

    """
    named = parse_exports(arguments.specs)
    if len(named) > 1:
        Layers.of(arguments).check_shareable()
    identity = Identity.find(arguments.user, arguments.group)
    return await run_until_signal(
        partial(_serve, arguments, named, identity),
        lambda live, force: live.close(force=force),
    )


async def _serve(
    arguments: Namespace,
    named: dict[str, str],
    identity: Identity | None,
    live: asyncio.Future[Server],
) -> int | None:
    async with AsyncExitStack() as stack:
        listening = Listening.of(arguments, stack)
        tls = await _tls(arguments)
        if identity is not None:
            identity.check()
            await listening.bind(stack, identity)
            _write_pidfile(arguments, stack)
            identity.assume()
        exports = {
            name: Export(
                await _open_device(arguments, spec, stack), description=arguments.description
            )
            for name, spec in named.items()
        }
        server = await stack.enter_async_context(
            serve(
                exports,
                unix=listening.unix,
                host=listening.host,
                port=listening.port,
                sockets=listening.sockets,
                tls=tls,
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
        server.file = server.file or listening.file
        stack.enter_context(warning_of_slow_requests(server.events()))
        devices = [each.device for each in exports.values()]
        await stack.enter_async_context(taking_bitmap_commands(devices))
        if identity is None:
            _write_pidfile(arguments, stack)
        live.set_result(server)
        if arguments.run is not None:
            return await run_beside(server, arguments.run, variables_of(server.uris[0]))
        # The program that passed the sockets often reads the standard output itself.
        for uri in server.uris:
            print(f"serving {uri}", flush=True, file=sys.stderr if listening.passed else sys.stdout)
        await server.wait()
        return None


def _write_pidfile(arguments: Namespace, stack: AsyncExitStack) -> None:
    if arguments.pidfile is not None:
        stack.enter_context(pidfile(arguments.pidfile))


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
        stack_for_worker,
        spec,
        layers,
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
