"""``aiovblk serve --run``, ``--pidfile``, ``--user`` and ``--group``, as processes."""

from __future__ import annotations

import asyncio
import errno
import os
import pty
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import aiovblk
from aiovblk.cli import allocator, privileges
from aiovblk.cli import pidfile as pidfiles
from aiovblk.cli.child import variables_of
from aiovblk.cli.errors import SpecError, UsageError
from aiovblk.cli.privileges import Identity

from ...support.command_process import end, line, running

pytestmark = [pytest.mark.deadline(120), pytest.mark.one_loop]  # they choose their own

LOOPS = ["asyncio", "uvloop"]

COPY = f'{sys.executable} -m aiovblk copy "$uri" file:copy --no-progress'

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing the user takes root")

NOBODY = 65534


# --run


@pytest.mark.parametrize("loop", LOOPS)
async def test_command_uses_the_server_and_ends_it(loop: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"a" * 8192)
    async with running("serve", f"file:{image}", "--run", COPY, "--loop", loop, cwd=tmp_path) as it:
        assert await end(it) == (0, "", "")
    assert (tmp_path / "copy").read_bytes() == image.read_bytes()


@pytest.mark.parametrize(
    ("command", "status"), [("exit 7", 7), ("kill -9 $$", 137), ("no-such-program", 127)]
)
async def test_exit_status_is_that_of_the_command(command: str, status: int) -> None:
    async with running("serve", "memory:1M", "--run", command) as process:
        assert (await end(process))[0] == status


async def test_variables_tell_where_the_server_is(tmp_path: Path) -> None:
    show = (
        'echo "$uri|$nbd|$unixsocket|$port|$exportname|$tls"; stat -c %a "$(dirname "$unixsocket")"'
    )
    async with running("serve", "x=memory:1M", "--run", show) as process:
        status, output, _ = await end(process)
    uri, nbd, unix, port, name, tls = output.splitlines()[0].split("|")
    assert (status, uri, nbd) == (0, f"nbd+unix:///x?socket={unix}", uri)
    assert (port, name, tls) == ("", "x", "")
    # A directory of its own, which is gone.
    assert output.splitlines()[1] == "700"
    assert not os.path.exists(os.path.dirname(unix))


async def test_command_may_be_given_an_address() -> None:
    async with running("serve", "memory:1M", "--port", "0", "--run", "echo $uri $port") as process:
        status, output, _ = await end(process)
    uri, port = output.split()
    assert (status, uri.rpartition(":")[2]) == (0, f"{port}/")


def test_variables_of_tls() -> None:
    assert variables_of("nbds://host:10810/x")["tls"] == "2"
    assert variables_of("nbd://host/x")["port"] == "10809"
    assert "tls" not in variables_of("nbd://host/x")


@pytest.mark.parametrize("loop", LOOPS)
async def test_signal_ends_server_and_command(loop: str) -> None:
    waiting = "echo $$; exec sleep 3600"
    async with running("serve", "memory:1M", "--run", waiting, "--loop", loop) as process:
        child = int(await line(process.stdout))
        process.send_signal(signal.SIGTERM)
        assert (await end(process))[0] == 128 + signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


@pytest.mark.parametrize("loop", LOOPS)
async def test_signal_ends_what_the_shell_has_started(loop: str) -> None:
    """A shell that runs several commands waits for each in a process of its own."""
    nested = "sh -c 'echo $$; exec sleep 100'; echo survived"
    arguments = ("serve", "memory:1M", "--run", nested, "--loop", loop)
    async with running(*arguments, start_new_session=True) as process:
        child = int(await line(process.stdout))
        process.send_signal(signal.SIGTERM)
        assert await end(process) == (128 + signal.SIGTERM, "", "")  # the end of the output, too
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


async def test_processes_that_outlive_the_shell_are_killed() -> None:
    script = (
        "import aiovblk.cli.child as child, sys; child.TERMINATE_TIMEOUT = 0.05;"
        "from aiovblk.cli import main; sys.exit(main())"
    )
    stubborn = """sh -c 'trap "" TERM; echo ready; exec sleep 100'; true"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, "serve", "memory:1M", "--run", stubborn),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert await line(process.stdout) == "ready"
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 128 + signal.SIGTERM
    await process.communicate()  # which waits for the end of all that may write


async def test_command_that_may_not_be_signalled_is_an_error() -> None:
    """As ``exec sudo ...``, which belongs to root."""
    script = (
        "import os, signal, sys\n"
        "killpg = os.killpg\n"
        "def refuse(group, number):\n"
        "    killpg(group, signal.SIGKILL)\n"
        "    raise PermissionError(1, 'Operation not permitted')\n"
        "os.killpg = refuse\n"
        "from aiovblk.cli import main; sys.exit(main())"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, "serve", "memory:1M", "--run", "echo ready; cat"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert await line(process.stdout) == "ready"
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 1  # before its input is closed, of which cat ends by itself
    assert (await end(process))[2] == "aiovblk: Operation not permitted\n"


async def test_processes_that_the_server_inherits_are_reaped() -> None:
    """As process 1 of a container it would wait for those that nobody has reaped."""
    script = (
        "import aiovblk.cli.child as child, sys, ctypes; child.TERMINATE_TIMEOUT = 3600.0;"
        "ctypes.CDLL(None).prctl(36, 1, 0, 0, 0);"  # PR_SET_CHILD_SUBREAPER
        "from aiovblk.cli import main; sys.exit(main())"
    )
    nested = "sh -c 'echo ready; exec sleep 100'; true"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, "serve", "memory:1M", "--run", nested),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert await line(process.stdout) == "ready"
    process.send_signal(signal.SIGTERM)
    assert (await end(process))[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize("loop", LOOPS)
async def test_command_has_the_environment_and_signals_of_the_caller(loop: str) -> None:
    """Not the settings of malloc that are ours; SIGHUP stays ignored, as nohup has it."""
    show = "env | grep ^MALLOC_; kill -HUP $$; cd /proc/$$/fd; echo *"
    environ = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    command = f"trap '' HUP; exec {sys.executable} -m aiovblk serve memory:1M --loop {loop}"
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", f'{command} --run "$1"', "sh", show),
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[writing],
    )
    os.close(reading)
    os.close(writing)
    status, output, errors = await end(process)
    assert (status, errors) == (0, "")
    assert set(output.split()) <= {"0", "1", "2", "3"}  # 3: of the shell, which lists them


def test_settings_of_malloc_that_the_user_has_made_are_handed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(allocator, "_added", {"MALLOC_TRIM_THRESHOLD_"})
    environ = {"MALLOC_TRIM_THRESHOLD_": "1", "MALLOC_MMAP_THRESHOLD_": "2"}
    assert allocator.environment_for_others(environ) == {"MALLOC_MMAP_THRESHOLD_": "2"}


def test_command_stays_in_the_foreground_of_a_terminal() -> None:
    """There it may read from the terminal, and Ctrl-C reaches it."""
    ours, theirs = pty.openpty()
    script = "import os, sys; os.login_tty(0); from aiovblk.cli import main; sys.exit(main())"
    show = 'read answer; echo "got $answer"; test $(ps -o pgid= $$) = $PPID'
    process = subprocess.Popen(
        [sys.executable, "-c", script, "serve", "memory:1M", "--run", show],
        stdin=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.write(ours, b"it\n")
    assert process.wait(60) == 0
    os.close(ours)


async def test_command_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = (
        "import aiovblk.cli.child as child, sys; child.TERMINATE_TIMEOUT = 0.05;"
        "from aiovblk.cli import main; sys.exit(main())"
    )
    stubborn = "trap '' TERM; echo ready; exec cat"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, "serve", "memory:1M", "--run", stubborn),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert await line(process.stdout) == "ready"
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 128 + signal.SIGKILL
    await process.communicate()


async def test_second_signal_does_not_wait_for_a_handler(tmp_path: Path) -> None:
    module = "import aiovblk, asyncio\nclass Disk(aiovblk.BlockDevice):\n    blocks = 1\n"
    module += "    async def read(self, offset, length):\n"
    module += "        print('reading', flush=True)\n        await asyncio.sleep(3600)\n"
    (tmp_path / "disk.py").write_text(module)
    async with running("serve", "disk.py:Disk", "--run", COPY, cwd=tmp_path) as process:
        assert await line(process.stdout) == "reading"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)  # two of one kind may be delivered as one
        assert (await end(process))[0] != 0


async def test_stdio_excludes_a_command() -> None:
    async with running("serve", "memory:1M", "--stdio", "--run", "true") as process:
        status, _, errors = await end(process)
    assert (status, "--run needs a socket" in errors) == (2, True)


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("nbdinfo", "nbdinfo --size $uri"),
        ("qemu-img", 'qemu-img info --output=json "$uri" | grep virtual-size | tr -dc 0-9'),
    ],
)
async def test_programs_of_others_use_it(program: str, command: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    async with running("serve", "memory:64M", "--run", command) as process:
        status, output, errors = await end(process)
    assert (status, output.strip()) == (0, f"{64 << 20}"), errors


# --pidfile


async def test_pidfile_is_there_while_clients_can_connect(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("1234567\n")
    path.chmod(0o600)
    arguments = ("serve", "memory:1M", "--socket", tmp_path / "s", "--pidfile", path)
    async with running(*arguments) as process:
        await line(process.stdout)
        assert path.read_text() == f"{process.pid}\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        process.send_signal(signal.SIGTERM)
        assert (await end(process))[0] == 0
    assert list(tmp_path.iterdir()) == []


async def test_pidfile_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "pid"
    async with running("serve", "memory:1M", "--port", "0", "--pidfile", path) as process:
        status, output, errors = await end(process)
    assert (status, output) == (1, "")
    assert "No such file or directory" in errors


def test_pidfile_of_another_process_stays(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pidfiles.pidfile(str(path)):
        path.write_text("1\n")
    assert path.read_text() == "1\n"


def test_pidfile_that_is_gone_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pidfiles.pidfile(str(path)):
        path.unlink()


def test_pidfile_does_not_write_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("keep")
    (tmp_path / "pid").symlink_to(tmp_path / "target")
    with pidfiles.pidfile(str(tmp_path / "pid")):
        assert not (tmp_path / "pid").is_symlink()
    assert (tmp_path / "target").read_text() == "keep"


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_pidfile_replaces_nothing_but_a_file(
    make: Callable[[Path], None], linked: bool, tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    make(path)
    if linked:
        path = tmp_path / "link"
        path.symlink_to("pid")
    before = sorted(tmp_path.iterdir())
    with (
        pytest.raises(SpecError, match="which is no regular file: name another"),
        pidfiles.pidfile(str(path)),
    ):
        pass
    assert sorted(tmp_path.iterdir()) == before
    assert path.is_symlink() == linked


def test_pidfile_that_cannot_be_completed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    with (
        pytest.raises(OSError, match="No space left"),
        pidfiles.pidfile(str(tmp_path / "pid")),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_mode_of_a_pidfile_is_not_set_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "chmod")
    with pidfiles.pidfile(str(tmp_path / "pid")):
        assert stat.S_IMODE((tmp_path / "pid").stat().st_mode) == 0o644


@pytest.mark.parametrize("replace", [os.mkfifo, lambda path: path.write_bytes(b"\xff\xfe")])
def test_whatever_has_replaced_a_pidfile_stays(
    replace: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    with pidfiles.pidfile(str(path)):
        path.unlink()
        replace(path)
    assert path.exists()


def test_pidfile_that_another_process_has_replaced_by_the_same_stays(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pidfiles.pidfile(str(path)):
        (tmp_path / "other").write_text(path.read_text())
        (tmp_path / "other").replace(path)
    assert path.exists()


# --user, --group


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
