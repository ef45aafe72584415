"""Write the completions for bash, zsh and fish, by shtab, from the parser."""

from __future__ import annotations

from argparse import Action
from pathlib import Path
from typing import Any

import shtab

from aiovblk.cli import attached, make_parser
from aiovblk.cli.layerkinds import KINDS

from .commands import subparsers

FILES = {
    "bash": "aiovblk",  # in share/bash-completion/completions
    "zsh": "_aiovblk",  # in share/zsh/site-functions
    "fish": "aiovblk.fish",  # in share/fish/vendor_completions.d
}
"""The name that each shell looks for."""

_PATHS = {"PATH", "FILE"}
_SPECS = {
    "SPEC",
    "SPEC | NAME=SPEC",
    f"SPEC | {attached.NODE}",
    "SOURCE",
    "TARGET",
    "DISK",
    f"DISK | {attached.NODE}",
    "DISK?size=SIZE",
    "DISK?snapshot=NAME",
}
_SCHEMES = "memory: file: folder: nbd:// nbd+unix:/// s3:// gs:// az:// https://"

SPEC = {
    "bash": "_aiovblk_spec",
    "zsh": "_aiovblk_spec",
    "fish": f"(string split ' ' '{_SCHEMES}')",
}
_LAYERS = " ".join(f"{name}:" if kind.required else name for name, kind in KINDS.items())

LAYER = {
    "bash": "_aiovblk_layer",
    "zsh": f"({_LAYERS.replace(':', '')})",
    "fish": f"(string split ' ' '{_LAYERS}')",
}
NODE = {
    "bash": "_aiovblk_node",
    "zsh": "_files -g '/dev/(nbd|ublkb)*'",
    "fish": "(string match -r '^/dev/(?:nbd|ublkb).*' /dev/*)",
}

PREAMBLE = {
    "bash": f"""
_aiovblk_node() {{
    compgen -W "$(compgen -G '/dev/nbd*'; compgen -G '/dev/ublkb*')" -- "$1"
}}
_aiovblk_layer() {{ compgen -W "{_LAYERS}" -- "$1"; }}
# The word after a colon is one of its own (COMP_WORDBREAKS): a path, mostly.
_aiovblk_spec() {{
    compgen -W "{_SCHEMES}" -- "$1"
    compgen -f -- "$1"
}}
""",
    "zsh": f"""
_aiovblk_spec() {{
    compadd -S '' -- {_SCHEMES}
    _files
}}
""",
}


def write_completions(folder: Path) -> list[Path]:
    """Write the file of each shell into a folder of its name; return their paths."""
    parser = make_parser()
    for each in (parser, *subparsers(parser).values()):
        for action in each._actions:
            if (complete := _completion(action)) is not None:
                action.complete = complete  # type: ignore[attr-defined]  # shtab looks for it
    written = []
    for shell, name in FILES.items():
        path = folder / shell / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(shtab.complete(parser, shell=shell, preamble=PREAMBLE.get(shell, "")))
        written.append(path)
    return written


def _completion(action: Action) -> dict[str, Any] | None:
    """Return what completes the value of an argument, by shell; None for nothing special."""
    if action.metavar in _PATHS:
        return dict(shtab.FILE)
    if action.metavar == "DIRECTORY":
        return dict(shtab.DIRECTORY)
    if action.metavar == attached.NODE:
        return NODE
    if action.metavar == "LAYER":
        return LAYER
    return SPEC if action.metavar in _SPECS else None
