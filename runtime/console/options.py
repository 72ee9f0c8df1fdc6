"""The options of the commands, as types: those that several commands have, and those of `mtu-run`. Imports typer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from mtu.core.errors import InvalidInputError
from mtu.core.release import VERSION
from mtu.runtime.backends import FACTORIES, PrecisionChoice
from mtu.runtime.bundle import BUNDLED, PACKAGED

INPUT, OUTPUT, ENCODER, MODEL, REPORT = "Input", "Output", "Encoder", "Model", "Report"
"""Groups on a help page."""
_input, _output, _encoder, _model, _report = (
    partial(typer.Option, rich_help_panel=group) for group in (INPUT, OUTPUT, ENCODER, MODEL, REPORT)
)


def _print_version(asked: bool) -> None:
    if asked:
        print(VERSION)
        raise typer.Exit


# Of several commands

VersionOption = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
]
ModelOption = Annotated[
    Path | None,
    _model(
        metavar="MODEL",
        help=f"{' or '.join(PACKAGED)}, which come with the package; a bundle or chain made by mtu-export, or an"
        " engine made by mtu-build-engine.",
        show_default=BUNDLED,
    ),
]
ServerOption = Annotated[
    str | None,
    _model(
        metavar="HOST:PORT",
        help="Restore on a Triton server, with the model that mtu-export triton made; HOST:PORT/NAME of several.",
    ),
]
BACKENDS = f"auto, {', '.join(FACTORIES)}"
BackendOption = Annotated[str, _model(metavar="NAME", help=f"{BACKENDS}.")]
DEVICES = "auto, cpu, cuda, cuda:N; gpu, gpu:N, npu (Intel's)"
DeviceOption = Annotated[str, _model(metavar="NAME", help=f"{DEVICES}.")]
PRECISIONS = "fp32, bf16, or auto: bf16 where that is fast and proven"
PrecisionOption = Annotated[
    PrecisionChoice | None, _model(metavar="KIND", help=f"{PRECISIONS} (OpenVINO).", show_default="fp32")
]
PluginLibraryOption = Annotated[
    Path | None,
    _model(metavar="FILE", help="C++ plugin made by mtu-build-plugin (TensorRT).", show_default="the one in Python"),
]
JsonOption = Annotated[Path | None, _report("--json", metavar="FILE", help="Write a report for machines.")]
KeepFp32Option = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Layers that stay in fp32: the file of mtu-calibrate ranges --keep.")
]
OverwriteOption = Annotated[bool, _output("--overwrite", help="Replace an output that exists.")]

# Of mtu-run

ResumeOption = Annotated[
    bool,
    _output(
        "--resume",
        help="Keep restored scenes beside the output until it is whole, at most 20 GiB, and go on with those that an"
        " interrupted run has left.",
    ),
]
SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT",
        help="Video file, directory of images, or - for yuv4mpeg on stdin. Of several each gets an output of its name"
        " in the directory OUTPUT.",
    ),
]


def _instead_of_inputs(context: typer.Context, path: Path | None) -> Path | None:
    for param in context.command.params if path is not None else []:
        if param.name == "sources":
            param.required, param.default = False, []
    return path


ListOption = Annotated[
    Path | None,
    _input(
        "--list",
        metavar="FILE",
        callback=_instead_of_inputs,
        is_eager=True,
        help="Inputs, one a line; OUTPUT is a directory then.",
    ),
]
SuffixOption = Annotated[
    str, _output("--suffix", metavar="TEXT", help="Of several inputs: put before the ending of each name.")
]
SkipDoneOption = Annotated[
    bool,
    _output("--skip-done", help="Of several inputs: leave out what was done before with the same model and options."),
]
SegmentOption = Annotated[
    str | None,
    _input(
        metavar="A:B", help="Only from A to B, in seconds; or A-B, such as 00:01:00-00:02:30. Either may be left out."
    ),
]
VideoStreamOption = Annotated[
    int | None,
    _input(metavar="N", help="Video stream to process, counted from 0.", show_default="the one marked default"),
]
StreamOption = Annotated[
    list[str] | None,
    _input(
        metavar="NAME=PATH",
        help="For a model that reads several streams: where another one comes from; may be repeated.",
    ),
]
DeinterlaceOption = Annotated[bool, _input("--deinterlace", help="Make interlaced frames progressive first (bwdif).")]
SizeChangeOption = Annotated[
    Literal["scale", "stop"], _input(help="Where frames change their size: scale to the first one's.")
]
RateOption = Annotated[
    str | None,
    _input(metavar="N", help="Frames a second of a directory of pictures, such as 30000/1001.", show_default="25"),
]
TargetOption = Annotated[
    str,
    _output(
        "--output",
        "-o",
        metavar="OUTPUT",
        help="Video file; without an extension a directory of pictures; - is yuv4mpeg.",
    ),
]
PictureFormatOption = Annotated[
    Literal["png", "jpg", "tiff", "npy"] | None,
    _output(
        metavar="KIND", help="png, jpg or tiff: files of a directory of pictures; npy: of maps.", show_default="png"
    ),
]
CompareOption = Annotated[
    Literal["side-by-side", "split"] | None, _output(metavar="HOW", help="Show the input beside the result.")
]
HeatOption = Annotated[
    bool, _output("--heat", help="Show the map of each frame in colours beside it, for models that give one.")
]
SaveMotionOption = Annotated[
    Path | None, _output(metavar="DIR", help="Also write the displacement of each frame as a colour picture.")
]
SaveMapsOption = Annotated[
    Path | None, _output(metavar="DIR", help="Also write the map of each frame as .npy, for models that give one.")
]
CodecOption = Annotated[
    str | None,
    _encoder("--codec", "-c", metavar="NAME", help="Video encoder, as FFmpeg names it.", show_default="by container"),
]
CrfOption = Annotated[
    float | None,
    _encoder(metavar="N", help="Constant quality of the encoder; lower is better.", show_default="by codec"),
]
PixFmtOption = Annotated[
    str | None, _encoder(metavar="NAME", help="Pixel format, as FFmpeg names it.", show_default="as the input")
]
ExtraOption = Annotated[
    list[str] | None, _encoder("-e", metavar="KEY=VALUE", help="Option for the encoder; may be repeated.")
]


def encoder_options(extra: list[str] | None) -> dict[str, str]:
    """What `ExtraOption` says. Raises InvalidInputError."""
    if bare := [item for item in extra or [] if "=" not in item]:
        raise InvalidInputError(f"-e {bare[0]}: write it as key=value")
    return {key: value for key, _, value in (item.partition("=") for item in extra or [])}


MuxOption = Annotated[
    list[str] | None,
    _encoder("--mux", "-m", metavar="KEY=VALUE", help="Option for the container, or faststart; may be repeated."),
]
WhereOption = Annotated[
    Path | None,
    _model(metavar="MODEL", help="Restore only where the map of this model (such as DMENet) says blur."),
]
ThresholdOption = Annotated[
    float | None, _model(metavar="PIXELS", help="Of --where: the sigma up to which frames stay.", show_default="1")
]
CudaGraphOption = Annotated[bool, _model(help="Replay a frame's work as one CUDA graph (TensorRT).")]
StrictOption = Annotated[
    bool, _model("--strict", help="Stop at values that are not finite, instead of starting afresh there.")
]
TileOption = Annotated[
    str,
    _model(metavar="HOW", help="Restore frames in tiles: auto (where memory or an engine is too small), off or WxH."),
]
SceneDetectionOption = Annotated[bool, _model(help="Start afresh at scene cuts.")]
SceneThresholdOption = Annotated[float, _model(min=0, max=100, metavar="PERCENT", help="Difference that is a cut.")]
ProgressOption = Annotated[bool, _report(help="Show how far it is.")]
