"""`mtu-export`: parses, calls `mtu.export.to_onnx`, prints. Imports torch and onnx inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from mtu.core.errors import InvalidInputError
from mtu.core.extras import require_for
from mtu.core.interface import PRESETS, preset_config, preset_name
from mtu.runtime.bundle import BUNDLED, open_bundle
from mtu.runtime.console import new_app, run_app, say
from mtu.runtime.console.options import INPUT, OUTPUT, KeepFp32Option, OverwriteOption, VersionOption

PROGRAM = "mtu-export"
app = new_app()


@app.callback()
def main_help(version: VersionOption = False) -> None:
    """Exports a multi-task-unit network from a PyTorch checkpoint."""


@app.command("onnx")
def to_onnx(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Directory to write: first.onnx and step.onnx.",
            rich_help_panel=OUTPUT,
        ),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Released .pytorch file, plain state dict, safetensors, or mtu2.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Random weights of {', '.join(PRESETS)}, for tests and timings.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16"],
        typer.Option(metavar="TYPE", help="fp16: weights, states and arithmetic in half precision."),
    ] = "fp32",
    keep_fp32: KeepFp32Option = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Writes an ONNX bundle: a directory with the graphs of the first frame and of every later one.

    Height and width stay dynamic. The directory gets its name when both graphs are checked against torch.
    """
    if (checkpoint is None) == (preset is None):
        raise InvalidInputError("give either --checkpoint FILE or --preset NAME")
    config = None if preset is None else preset_config(preset)
    require_for(PROGRAM)
    from mtu.export.to_onnx import export_bundle
    from mtu.models.checkpoint import load_checkpoint, random_checkpoint
    from mtu.runtime.backends.torch_backend import read_model

    if checkpoint is not None:
        is_mtu2 = str(checkpoint) == BUNDLED and not checkpoint.exists()
        source = read_model(open_bundle())[1] if is_mtu2 else load_checkpoint(checkpoint)
        if source.dropped:
            say(PROGRAM, f"left out {len(source.dropped)} tensors that only training uses: {', '.join(source.dropped)}")
    else:
        assert config is not None
        source = random_checkpoint(config)
        say(PROGRAM, f"{preset} with random weights: good for tests and timings, not for pictures")
    export_bundle(
        source,
        output,
        precision=precision,
        keep_fp32=keep_fp32,
        overwrite=overwrite,
        say=lambda text: say(PROGRAM, text),
    )
    c = source.config
    print(
        f"{output}: {preset_name(c)} ({c.words}), {precision}"
        + (f" but for the layers in {keep_fp32}" if keep_fp32 else "")
        + f", weights {source.digest[:12]}"
    )


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
