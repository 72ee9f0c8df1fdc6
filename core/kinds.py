"""What a file seems to be that was given for something else, and the command that was meant. Standard library only."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

Kind = Literal["empty", "checkpoint", "graph", "engine", "video"]

_SUFFIXES: dict[str, Kind] = {
    **dict.fromkeys((".pth", ".pt", ".pytorch", ".ckpt", ".npz", ".safetensors"), "checkpoint"),
    ".onnx": "graph",
    **dict.fromkeys((".engine", ".plan", ".trt"), "engine"),
    **dict.fromkeys((".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg", ".ts", ".gif", ".y4m"), "video"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"), "video"),
}
_HEADS: dict[bytes, Kind] = {
    b"PK\x03\x04": "checkpoint",
    b"\x80\x02": "checkpoint",
    b"\x1aE\xdf\xa3": "video",
    b"YUV4MPEG2": "video",
    b"\x89PNG": "video",
}


def kind_of(path: Path) -> Kind | None:
    """By the name's ending, else by the first bytes; None for what is no file and for what cannot be told."""
    if not path.is_file():  # a pipe gives its first bytes once
        return None
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return None
    if not head:
        return "empty"
    if path.suffix.lower() in _SUFFIXES:
        return _SUFFIXES[path.suffix.lower()]
    if head[4:8] == b"ftyp":
        return "video"
    if head[8:9] == b"{":
        return "checkpoint"
    return next((kind for start, kind in _HEADS.items() if head.startswith(start)), None)


def is_model_directory(path: Path) -> bool:
    """Whether it is the directory of a bundle or of an engine."""
    return any((path / name).is_file() for name in ("bundle.json", "engine.json"))


def meant(path: Path) -> str | None:
    """What `path` is, and the command for such a thing; None if that cannot be told."""
    kind, name = kind_of(path), shlex.quote(str(path))
    bundle = shlex.quote(str(path.with_suffix("")) if path.suffix else f"{path}-bundle")
    export = f"mtu-export onnx --checkpoint {name} -o {bundle}"
    if kind == "empty":
        is_checkpoint = _SUFFIXES.get(path.suffix.lower()) == "checkpoint"
        return "is empty (0 bytes): get it again" + (f"; then: {export}" if is_checkpoint else "")
    if kind == "checkpoint":
        return (
            f"is a checkpoint; make a bundle of it with: {export};"
            f" then run it: mtu-run INPUT -o OUTPUT --model {bundle}"
        )
    if kind in ("graph", "engine"):
        if is_model_directory(path.parent):
            return f"is one file of a model; give its directory: {shlex.quote(str(path.parent))}"
        made = "mtu-export onnx --checkpoint FILE" if kind == "graph" else "mtu-build-engine mtu2 --size WxH"
        return f"is a lone file; a model is a directory, made by: {made} -o DIR"
    if kind == "video":
        return f"is a video or a picture; deblur it with: mtu-run {name} -o OUTPUT"
    if is_model_directory(path):
        return f"is a model; use it with: mtu-run INPUT -o OUTPUT --model {name}"
    return None
