"""Optional packages (extras): the error when one is missing."""

from __future__ import annotations

import ast
import pickle
import sys
import tomllib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

import aiovblk
from aiovblk import metrics
from aiovblk.cli import main
from aiovblk.errors import Error, MissingExtraError
from aiovblk.storage import HTTPDevice, ObjectStoreDevice
from aiovblk.storage.objects.codec import ObjectCodec
from aiovblk.storage.objects.opening import from_url

from ..support.syntax_trees import syntax_tree

PACKAGE = Path(aiovblk.__file__).parent
PROJECT = PACKAGE.parent / "pyproject.toml"

# Which package of an extra's requirement is imported by what name.
EXTRA_OF = {
    "obstore": "objectstore",
    "zstandard": "objectstore",
    "cryptography": "objectstore",
    "botocore": "aws",
    "aiohttp": "http",
    "yarl": "http",
    "prometheus_client": "metrics",
    "opentelemetry": "otel",
    "rich": "cli",  # without it top is plain text
    "tqdm": "cli",  # without it there is no bar
}
ALWAYS_THERE = {"anyio", "uvloop"}
OWN = {"aiovblk", "netlink"}  # a file that the watchdog, which imports no package, has beside it
COMES_WITH = {"botocore": "boto3", "yarl": "aiohttp"}


async def _open_object_store() -> None:
    await ObjectStoreDevice.open("s3://bucket/disk")


async def _open_folder() -> None:
    await ObjectStoreDevice.open("file:///nowhere")


async def _open_profile() -> None:
    from_url("s3://bucket/disk")


async def _open_web() -> None:
    await HTTPDevice.open("http://127.0.0.1/x")


async def _compress() -> None:
    ObjectCodec(bytes(16), compress=True)


async def _encrypt() -> None:
    ObjectCodec(bytes(16), key=bytes(32))


async def _collect() -> None:
    metrics.prometheus_collector({})


async def _observe() -> None:
    metrics.register_otel({})


USES: list[tuple[str, Callable[[], Awaitable[None]]]] = [
    ("obstore", _open_object_store),
    ("obstore", _open_folder),
    ("botocore", _open_profile),
    ("aiohttp", _open_web),
    ("zstandard", _compress),
    ("cryptography", _encrypt),
    ("prometheus_client", _collect),
    ("opentelemetry", _observe),
]


def _hide(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a package look as if it were not installed, for modules that have imported it too."""
    ours = ("aiovblk.metrics.prometheus", "aiovblk.metrics.otel")
    for name in list(sys.modules):
        if name.partition(".")[0] == package or name in ours:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = key\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.mark.usefixtures("profile")
@pytest.mark.parametrize(("package", "use"), USES, ids=lambda each: getattr(each, "__name__", each))
async def test_missing_package_is_named_with_the_command_that_installs_it(
    package: str, use: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _hide(package, monkeypatch)
    with pytest.raises(MissingExtraError) as caught:
        await use()
    extra = EXTRA_OF[package]
    assert caught.value.extra == extra
    assert f"the package {package} is not installed; pip install 'aiovblk[{extra}]'" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "package"),
    [("s3://bucket/disk", "obstore"), ("folder:x", "obstore"), ("http://127.0.0.1/x", "aiohttp")],
)
def test_command_says_it_in_one_line(
    spec: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    _hide(package, monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert main(["copy", spec, "file:target"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("aiovblk: ")
    assert f"pip install 'aiovblk[{EXTRA_OF[package]}]'" in line


def test_bar_is_all_that_is_missing_without_tqdm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _hide("tqdm", monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert main(["copy", "memory:4K", "file:target"]) == 0
    assert (tmp_path / "target").read_bytes() == bytes(4096)


def test_exception_is_one_of_ours_and_an_import_error() -> None:
    error: MissingExtraError = pickle.loads(pickle.dumps(MissingExtraError("reason", "http")))
    assert {Error, ImportError} <= set(type(error).__mro__)
    assert (str(error), error.extra) == ("reason", "http")


# No import is forgotten


def _imported() -> Iterator[str]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(syntax_tree(path)):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                yield node.module.partition(".")[0]


def test_every_package_that_is_imported_belongs_to_an_extra() -> None:
    typing_only = {"typing_extensions"}
    known = sys.stdlib_module_names | ALWAYS_THERE | set(EXTRA_OF) | typing_only | OWN
    assert set(_imported()) - known == set()


def test_every_extra_brings_what_is_said_to_come_with_it() -> None:
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRA_OF.items():
        wanted = COMES_WITH.get(package, package).replace("_", "-")
        assert any(each.startswith(wanted) for each in extras[extra]), (package, extra)
