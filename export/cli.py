"""`mtu-export`: parses, calls `mtu.export`, prints. Imports torch and onnx inside the command that needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from mtu.core.errors import InvalidInputError, some
from mtu.core.extras import require_for
from mtu.models.families import find_preset, in_words, load_family_file, presets
from mtu.runtime.bundle import BUNDLED, PACKAGED, open_bundle
from mtu.runtime.console import new_app, run_app, say
from mtu.runtime.console.options import (
    INPUT,
    OUTPUT,
    BackendOption,
    DeviceOption,
    KeepFp32Option,
    OverwriteOption,
    PrecisionOption,
    SceneDetectionOption,
    SceneThresholdOption,
    VersionOption,
)
from mtu.runtime.scenes import SCENE_THRESHOLD

PROGRAM = "mtu-export"
app = new_app()


@app.callback()
def main_help(version: VersionOption = False) -> None:
    """Exports networks from PyTorch checkpoints, puts models in a row, and makes them ready for a server."""


@app.command("onnx")
def to_onnx(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Directory to write: bundle.json and the graphs.",
            rich_help_panel=OUTPUT,
        ),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Released .pytorch, .pth or .npz file, plain state dict, safetensors, or mtu2.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Random weights of {', '.join(presets())}, for tests and timings.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    family: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.py",
            help="A network of your own; the file is Python and is run. See docs/your-own-network.md.",
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
    """Writes an ONNX bundle: a directory with the graphs of a network and bundle.json, which describes them.

    Height, width and the number of streams stay dynamic. The directory gets its name when all graphs are checked
    against torch.
    """
    if (checkpoint is None) == (preset is None):
        raise InvalidInputError("give either --checkpoint FILE or --preset NAME")
    own = None if family is None else load_family_file(family)
    chosen = None if preset is None else find_preset(preset)
    require_for(PROGRAM)
    from mtu.export.to_onnx import export_bundle
    from mtu.models.checkpoint import load_checkpoint, random_checkpoint
    from mtu.runtime.backends.torch_backend import read_checkpoint

    if checkpoint is not None:
        is_ours = str(checkpoint) in PACKAGED and not checkpoint.exists()
        source = read_checkpoint(open_bundle(checkpoint)) if is_ours else load_checkpoint(checkpoint)
        if source.dropped:
            count = f"{len(source.dropped)} tensors that only training uses"
            say(PROGRAM, f"left out {count}: {some(source.dropped)}")
    else:
        assert chosen is not None
        source = random_checkpoint(*chosen)
        say(PROGRAM, f"{preset} with random weights: good for tests and timings, not for pictures")
    if own not in (None, source.family):
        raise InvalidInputError(f"--family {family}: {checkpoint or preset} is of {source.family}; leave out --family")
    bundle = export_bundle(
        source,
        output,
        precision=precision,
        keep_fp32=keep_fp32,
        overwrite=overwrite,
        say=lambda text: say(PROGRAM, text),
    )
    print(
        f"{output}: {bundle.interface.variant} ({in_words(source.settings)}), {precision}"
        + (f" but for the layers in {keep_fp32}" if keep_fp32 else "")
        + f", weights {source.digest[:12]}"
    )


@app.command("chain")
def chain(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL", help="Bundles or engines, in the order that frames go through them."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to write.", rich_help_panel=OUTPUT)
    ],
    overwrite: OverwriteOption = False,
) -> None:
    """Puts models in a row: the pictures of each are the frames of the next. Takes copies of them."""
    from mtu.export.chain_files import write_chain

    written = write_chain(models, output, overwrite=overwrite)
    print(f"{output}: {' then '.join(model.interface.variant for model in written.models)}")


@app.command("triton")
def triton(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="Bundle, chain, or engine for one size of frames.", show_default=BUNDLED),
    ] = None,
    *,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Model repository, there or not.", rich_help_panel=OUTPUT),
    ],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the model in it.", show_default="the network's", rich_help_panel=OUTPUT),
    ] = None,
    overwrite: OverwriteOption = False,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    precision: PrecisionOption = None,
    max_batch: Annotated[int, typer.Option(metavar="N", help="Streams computed in one batch at most.")] = 8,
    max_streams: Annotated[int, typer.Option(metavar="N", help="Streams served at a time; more wait.")] = 32,
    idle: Annotated[
        float, typer.Option(metavar="SECONDS", help="A stream that sends nothing for so long is dropped.")
    ] = 30.0,
    scene_detection: SceneDetectionOption = True,
    scene_threshold: SceneThresholdOption = SCENE_THRESHOLD,
) -> None:
    """Writes a model repository of Triton, which restores many streams, one frame a request. Takes a copy of the model.

    The Python of the server needs this package and what the backend needs.
    """
    from mtu.export.triton_files import Serving, write_repository

    serving = Serving(
        backend=backend,
        device=device,
        precision=precision,
        scene_threshold=scene_threshold if scene_detection else None,
        max_batch=max_batch,
        max_streams=max_streams,
        idle=idle,
    )
    written = write_repository(model, output, serving, name=name, overwrite=overwrite)
    print(f"{output}: model {written.name}; serve it with tritonserver --model-repository={output}")


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
