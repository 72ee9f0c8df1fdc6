"""`mtu-bench`: parses, calls `mtu.benchmarks.bench`, prints. Imports backends in processes of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, NoReturn, cast, get_args

import typer

from mtu.core.errors import InvalidInputError
from mtu.runtime.backends import PrecisionChoice
from mtu.runtime.bundle import BUNDLED
from mtu.runtime.console import new_app, run_app, say
from mtu.runtime.console.options import PRECISIONS, DeviceOption, JsonOption, VersionOption
from mtu.runtime.report import check_report, write_report

PROGRAM = "mtu-bench"
app = new_app()


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of "640x360". Raises InvalidInputError."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise InvalidInputError(f"size '{text}': write it as WIDTHxHEIGHT, as in 640x360")
    return int(match[1]), int(match[2])


def parse_precisions(text: str) -> list[PrecisionChoice]:
    """The precisions of "fp32,bf16". Raises InvalidInputError."""
    known = get_args(PrecisionChoice)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise InvalidInputError(f"--precision '{text}': write one or more of {', '.join(known)}, as in fp32,bf16")
    return cast(list[PrecisionChoice], names)


@app.command()
def bench(
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="MODEL...", help="As mtu-run takes them; one or more.", show_default=BUNDLED),
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(metavar="WxH", help="Frame size; may be repeated.", show_default="640x360")
    ] = None,
    backends: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Backends to compare.", show_default="all that are installed and run it"),
    ] = None,
    device: DeviceOption = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help=f"A row for each, with backends that can choose: {PRECISIONS}.", show_default="fp32"
        ),
    ] = None,
    streams: Annotated[
        int, typer.Option(min=1, metavar="N", help="Streams, computed at the same time where the backend can.")
    ] = 1,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Turns each backend takes.")] = 10,
    frames: Annotated[int, typer.Option(min=1, metavar="N", help="Frames in a turn.")] = 3,
    json_file: JsonOption = None,
    version: VersionOption = False,
) -> None:
    """Times models, backends and precisions against each other, in turns, and prints a markdown table."""
    from mtu.benchmarks.bench import as_json, as_markdown, contestants, measure
    from mtu.runtime.backends import installed_backends

    sizes = [parse_size(text) for text in size or ["640x360"]]
    names = [name.strip() for name in backends.split(",")] if backends else installed_backends()
    precisions = parse_precisions(precision) if precision else []
    if json_file is not None:
        check_report(json_file)
    rows = []
    for width, height in sizes:
        rows += measure(
            contestants(models or [None], names, precisions, height, width, device=device, streams=streams),
            leave_out=backends is None,
            rounds=rounds,
            frames=frames,
            say=lambda text: say(PROGRAM, text),
        )
    print(as_markdown(rows), end="")
    if json_file is not None:
        write_report(json_file, as_json(rows))


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
