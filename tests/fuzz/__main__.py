"""Fuzz the parsers: ``tools/fuzz [TARGET] [--inputs N] [--keep]``.

Guided by coverage where atheris is installed (``pip install -e .[fuzz]``), else by chance. What is
found on the way is left in build/fuzz/TARGET, an input that fails in build/fuzz.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

NAMES = ("server_handshake", "client_handshake", "requests", "replies")
CORPUS = Path(__file__).parent / "corpus"
FOUND = Path("build/fuzz")

TraceFunction = Callable[[FrameType, str, Any], Any]

Step = tuple[str, int, int]
"""A file, and two of its lines that were executed one after the other."""

MAX_LENGTH, KEPT_LENGTH = 4096, 1024
"""Bytes of an input that is tried, and of one that is kept; a few options or requests fit in."""


def fuzz_by_coverage(name: str, inputs: int) -> None:
    """Hand over to libFuzzer, which ends the process."""
    atheris = importlib.import_module("atheris")  # it has no types, and is not always there

    with atheris.instrument_imports(include=["aiovblk"]):
        from . import seeds, targets

    found = FOUND / name
    found.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds.SEEDS[name]()):
        (found / f"seed-{number}").write_bytes(seed)
    options = [f"-runs={inputs}", f"-max_len={MAX_LENGTH}", "-timeout=20", "-print_final_stats=1"]
    options += [f"-artifact_prefix={FOUND}/{name}-", str(found), str(CORPUS / name)]
    atheris.Setup([sys.argv[0], *options], targets.TARGETS[name])
    atheris.Fuzz()


def fuzz_by_chance(name: str, inputs: int) -> None:
    """Mutate what there is; the same each time."""
    from . import seeds, targets

    known = [*seeds.SEEDS[name](), *(path.read_bytes() for path in kept(name))]
    random = Random(name)
    target = targets.TARGETS[name]
    began = time.monotonic()
    for count in range(inputs):
        data = mutate(random, known)
        try:
            target(data)
        except BaseException:
            FOUND.mkdir(parents=True, exist_ok=True)
            (FOUND / f"{name}-crash").write_bytes(data)
            print(f"input {count} fails: {FOUND}/{name}-crash", file=sys.stderr)
            raise
    print(f"{name}: {inputs} inputs in {time.monotonic() - began:.0f} s")


def mutate(random: Random, known: Sequence[bytes]) -> bytes:
    """One of the known inputs, changed in a few places."""
    data = bytearray(random.choice(known))
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(data) + 1)
        match random.randrange(6):
            case 0:
                data[at : at + 1] = random.randbytes(1)
            case 1:
                data[at : at + random.randint(1, 8)] = b""
            case 2:
                data[at:at] = random.randbytes(random.randint(1, 8))
            case 3:
                size = random.choice([1, 2, 4, 8])
                limit = random.choice([2, 256, 1 << 16, 1 << 32, 1 << 64])
                number = random.choice([0, 1, random.randrange(limit), limit - 1])
                data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size)
            case 4:
                other = random.choice(known)
                begin = random.randrange(len(other) + 1)
                data[at:at] = other[begin : begin + random.randint(1, 64)]
            case 5:
                del data[at:]
    return bytes(data)


def keep(name: str) -> None:
    """Add to the kept corpus what was found and goes a way that nothing in it goes."""
    from . import seeds, targets

    target = targets.TARGETS[name]
    known: set[tuple[Step, int]] = set()
    for data in [*seeds.SEEDS[name](), *(path.read_bytes() for path in kept(name))]:
        known |= steps(target, data)
    found = [path.read_bytes() for path in (FOUND / name).iterdir()]
    for data in sorted(found, key=lambda data: (len(data), data)):
        if len(data) <= KEPT_LENGTH and (new := steps(target, data) - known):
            known |= new
            (CORPUS / name / hashlib.sha1(data).hexdigest()[:12]).write_bytes(data)


def steps(target: Callable[[bytes], None], data: bytes) -> set[tuple[Step, int]]:
    """The steps that the package makes for an input, and about how often."""
    taken: Counter[Step] = Counter()

    def trace(frame: FrameType, event: str, arg: object) -> TraceFunction | None:
        file = frame.f_code.co_filename
        if "/aiovblk/" not in file:
            return None
        before = 0

        def trace_line(frame: FrameType, event: str, arg: object) -> TraceFunction:
            nonlocal before
            taken[file, before, frame.f_lineno] += 1
            before = frame.f_lineno
            return trace_line

        return trace_line

    sys.settrace(trace)
    try:
        target(data)
    finally:
        sys.settrace(None)
    return {(step, count.bit_length()) for step, count in taken.items()}


def kept(name: str) -> list[Path]:
    """The files of the kept corpus, always in the same order."""
    return sorted((CORPUS / name).iterdir())


def main() -> int:
    """Run one target here, or all of them in processes of their own."""
    parser = argparse.ArgumentParser(prog="tools/fuzz", description="Fuzz the parsers.")
    parser.add_argument("target", nargs="?", choices=NAMES, help="by default all, in turn")
    parser.add_argument("--inputs", type=int, default=100_000, help="per target")
    parser.add_argument("--keep", action="store_true", help="keep what was found")
    options = parser.parse_args()
    if options.target is None:
        command = [sys.executable, "-m", "tests.fuzz", *sys.argv[1:]]
        return max(subprocess.run([*command, name]).returncode for name in NAMES)
    if options.keep:
        keep(options.target)
    elif importlib.util.find_spec("atheris") is not None:
        fuzz_by_coverage(options.target, options.inputs)
    else:
        try:
            fuzz_by_chance(options.target, options.inputs)
        except Exception:
            traceback.print_exc()
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
