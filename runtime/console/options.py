"""The options of the commands, as types: those that several commands have, and those of `mtu-run`. Imports typer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mtu.core.release import VERSION
from mtu.runtime.backends import FACTORIES
from mtu.runtime.bundle import BUNDLED

INPUT, OUTPUT, ENCODER, MODEL, REPORT = "Input", "Output", "Encoder", "Model", "Report"
"""Groups on a help page."""


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
    typer.Option(
        metavar="MODEL",
        help=f"{BUNDLED}, which comes with the package; a bundle or chain made by mtu-export, or an engine made by"
        " mtu-build-engine.",
        show_default=BUNDLED,
        rich_help_panel=MODEL,
    ),
]
BACKENDS = f"auto, {', '.join(FACTORIES)}"
BackendOption = Annotated[str, typer.Option(metavar="NAME", help=f"{BACKENDS}.", rich_help_panel=MODEL)]
DEVICES = "auto, cpu, cuda or cuda:N"
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help=f"{DEVICES}.", rich_help_panel=MODEL)]
PluginLibraryOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="C++ plugin made by mtu-build-plugin (TensorRT).",
        show_default="the one in Python",
        rich_help_panel=MODEL,
    ),
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write a report for machines.", rich_help_panel=REPORT)
]
KeepFp32Option = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Layers that stay in fp32: the file of mtu-calibrate ranges --keep."),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace an output that exists.", rich_help_panel=OUTPUT)
]

# Of mtu-run

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="Video file, directory of images, or - for yuv4mpeg on stdin.",
    ),
]
SegmentOption = Annotated[
    str | None,
    typer.Option(
        metavar="A:B",
        help="Only from A to B, in seconds; or A-B, such as 00:01:00-00:02:30. Either may be left out.",
        rich_help_panel=INPUT,
    ),
]
VideoStreamOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Video stream to process, counted from 0.",
        show_default="the one marked default",
        rich_help_panel=INPUT,
    ),
]
DeinterlaceOption = Annotated[
    bool, typer.Option("--deinterlace", help="Make interlaced frames progressive first (bwdif).", rich_help_panel=INPUT)
]
SizeChangeOption = Annotated[
    Literal["scale", "stop"],
    typer.Option(help="Where frames change their size: scale to the first one's.", rich_help_panel=INPUT),
]
RateOption = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Frames a second of a directory of pictures, such as 30000/1001.",
        show_default="25",
        rich_help_panel=INPUT,
    ),
]
TargetOption = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="OUTPUT",
        help="Video file; without an extension a directory of pictures; - is yuv4mpeg.",
        rich_help_panel=OUTPUT,
    ),
]
PictureFormatOption = Annotated[
    Literal["png", "jpg", "tiff", "npy"] | None,
    typer.Option(
        metavar="KIND",
        help="png, jpg or tiff: files of a directory of pictures; npy: of maps.",
        show_default="png",
        rich_help_panel=OUTPUT,
    ),
]
CompareOption = Annotated[
    Literal["side-by-side", "split"] | None,
    typer.Option(metavar="HOW", help="Show the input beside the result.", rich_help_panel=OUTPUT),
]
SaveMotionOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Also write the displacement of each frame as a colour picture.", rich_help_panel=OUTPUT
    ),
]
SaveMapsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Also write the map of each frame as .npy, for models that give one.",
        rich_help_panel=OUTPUT,
    ),
]
CodecOption = Annotated[
    str | None,
    typer.Option(
        "--codec",
        "-c",
        metavar="NAME",
        help="Video encoder, as FFmpeg names it.",
        show_default="by container",
        rich_help_panel=ENCODER,
    ),
]
CrfOption = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        help="Constant quality of the encoder; lower is better.",
        show_default="by codec",
        rich_help_panel=ENCODER,
    ),
]
PixFmtOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Pixel format, as FFmpeg names it.",
        show_default="as the input",
        rich_help_panel=ENCODER,
    ),
]
ExtraOption = Annotated[
    list[str] | None,
    typer.Option("-e", metavar="KEY=VALUE", help="Option for the encoder; may be repeated.", rich_help_panel=ENCODER),
]
MuxOption = Annotated[
    list[str] | None,
    typer.Option(
        "--mux",
        "-m",
        metavar="KEY=VALUE",
        help="Option for the container, or faststart; may be repeated.",
        rich_help_panel=ENCODER,
    ),
]
CudaGraphOption = Annotated[
    bool, typer.Option(help="Replay a frame's work as one CUDA graph (TensorRT).", rich_help_panel=MODEL)
]
StrictOption = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Stop at values that are not finite, instead of starting afresh there.",
        rich_help_panel=MODEL,
    ),
]
TileOption = Annotated[
    str,
    typer.Option(
        metavar="HOW",
        help="Restore frames in tiles: auto (where memory or an engine is too small), off or WxH.",
        rich_help_panel=MODEL,
    ),
]
SceneDetectionOption = Annotated[bool, typer.Option(help="Start afresh at scene cuts.", rich_help_panel=MODEL)]
SceneThresholdOption = Annotated[
    float, typer.Option(min=0, max=100, metavar="PERCENT", help="Difference that is a cut.", rich_help_panel=MODEL)
]
ProgressOption = Annotated[bool, typer.Option(help="Show how far it is.", rich_help_panel=REPORT)]
