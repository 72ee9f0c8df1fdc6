"""`mtu-bench`: parses, calls `mtu.benchmarks.bench`, prints. Imports backends in processes of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mtu.core.errors import InvalidInputError
from mtu.runtime.bundle import BUNDLED
from mtu.runtime.console import new_app, run_app, say
from mtu.runtime.console.options import DeviceOption, JsonOption, VersionOption
from mtu.runtime.report import check_report, write_report

PROGRAM = "mtu-bench"
app = new_app()


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of "640x360". Raises InvalidInputError."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise InvalidInputError(f"size '{text}': write it as WIDTHxHEIGHT, as in 640x360")
    return int(match[1]), int(match[2])


@app.command()
def bench(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="BUNDLE", help="Directory made by mtu-export onnx.", show_default=BUNDLED),
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(metavar="WxH", help="Frame size; may be repeated.", show_default="640x360")
    ] = None,
    backends: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Backends to compare.", show_default="all that are installed and run it"),
    ] = None,
    device: DeviceOption = "auto",
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Turns each backend takes.")] = 10,
    frames: Annotated[int, typer.Option(min=1, metavar="N", help="Frames in a turn.")] = 3,
    json_file: JsonOption = None,
    version: VersionOption = False,
) -> None:
    """Times the backends against each other, in turns, and prints a markdown table."""
    from mtu.benchmarks.bench import as_json, as_markdown, measure

    sizes = [parse_size(text) for text in size or ["640x360"]]
    names = [name.strip() for name in backends.split(",")] if backends else None
    if json_file is not None:
        check_report(json_file)
    rows = []
    for width, height in sizes:
        rows += measure(
            model,
            names,
            height,
            width,
            device=device,
            rounds=rounds,
            frames=frames,
            say=lambda text: say(PROGRAM, text),
        )
    name = BUNDLED if model is None else str(model)
    print(as_markdown(rows, name), end="")
    if json_file is not None:
        write_report(json_file, as_json(rows, name))


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
