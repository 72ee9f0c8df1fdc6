"""`python -m mtu.calib.quality_cli RESTORED --blurred B --sharp S`: parses, calls `mtu.calib.quality`, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mtu.calib.quality import comparison, mean, measure_restored, most_gained
from mtu.core.extras import require
from mtu.runtime import read_frames
from mtu.runtime.console import new_app, run_app

PROGRAM = "mtu.calib.quality_cli"
app = new_app()


@app.command()
def quality(
    restored: Annotated[Path, typer.Argument(help="The video that mtu-run wrote.")],
    blurred: Annotated[Path, typer.Option(help="The video it was made from.")],
    sharp: Annotated[Path, typer.Option(help="The truth.")],
    picture: Annotated[
        Path | None, typer.Option(help="PNG to write: blurred, restored and sharp side by side.")
    ] = None,
) -> None:
    """Prints PSNR and SSIM of a restored video before and after."""
    require("compare", PROGRAM, "skimage")
    from mtu.runtime.video import write_png

    videos = {"blurred": list(read_frames(blurred)), "restored": list(read_frames(restored))}
    videos["sharp"] = list(read_frames(sharp))
    each = measure_restored(videos)
    before, after = mean(each["blurred"]), mean(each["restored"])
    print(f"{len(videos['sharp'])} frames      PSNR        SSIM")
    print(f"blurred      {before.psnr:6.2f} dB   {before.ssim:.4f}")
    print(f"restored     {after.psnr:6.2f} dB   {after.ssim:.4f}")
    print(f"gain         {after.psnr - before.psnr:+6.2f} dB  {after.ssim - before.ssim:+.4f}")
    if picture is not None:
        part = most_gained(videos)
        write_png(picture, comparison(videos, part))
        print(f"comparison picture: {picture} (frame {part.frame}; below, the part whose SSIM rose most)")


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
