"""The package for Debian, in its release: what it installs, its units and its rule for udev."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aiovblk.kernel import sysfs

from ..systemd.support import NODE, SIZE, UNIT, attached, run, show, until
from .conftest import dpkg

IMAGE = Path("/srv/disk.img")
PRIVATE = "/usr/lib/aiovblk"


@pytest.fixture
def image() -> Path:
    IMAGE.parent.mkdir(exist_ok=True)
    IMAGE.write_bytes(b"content of the image".ljust(4096) + bytes(SIZE - 4096))
    return IMAGE


def configure(name: str, spec: str, options: str = "") -> None:
    Path("/etc/aiovblk", f"{name}.conf").write_text(f"SPEC={spec}\nOPTIONS={options}\n")


def python(code: str) -> str:
    """What Python prints, with the path that the command has."""
    return run("python3", "-c", f"import sys; sys.path.insert(0, {PRIVATE!r}); {code}")


def test_package_is_whole_and_the_command_runs() -> None:
    # The machine's dpkg leaves out what nobody reads there.
    wrong = run("dpkg", "--verify", "aiovblk", status=None).splitlines()
    assert [line for line in wrong if not re.search(r" /usr/share/(doc|man)/", line)] == []
    assert run("dpkg-query", "-W", "-f", "${db:Status-Status}", "aiovblk") == "installed"
    version = run("dpkg-query", "-W", "-f", "${Version}", "aiovblk")
    assert run("aiovblk", "--version") == f"aiovblk {version.partition('-')[0]}"


@pytest.mark.parametrize(
    "path",
    [
        "man/man1/aiovblk.1.gz",
        "man/man1/aiovblk-mount.1.gz",
        "bash-completion/completions/aiovblk",
        "zsh/vendor-completions/_aiovblk",
        "fish/vendor_completions.d/aiovblk.fish",
    ],
)
def test_package_has_man_pages_and_completion(path: str) -> None:
    assert f"/usr/share/{path}" in run("dpkg", "--listfiles", "aiovblk").splitlines()


def test_uvloop_is_the_packages_own_and_no_other_program_gets_it() -> None:
    assert python("import uvloop; print(uvloop.__file__)").startswith(PRIVATE)
    assert "ModuleNotFoundError" in run("python3", "-c", "import uvloop", status=1)


def test_all_extension_modules_fit_this_python() -> None:
    brought = [path.name for path in Path(PRIVATE).iterdir() if (path / "__init__.py").exists()]
    assert {"aiovblk", "uvloop", "obstore"} <= set(brought)
    # What a module takes beside these is only recommended, and not installed here.
    python(f"""
import importlib
for name in {sorted(brought)!r}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name.partition(".")[0] in {brought!r}:
            raise
""")


def test_modules_are_compiled_for_this_python() -> None:
    code = "import importlib.util as u, uvloop; print(u.cache_from_source(uvloop.__file__))"
    compiled = Path(python(code))
    flags = int.from_bytes(compiled.read_bytes()[4:8], "little")
    assert flags == 0b01  # by hash, unchecked: PEP 552
    owner = run("dpkg", "--search", f"{compiled}")
    assert owner == f"aiovblk: {compiled}"


def test_unit_serves_a_device_with_a_link_by_its_identity(image: Path) -> None:
    configure("nbd3", f"file:{image}", "--identity volume-42 --survive 60")
    run("systemctl", "start", UNIT)
    run("udevadm", "settle")
    link = Path("/dev/disk/by-id/nbd-volume-42")
    until(link.is_symlink, "the link by identity")
    assert link.resolve() == Path(NODE)
    assert link.read_bytes()[:20] == b"content of the image"
    run("systemctl", "stop", UNIT)
    assert (show("ActiveState"), show("Result")) == ("inactive", "success")
    assert sysfs.is_free(3)
    run("udevadm", "settle")
    until(lambda: not link.is_symlink(), "the end of the link")


def test_device_without_an_identity_has_no_link(image: Path) -> None:
    configure("nbd3", f"file:{image}")
    run("systemctl", "start", UNIT)
    run("udevadm", "settle")
    assert "nbd" not in run("find", "/dev/disk/by-id", "-name", "nbd*", status=None)


def test_socket_unit_starts_a_server_for_the_first_client(image: Path, tmp_path: Path) -> None:
    configure("serve-disk", f"file:{image}", "--read-only")
    run("systemctl", "start", "aiovblk-serve@disk.socket")
    assert show("ActiveState", "aiovblk-serve@disk.service") == "inactive"
    copy = tmp_path / "copy.img"
    run("aiovblk", "copy", "nbd+unix:///?socket=/run/aiovblk-serve/disk.sock", f"file:{copy}")
    assert copy.read_bytes() == image.read_bytes()
    assert show("ActiveState", "aiovblk-serve@disk.service") == "active"
    run("systemctl", "stop", "aiovblk-serve@disk.socket", "aiovblk-serve@disk.service")
    assert show("Result", "aiovblk-serve@disk.service") == "success"


def test_doctor_finds_nothing_wrong() -> None:
    assert not re.search(r"^fail", run("aiovblk", "doctor"), re.MULTILINE)


def test_upgrade_leaves_devices_where_they_are(image: Path, files: list[Path]) -> None:
    configure("nbd3", f"file:{image}")
    run("systemctl", "start", UNIT)
    process = show("MainPID")
    dpkg("--install", *map(str, files))
    assert (show("ActiveState"), show("MainPID")) == ("active", process)
    assert Path(NODE).read_bytes()[:20] == b"content of the image"


def test_removal_unmounts_and_leaves_nothing_but_the_configuration(
    image: Path, files: list[Path]
) -> None:
    configure("nbd3", f"file:{image}")
    run("systemctl", "start", UNIT)
    try:
        dpkg("--remove", "aiovblk")
        assert attached() == []
        assert not Path(PRIVATE).exists()
        assert Path("/etc/aiovblk/nbd3.conf").exists()
    finally:
        dpkg("--install", *map(str, files))
