"""`mtu-build-engine`: parses, calls `mtu.export.engine`, prints. Imports rich; onnx and TensorRT inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from mtu.core.errors import InvalidInputError
from mtu.export.engine_options import PROGRAM, BuildOptions
from mtu.runtime.backends import Stages, open_model
from mtu.runtime.console import new_app, run_app, say
from mtu.runtime.console.options import OUTPUT, KeepFp32Option, OverwriteOption, PluginLibraryOption, VersionOption
from mtu.runtime.console.progress import stage_bar
from mtu.runtime.engine import Engine, HardwareCompatibility, Profile, Sizes

app = new_app()
EXACT, RANGE = "One size of frames", "A range of sizes"


@app.command()
def build(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle or chain made by mtu-export, or mtu2.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to write.", rich_help_panel=OUTPUT)
    ],
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="Of the frames, as in 1280x720; multiples of what the model takes, 4 for mtu2.",
            rich_help_panel=EXACT,
        ),
    ] = None,
    min_size: Annotated[str | None, typer.Option(metavar="WxH", help="Smallest.", rich_help_panel=RANGE)] = None,
    opt_size: Annotated[
        str | None, typer.Option(metavar="WxH", help="The one to be fastest at.", rich_help_panel=RANGE)
    ] = None,
    max_size: Annotated[str | None, typer.Option(metavar="WxH", help="Largest.", rich_help_panel=RANGE)] = None,
    # The old forms, for a release.
    height: Annotated[int | None, typer.Option(hidden=True)] = None,
    width: Annotated[int | None, typer.Option(hidden=True)] = None,
    min_shapes: Annotated[str | None, typer.Option(hidden=True)] = None,
    opt_shapes: Annotated[str | None, typer.Option(hidden=True)] = None,
    max_shapes: Annotated[str | None, typer.Option(hidden=True)] = None,
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
        bool, typer.Option("--no-plugin", help="Standard operators in place of the fused plugins.")
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
    """Builds the TensorRT engine of a bundle: a file for each graph, engine.json and build.log. Of a chain, one of each
    stage.

    mtu-run pads other frames: with mtu2, a 1918x1078 video takes an engine for 1920x1080.
    """
    sizes = [min_size, opt_size, max_size]
    if size is None and height is not None and width is not None:
        size = f"{width}x{height}"
        say(PROGRAM, f"note: --height and --width will go; write --size {size}")
    if sizes == [None] * 3 and min_shapes and opt_shapes and max_shapes:
        sizes = ["x".join(reversed(text.split("x"))) for text in (min_shapes, opt_shapes, max_shapes)]
        new = " ".join(f"--{name}-size {text}" for name, text in zip(("min", "opt", "max"), sizes, strict=True))
        say(PROGRAM, f"note: --min-shapes and so on are read as HEIGHTxWIDTH and will go; write {new}")
    profile = _profile(size, *sizes)
    if profile.opt.height > profile.opt.width:
        say(PROGRAM, f"note: {profile.opt} is upright, {profile.opt.width} wide and {profile.opt.height} high")
    source = open_model(bundle)
    if isinstance(source, Engine):
        raise InvalidInputError(f"{bundle} is an engine already: give the bundle it was built from")
    from mtu.export.engine import build_chain, build_engine

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
        hardware_compatibility_level=hardware_compatibility_level,
        version_compatible=version_compatible,
        compute_capability=tuple(filter(None, (compute_capability or "").replace(" ", "").split(","))),
    )
    with stage_bar(PROGRAM, enabled=not verbose) as progress:
        how: dict[str, Any] = {
            "overwrite": overwrite,
            "verbose": verbose,
            "say": lambda text: say(PROGRAM, text),
            "progress": progress,
        }
        if isinstance(source, Stages):
            built = build_chain(source, output, options, **how).models
        else:
            built = (build_engine(source, output, options, **how),)
    for engine in built:
        assert isinstance(engine, Engine)
        print(f"{engine.directory if len(built) > 1 else output}: {_summary(engine)}")


def _summary(engine: Engine) -> str:
    m = engine.manifest
    kept = f" ({len(m.fp32_layers)} layer{'s' * (len(m.fp32_layers) > 1)} in fp32)" if m.fp32_layers else ""
    return (
        f"{m.interface.variant} {m.interface.arithmetic}{kept} {'with' if m.plugins else 'without'} plugin, frames"
        f" {m.profile}, {m.library} {m.library_version}, compute capability {', '.join(m.compute_capabilities)}"
    )


def _profile(size: str | None, low: str | None, opt: str | None, high: str | None) -> Profile:
    if size is not None and low is opt is high is None:
        return Profile(*[Sizes.parse(size)] * 3)
    if size is None and low is not None and opt is not None and high is not None:
        return Profile(Sizes.parse(low), Sizes.parse(opt), Sizes.parse(high))
    raise InvalidInputError(
        "say which frames the engine is for: --size 1280x720 for one size, or for a range all of --min-size, --opt-size"
        " and --max-size"
    )


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
