"""packaging/kubernetes: the manifests fit Kubernetes' schemas, their command lines our parser."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # only these tests use it

from aiovblk import __version__, cli
from aiovblk.mounting import UNMOUNT_TIMEOUT

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted((ROOT / "packaging/kubernetes").glob("*.yaml"))


def pods() -> Iterator[dict[str, Any]]:
    """The specifications of pods."""
    for path in MANIFESTS:
        for resource in yaml.safe_load_all(path.read_text()):
            spec = resource.get("spec", {})
            pod = spec.get("template", {}).get("spec", spec)
            if "containers" in pod:
                yield pod


def containers() -> Iterator[dict[str, Any]]:
    """Those that run our image."""
    for pod in pods():
        for each in [*pod.get("initContainers", []), *pod["containers"]]:
            if each["image"].startswith("aiovblk:"):
                yield each


@pytest.mark.parametrize("path", MANIFESTS, ids=[path.name for path in MANIFESTS])
def test_manifest_fits_the_schema(path: Path) -> None:
    program = Path(sys.executable).with_name("kubernetes-validate")
    assert program.exists(), "kubernetes-validate is missing: run tools/setup packages"
    done = subprocess.run(
        [program, "--strict", path], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    resources = list(yaml.safe_load_all(path.read_text()))
    assert done.stdout.count(" passed for resource ") == len(resources) > 0


def test_image_is_of_this_version() -> None:
    assert {each["image"] for each in containers()} == {f"aiovblk:{__version__}"}


@pytest.mark.parametrize("container", [each for each in containers() if "args" in each])
def test_command_line_is_one_that_the_command_takes(container: dict[str, Any]) -> None:
    words = [str(word).replace("$(NODE_NAME)", "node1") for word in container["args"]]
    parsed = cli.make_parser().parse_args(words)
    assert parsed.command is not None


def test_pod_has_time_to_unmount_before_it_is_killed() -> None:
    ours = [pod for pod in pods() if pod["containers"][0] in list(containers())]
    assert len(ours) == 2
    assert all(pod["terminationGracePeriodSeconds"] > UNMOUNT_TIMEOUT for pod in ours)
