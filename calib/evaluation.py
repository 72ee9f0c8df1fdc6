"""The figures of an evaluation and the folder that has them: results.json, results.csv and results.md.

Reads and writes that folder, nothing else. Plain Python but for the means.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

from mtu.calib.datasets import Layout
from mtu.calib.picture_sets import PICTURE_LAYOUTS, PictureLayout
from mtu.calib.quality import Quality, for_json, mean
from mtu.core.errors import OutputError
from mtu.core.files import write_whole

FORMAT_VERSION = "1"
"""Version of the layout of results.json."""
UNCOUNTED = 1
"""So many frames at the start of each video are in the figures of frames, but in no mean, as in the released script.
Pictures without neighbours all count."""
RESULTS = "results.json"
KINDS = ("blurred", "restored")

PUBLISHED: dict[Layout | PictureLayout, dict[str, Quality]] = {
    "dvd": {
        "mtu1": Quality(30.21, 0.921),
        "mtu2": Quality(31.00, 0.933),
        "mtu4": Quality(31.41, 0.937),
        "mtu10": Quality(31.90, 0.943),
        "mtu10-large": Quality(32.27, 0.947),
    },
    "gopro": {
        "mtu1": Quality(29.00, 0.915),
        "mtu2": Quality(29.91, 0.928),
        "mtu4": Quality(30.34, 0.933),
        "mtu10": Quality(31.14, 0.942),
        "mtu10-large": Quality(31.92, 0.950),
    },
    "reds": {
        "mtu1": Quality(30.32, 0.901),
        "mtu2": Quality(31.28, 0.917),
        "mtu4": Quality(31.87, 0.926),
        "mtu10": Quality(32.86, 0.940),
        "mtu10-large": Quality(33.55, 0.948),
    },
    "dpdd": {
        "ifan-8": Quality(25.19, 0.777),
        "ifan": Quality(25.37, 0.789),
        "ifan-26": Quality(25.39, 0.788),
        "ifan-35": Quality(25.42, 0.789),
        "ifan-44": Quality(25.45, 0.792),
        "ifan-dual": Quality(25.99, 0.804),
    },
    "realdof": {"ifan": Quality(24.71, 0.748)},
}
"""What a paper has for its own weights of each preset: of MTU Tables 3, 4 and 7; of IFAN, for which it is the
dissertation that it became chapter IV of, Tables 4.2, 4.3, 4.5 and 4.6."""
PUBLISHED_SETS: dict[Layout | PictureLayout, tuple[int, int]] = {
    "dvd": (10, 1000),
    "gopro": (11, 1111),
    "reds": (30, 3000),
    "dpdd": (76, 76),
    "realdof": (50, 50),
}
"""Videos and frames that these figures are of; pictures are counted as both."""


@dataclass(frozen=True)
class Settings:
    """All that decides the figures; an evaluation goes on only under the same."""

    layout: Layout | PictureLayout
    align: bool
    backend: str
    """As asked for: "auto" or a name."""
    device: str
    model: str
    """sha256 of the model's files, hexadecimal."""
    videos: dict[str, int]
    """Frames of each test video; of a picture without neighbours, which is a sequence of its own, one."""

    @property
    def is_of_pictures(self) -> bool:
        """Whether the set has pictures, not videos."""
        return self.layout in PICTURE_LAYOUTS

    @property
    def uncounted(self) -> int:
        """Frames at the start of each video that are in no mean."""
        return 0 if self.is_of_pictures else UNCOUNTED


@dataclass(frozen=True)
class FrameScore:
    """A frame, blurred and restored, against the truth."""

    name: str
    """File name of the blurred frame."""
    blurred: Quality
    restored: Quality
    blurred_shift: tuple[float, float] = (0.0, 0.0)
    """Pixels down and right that were taken away before measuring."""
    restored_shift: tuple[float, float] = (0.0, 0.0)


@dataclass
class Evaluation:
    """The figures of the videos that are done, in the order of the set."""

    settings: Settings
    model_name: str
    preset: str = ""
    """Of the network: "mtu2", or "custom"; empty before the model was opened."""
    videos: dict[str, list[FrameScore]] = field(default_factory=dict)

    def video_means(self) -> dict[str, tuple[Quality, Quality]]:
        """Blurred and restored, the mean over the counted frames of each video."""
        return {name: means(self.counted(scores)) for name, scores in self.videos.items()}

    def overall(self) -> tuple[Quality, Quality]:
        """Blurred and restored, the mean over the counted frames of all videos: the figure of the paper's tables."""
        return means([score for scores in self.videos.values() for score in self.counted(scores)])

    def counted(self, scores: Sequence[FrameScore]) -> Sequence[FrameScore]:
        """Those of a video's frames that count in means."""
        return scores[self.settings.uncounted :]

    def markdown(self) -> str:
        """A table of the videos and one like those of the paper."""
        layout, asked, overall, means = self.settings.layout, self.settings.videos, self.overall(), self.video_means()
        aligned = "each aligned to the truth by a translation" if self.settings.align else "not aligned"
        rows = [(name, len(self.counted(self.videos[name])), *pair) for name, pair in means.items()]
        frames = sum(count for _, count, *_ in rows)
        what, parts = ("picture", "pictures") if self.settings.is_of_pictures else ("video", "frames")
        rows.append((f"**mean over {parts}**", frames, *overall))
        if self.settings.is_of_pictures:
            how = "Each by itself, measured before it is rounded to 8 bits"
        else:
            blurred, restored = map(mean, zip(*means.values(), strict=True))
            rows.append(("mean over videos", frames, blurred, restored))
            how = "The first frame of each video is measured, but in no mean"
        figures = "blurred PSNR dB | blurred SSIM | restored PSNR dB | restored SSIM | gain dB"
        lines = [
            f"{self.model_name} on {layout}, {len(self.videos)} of {len(asked)} {what}s, {aligned}. {how}:",
            "",
            f"| {what} | {parts} counted | {figures} |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, count, before, after in rows:
            figures = f"{before.psnr:.2f} | {before.ssim:.4f} | {after.psnr:.2f} | {after.ssim:.4f}"
            lines.append(f"| {name} | {count} | {figures} | {_gain(before, after)} |")
        columns = dict(zip(("blurred", self.model_name), overall, strict=True))
        if published := PUBLISHED[layout].get(self.preset):
            columns[f"paper's {self.preset}"] = published
        lines += [
            "",
            f"| {layout} | {' | '.join(columns)} |",
            "|---" * (len(columns) + 1) + "|",
            f"| PSNR | {' | '.join(f'{quality.psnr:.2f}' for quality in columns.values())} |",
            f"| SSIM | {' | '.join(f'{quality.ssim:.3f}' for quality in columns.values())} |",
            "",
        ]
        wanted, here = PUBLISHED_SETS[layout], (len(asked), sum(asked.values()))
        if published and here != wanted:
            if self.settings.is_of_pictures:
                measured, found = f"{wanted[0]} pictures", str(here[0])
            else:
                measured, found = f"{wanted[0]} videos with {wanted[1]:,} frames", f"{here[0]} with {here[1]:,}"
            lines += [
                f"Caution: the paper's figures are of other pictures. It measured {measured}, and here are {found}.",
                "",
            ]
        return "\n".join(lines)

    def csv(self) -> str:
        """A line for each frame of each video that is done, under a line of names."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = [f"{kind}_{what}" for kind in KINDS for what in ("psnr", "ssim", "down", "right")]
        writer.writerow(["video", "frame", "file", "counted", *columns])
        for video, scores in self.videos.items():
            for index, score in enumerate(scores):
                blurred = *astuple(score.blurred), *score.blurred_shift
                figures = *blurred, *astuple(score.restored), *score.restored_shift
                is_counted = int(index >= self.settings.uncounted)
                writer.writerow([video, index + 1, score.name, is_counted, *(f"{f:.6g}" for f in figures)])
        return text.getvalue()

    def json(self) -> str:
        """Everything, as `load` reads it; an infinite PSNR is null."""
        content: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "settings": asdict(self.settings),
            "model_name": self.model_name,
            "preset": self.preset,
        }
        if self.videos:
            content["mean_over_frames"] = _pair(self.overall())
            content["means"] = {name: _pair(means) for name, means in self.video_means().items()}
        content["videos"] = {
            name: [{**asdict(score), **_pair((score.blurred, score.restored))} for score in scores]
            for name, scores in self.videos.items()
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def save(self, directory: Path | None) -> None:
        """Writes the three files of the folder, if there is to be one, each in one step. Raises OutputError."""
        if directory is None:
            return
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_whole(directory / RESULTS, self.json().encode())
            if self.videos:
                write_whole(directory / "results.csv", self.csv().encode())
                write_whole(directory / "results.md", self.markdown().encode())
        except OSError as error:
            raise OutputError(f"cannot write the results to {directory}: {error.strerror}") from None


def begun(directory: Path | None, settings: Settings) -> Evaluation | None:
    """The evaluation that the folder holds, None if it holds nothing. Raises OutputError if it is not this one."""
    other = "give another folder with -o"
    if directory is None or not directory.exists():
        return None
    if not directory.is_dir():
        raise OutputError(f"{directory} is a file; the results are a folder: {other}")
    path = directory / RESULTS
    if not path.is_file():
        if foreign := sorted(entry.name for entry in directory.iterdir() if not entry.name.startswith(".")):
            raise OutputError(f"{directory} holds {foreign[0]} and no {RESULTS}, so it is no evaluation: {other}")
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version is {content['format_version']!r}")
        before = Settings(**content["settings"])
        videos = {name: [_score_of(frame) for frame in frames] for name, frames in content["videos"].items()}
        begun = Evaluation(before, str(content["model_name"]), str(content["preset"]), videos)
        if any(len(scores) != before.videos[name] for name, scores in videos.items()):
            raise ValueError("a video is not whole")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"{path} cannot be gone on with ({error}): remove it, or {other}") from None
    for name, asked in asdict(settings).items():
        if (had := getattr(before, name)) != asked:
            raise OutputError(f"{directory} holds another evaluation, {_difference(name, had, asked)}: {other}")
    return begun


def _difference(name: str, had: Any, asked: Any) -> str:
    if name == "model":
        return f"of another model (sha256 {had[:12]}, asked for {asked[:12]})"
    if name == "videos":
        changed = sorted({video for video, _ in had.items() ^ asked.items()})
        return f"of other videos or frames (the first that differs: {changed[0]})"
    return f"with {name} {had}, asked for {asked}"


def _score_of(frame: dict[str, Any]) -> FrameScore:
    """What `Evaluation.json` wrote of a frame."""
    figures: list[Any] = []
    for kind in KINDS:
        psnr, ssim = frame[kind]["psnr"], frame[kind]["ssim"]
        figures.append(Quality(math.inf if psnr is None else float(psnr), float(ssim)))
    for down, right in (frame[f"{kind}_shift"] for kind in KINDS):
        figures.append((float(down), float(right)))
    return FrameScore(str(frame["name"]), *figures)


def _pair(pair: tuple[Quality, Quality]) -> dict[str, dict[str, float | None]]:
    """Blurred and restored for JSON, which has no infinity."""
    return dict(zip(KINDS, map(for_json, pair), strict=True))


def means(scores: Sequence[FrameScore]) -> tuple[Quality, Quality]:
    """Blurred and restored, the mean over frames."""
    return mean([score.blurred for score in scores]), mean([score.restored for score in scores])


def _gain(before: Quality, after: Quality) -> str:
    gain = after.psnr - before.psnr
    return "-" if math.isnan(gain) else f"{gain:+.2f}"
