"""``aiovblk serve --user`` and ``--group``: which identity that is, and what is done by it."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiovblk
from aiovblk.cli import privileges
from aiovblk.cli.errors import SpecError, UsageError
from aiovblk.cli.privileges import Identity

from ...support.command_process import end, line, running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.deadline(120),
    pytest.mark.one_loop,  # they choose their own
]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing the user takes root")

NOBODY = 65534


def test_neither_is_no_identity() -> None:
    assert Identity.find(None, None) is None


def test_user_by_name_or_number_has_their_own_groups() -> None:
    account = pwd.getpwuid(os.getuid())
    groups = tuple(os.getgrouplist(account.pw_name, account.pw_gid))
    expected = Identity(account.pw_uid, account.pw_gid, groups)
    assert Identity.find(account.pw_name, None) == expected
    assert Identity.find(f"{account.pw_uid}", None) == expected


def test_group_replaces_the_users_own() -> None:
    account = pwd.getpwuid(os.getuid())
    found = Identity.find(account.pw_name, "4711")
    assert found is not None
    assert (found.user, found.group) == (account.pw_uid, 4711)
    assert 4711 in found.groups
    assert Identity.find(None, "4711") == Identity(None, 4711, (4711,))


def test_number_without_a_name_needs_a_group() -> None:
    assert Identity.find("4000000", "7") == Identity(4000000, 7, (7,))
    with pytest.raises(UsageError, match=r"user 4000000 has no group.*: add --group GROUP"):
        Identity.find("4000000", None)


@pytest.mark.parametrize(
    "user", ["no-such-user", f"{2**32 - 1}", "9" * 30, "9" * 5000, "-1", "\u0663"]
)
def test_user_that_there_is_not_is_refused(user: str) -> None:
    with pytest.raises(UsageError, match="there is no user"):
        Identity.find(user, "0")


@pytest.mark.parametrize("group", ["no-such-group", f"{2**32 - 1}", "9" * 30, "9" * 5000, "\u0663"])
def test_group_that_there_is_not_is_refused(group: str) -> None:
    with pytest.raises(UsageError, match="there is no group"):
        Identity.find("0", group)


def test_changing_the_user_takes_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SpecError, match="need root: start it as that user instead"):
        Identity(0, 0, (0,)).check()


def test_system_that_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(groups: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(privileges.os, "setgroups", refuse)  # type: ignore[attr-defined]
    with pytest.raises(SpecError, match="cannot change to them: Operation not permitted"):
        Identity(0, 0, (0,)).assume()


IDENTITY = """
import os, aiovblk
class Disk(aiovblk.BlockDevice):
    blocks = 1
    def __init__(self):
        print(*os.getresuid(), *os.getresgid(), *os.getgroups(), flush=True)
    async def read(self, offset, length):
        return bytes(length)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may look into; every pytest that starts closes tmp_path to them."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@as_root
async def test_disk_is_opened_and_served_as_that_user(open_folder: Path) -> None:
    """The sockets and the file with the process id are root's to make."""
    closed = open_folder / "closed"
    closed.mkdir(mode=0o755)
    (open_folder / "disk.py").write_text(IDENTITY)
    arguments = ("--socket", closed / "s", "--pidfile", closed / "pid")
    async with running(
        *("serve", f"{open_folder}/disk.py:Disk", *arguments),
        *("--user", f"{NOBODY}", "--group", f"{NOBODY}"),
    ) as process:
        assert (await line(process.stdout)).split() == [f"{NOBODY}"] * 7
        uri = (await line(process.stdout)).removeprefix("serving ")
        assert (closed / "s").stat().st_uid == NOBODY
        assert (closed / "pid").read_text() == f"{process.pid}\n"
        async with aiovblk.connect(uri) as remote:
            assert bytes(await remote.read(0, 4096)) == bytes(4096)
        process.send_signal(signal.SIGTERM)
        assert (await end(process))[0] == 0
    # What that user may not remove stays; the next server replaces it.
    assert {path.name for path in closed.iterdir()} == {"s", "pid"}


@as_root
async def test_port_that_only_root_may_bind_is_bound_before() -> None:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 809))
        except OSError as exc:
            pytest.skip(f"port 809 cannot be bound here: {exc.strerror}")
    user = ("--user", f"{NOBODY}", "--group", f"{NOBODY}")
    async with running(
        "serve", "memory:1M", "--host", "127.0.0.1", "--port", "809", *user, "--run", "id -u"
    ) as process:
        assert (await end(process))[:2] == (0, f"{NOBODY}\n")


@as_root
async def test_command_of_that_user_reaches_the_private_socket() -> None:
    user = ("--user", f"{NOBODY}", "--group", f"{NOBODY}")
    show = 'echo "$unixsocket"; stat -c "%u %g" "$unixsocket" "${unixsocket%/*}"'
    async with running("serve", "memory:1M", *user, "--run", show) as process:
        status, output, errors = await end(process)
    path, *owners = output.splitlines()
    assert (status, owners) == (0, [f"{NOBODY} {NOBODY}"] * 2), errors
    assert not os.path.exists(os.path.dirname(path))


@as_root
async def test_disk_that_the_user_may_not_read_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    image.chmod(0o600)
    user = ("--user", f"{NOBODY}", "--group", f"{NOBODY}")
    socket_path = tmp_path / "s"
    async with running("serve", f"file:{image}", "--socket", socket_path, *user) as process:
        status, _, errors = await end(process)
    assert (status, "Permission denied" in errors) == (1, True)
