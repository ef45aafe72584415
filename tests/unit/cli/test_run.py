"""``aiovblk serve --run``, as a process: the command that uses the server, and its end."""

from __future__ import annotations

import asyncio
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aiovblk.cli import allocator
from aiovblk.cli.child import variables_of

from ...support.command_process import end, line, running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.deadline(120),
    pytest.mark.one_loop,  # they choose their own
]

LOOPS = ["asyncio", "uvloop"]

COPY = f'{sys.executable} -m aiovblk copy "$uri" file:copy --no-progress'


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
        ("qemu-img", 'qemu-img info --output=json "$uri" | grep -m1 virtual-size | tr -dc 0-9'),
    ],
)
async def test_programs_of_others_use_it(program: str, command: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    async with running("serve", "memory:64M", "--run", command) as process:
        status, output, errors = await end(process)
    assert (status, output.strip()) == (0, f"{64 << 20}"), errors
