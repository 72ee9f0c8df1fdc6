"""`mtu-build-plugin`: parses, calls `mtu.plugins.build`, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mtu.plugins.build import build_plugin
from mtu.runtime.console import new_app, run_app, say
from mtu.runtime.console.options import OUTPUT, OverwriteOption, VersionOption

PROGRAM = "mtu-build-plugin"
app = new_app()


@app.command()
def main_build(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Directory for the libmtu_plugin_trt<major> libraries.",
            rich_help_panel=OUTPUT,
        ),
    ],
    tensorrt_include: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="TensorRT's headers; else TENSORRT_INCLUDE_DIR, TENSORRT_ROOT or the usual places are used.",
        ),
    ] = None,
    fetch_tensorrt: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="Download the headers of this release from GitHub, for example 8.6.1, 10.16 or 11.1.",
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="GPUs to compile for, as 80,86, or native; else 75, 80, 86, 89, 90, 100 and 120 as far as nvcc can.",
        ),
    ] = None,
    nvcc: Annotated[
        Path | None, typer.Option(metavar="PATH", help="nvcc; else from PATH, CUDA_HOME or /usr/local/cuda.")
    ] = None,
    cmake_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="ARG", help="Passed to cmake, for example -DCMAKE_CXX_COMPILER=g++-12; may be repeated."),
    ] = None,
    overwrite: OverwriteOption = False,
    version: VersionOption = False,
) -> None:
    """Builds the TensorRT plugin as a C++ library, for trtexec, Triton, DeepStream and other programs without Python.

    One library for each major version of TensorRT; TensorRT-RTX takes that of TensorRT 11. Python needs none of them.
    Beside it, from TensorRT 10 on, a second one, ..._register.so: where a program opens a file and no more (Triton,
    DeepStream, Polygraphy), name that one, and it registers the plugin.
    """
    library = build_plugin(
        output,
        tensorrt_include=tensorrt_include,
        fetch_tensorrt=fetch_tensorrt,
        nvcc=nvcc,
        architectures=arch.split(",") if arch else (),
        cmake_arguments=cmake_arg or (),
        overwrite=overwrite,
        say=lambda text: say(PROGRAM, text),
    )
    major, minor = library.tensorrt
    releases = {8: "TensorRT 8.6", 11: "TensorRT 11 and TensorRT-RTX 1.7"}.get(major, f"TensorRT {major}")
    print(f"{library.path}: for {releases}, headers {major}.{minor}, GPUs {library.architectures}")
    print(f"use it with: trtexec --dynamicPlugins={library.path} ...")
    if library.registers:
        print(f"programs that only open a file (Triton, DeepStream, Polygraphy): {library.registers}")


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
