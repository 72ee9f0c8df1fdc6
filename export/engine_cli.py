"""`mtu-build-engine`: parses, calls `mtu.export.engine`, prints. Imports rich; onnx and TensorRT inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from mtu.models.errors import InvalidInputError
from mtu.runtime.bundle import open_bundle
from mtu.runtime.console import new_app, run_app, say
from mtu.runtime.engine import HardwareCompatibility, Profile, Sizes
from mtu.runtime.options import OUTPUT, KeepFp32Option, OverwriteOption, PluginLibraryOption, VersionOption
from mtu.runtime.progress import stage_bar

PROGRAM = "mtu-build-engine"
app = new_app()
EXACT, RANGE = "One size of frames", "A range of sizes"


@app.command()
def build(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory with first.onnx and step.onnx, or mtu2.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to write.", rich_help_panel=OUTPUT)
    ],
    height: Annotated[
        int | None, typer.Option(metavar="H", help="Rows, a multiple of 4.", rich_help_panel=EXACT)
    ] = None,
    width: Annotated[
        int | None, typer.Option(metavar="W", help="Columns, a multiple of 4.", rich_help_panel=EXACT)
    ] = None,
    min_shapes: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Smallest; rows first: 720x1280 is 720p.", rich_help_panel=RANGE),
    ] = None,
    opt_shapes: Annotated[
        str | None, typer.Option(metavar="HxW", help="The one to be fastest at.", rich_help_panel=RANGE)
    ] = None,
    max_shapes: Annotated[str | None, typer.Option(metavar="HxW", help="Largest.", rich_help_panel=RANGE)] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision; an fp16 bundle is always.")] = False,
    keep_fp32: KeepFp32Option = None,
    runtime: Annotated[
        Literal["auto", "tensorrt", "tensorrt-rtx"],
        typer.Option(
            metavar="NAME",
            help="tensorrt needs the GPU that will run it; tensorrt-rtx builds without; auto: what fits.",
        ),
    ] = "auto",
    no_plugin: Annotated[
        bool, typer.Option("--no-plugin", help="Standard operators in place of the fused plugin.")
    ] = False,
    plugin_library: PluginLibraryOption = None,
    timing_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read if it fits, written: makes the next build quicker.")
    ] = None,
    builder_optimization_level: Annotated[
        int | None, typer.Option(metavar="0..5", help="More time to build, less to run.")
    ] = None,
    workspace: Annotated[int | None, typer.Option(metavar="MIB", help="Limit of the layers' scratch memory.")] = None,
    hardware_compatibility_level: Annotated[
        HardwareCompatibility, typer.Option(metavar="LEVEL", help="Which other GPUs may run it (tensorrt).")
    ] = "none",
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Runs on newer versions of the same major too.")
    ] = False,
    compute_capability: Annotated[
        str | None, typer.Option(metavar="LIST", help="GPUs to build for (tensorrt-rtx): 8.6,8.9,12.0.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print and log everything the library says.")] = False,
    overwrite: OverwriteOption = False,
    version: VersionOption = False,
) -> None:
    """Builds the TensorRT engine of a bundle: first.engine, step.engine, engine.json and build.log.

    Sizes are of the frames as the network sees them, HEIGHTxWIDTH, padded to multiples of 4.
    """
    profile = _profile(height, width, min_shapes, opt_shapes, max_shapes)
    if profile.opt.height > profile.opt.width:
        say(PROGRAM, f"note: {profile.opt} is upright, {profile.opt.height} rows of {profile.opt.width} pixels")
    source = open_bundle(bundle)
    from mtu.export.engine import BuildOptions, build_engine

    options = BuildOptions(
        profile=profile,
        fp16=fp16,
        keep_fp32=keep_fp32,
        runtime=runtime,
        plugin=not no_plugin,
        plugin_library=plugin_library,
        timing_cache=timing_cache,
        builder_optimization_level=builder_optimization_level,
        workspace=workspace,
        hardware_compatibility=hardware_compatibility_level,
        version_compatible=version_compatible,
        compute_capabilities=tuple(filter(None, (compute_capability or "").replace(" ", "").split(","))),
    )
    with stage_bar(PROGRAM, enabled=not verbose) as progress:
        engine = build_engine(
            source,
            output,
            options,
            overwrite=overwrite,
            verbose=verbose,
            say=lambda text: say(PROGRAM, text),
            progress=progress,
        )
    m = engine.manifest
    plugin = "with" if m.plugin else "without"
    kept = f" ({len(m.fp32_layers)} layer{'s' * (len(m.fp32_layers) > 1)} in fp32)" if m.fp32_layers else ""
    print(
        f"{output}: {m.interface.preset} {m.interface.precision}{kept} {plugin} plugin, frames {m.profile}"
        f" (HEIGHTxWIDTH), {m.library} {m.library_version}, compute capability {', '.join(m.compute_capabilities)}"
    )


def _profile(height: int | None, width: int | None, low: str | None, opt: str | None, high: str | None) -> Profile:
    exact, texts = (height, width), (low, opt, high)
    if all(text is None for text in texts) and height is not None and width is not None:
        return Profile.fixed(height, width)
    if exact == (None, None) and low is not None and opt is not None and high is not None:
        return Profile(Sizes.parse(low), Sizes.parse(opt), Sizes.parse(high))
    raise InvalidInputError(
        "say which frames the engine is for: --height and --width for one size, or --min-shapes, --opt-shapes and"
        " --max-shapes for a range"
    )


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
