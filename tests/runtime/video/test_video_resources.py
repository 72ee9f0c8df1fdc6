"""Nothing is left open, memory stays flat, reading is lazy, and reader and writer can live in two threads."""

from __future__ import annotations

import gc
import queue
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import ROOT
from tests.media import make_video, moving, packets, times
from tests.processes import LIMIT
from tests.video_run import run

from mtu.runtime.video import Frame, open_reader, open_writer

linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts handles in /proc")


def open_things() -> tuple[int, int]:
    """Open file handles and threads of this process."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))


def memory() -> int:
    """Resident bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@linux
def test_fifty_openings_leave_nothing(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", 6, audio=True, subtitles=True)
    garbage = tmp_path / "bad.mp4"
    garbage.write_bytes(b"no video at all" * 1000)

    def once(number: int) -> None:
        run(source, tmp_path / "out.mp4", overwrite=True)
        with open_reader(source) as reader, open_writer(tmp_path / "left.mp4", reader.info) as writer:
            for event in reader:
                if isinstance(event, Frame):
                    writer.write(event.rgb, event)
                    break
        with pytest.raises(ValueError, match="not a video"):
            open_reader(garbage)
        del number

    for number in range(3):
        once(number)
    handles, threads = open_things()
    for number in range(50):
        once(number)
    later_handles, later_threads = open_things()
    assert later_handles <= handles
    assert later_threads <= threads


@linux
def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    pictures = moving(40, 144, 176)
    source = make_video(tmp_path / "in.mkv", pictures * 10, audio=True, options={"preset": "ultrafast"})
    with open_reader(source) as reader, open_writer(tmp_path / "out.mkv", reader.info) as writer:
        seen: list[int] = []
        for number, event in enumerate(reader):
            if isinstance(event, Frame):
                writer.write(event.rgb, event)
            else:
                writer.copy(event)
            if number in (200, 600):
                seen.append(memory())
        writer.commit()
    # 300 pictures of 76 kB would be 22 MB.
    assert seen[1] - seen[0] < 10_000_000


def read_so_far(path: Path) -> int:
    """How far this process has come in a file that it has open, in bytes."""
    for handle in Path("/proc/self/fd").iterdir():
        if handle.exists() and handle.samefile(path):
            words = Path("/proc/self/fdinfo", handle.name).read_text().split()
            return int(words[words.index("pos:") + 1])
    raise AssertionError(f"{path} is not open")


@linux
def test_reading_is_lazy(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.y4m", 200, codec="rawvideo", pix_fmt="yuv444p")
    size = source.stat().st_size
    with open_reader(source) as reader:
        events = iter(reader)
        assert read_so_far(source) < 0.1 * size
        for _ in range(50):
            next(events)
        assert 0.2 * size < read_so_far(source) < 0.5 * size


def test_reader_and_writer_in_two_threads(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", moving(40, 96, 128), audio=True)
    events: queue.Queue[object] = queue.Queue(4)
    failures: list[BaseException] = []
    with open_reader(source) as reader, open_writer(tmp_path / "out.mkv", reader.info) as writer:

        def read() -> None:
            for event in reader:
                events.put(event)
            events.put(None)

        def write() -> None:
            try:
                while (event := events.get()) is not None:
                    if isinstance(event, Frame):
                        writer.write(255 - event.rgb, event)
                    else:
                        writer.copy(event)  # type: ignore[arg-type]
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read), threading.Thread(target=write)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        writer.commit()
    assert not failures
    assert times(tmp_path / "out.mkv") == times(source)
    assert packets(tmp_path / "out.mkv", "audio") == packets(source, "audio")


def test_pictures_are_contiguous_and_ones_own(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", moving(4, 36, 50))
    with open_reader(source) as reader:
        frames = [event for event in reader if isinstance(event, Frame)]
    kept = [frame.rgb.copy() for frame in frames]
    assert all(frame.rgb.flags.c_contiguous and frame.rgb.dtype == np.uint8 for frame in frames)
    del reader
    gc.collect()
    assert all(np.array_equal(frame.rgb, copy) for frame, copy in zip(frames, kept, strict=True))


def test_only_the_base_install_is_imported() -> None:
    code = (
        "import sys, mtu.runtime.video; print(sorted(m for m in sys.modules if m in ('torch','onnx','skimage','PIL')))"
    )
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / ".links")},
    )
    assert done.stdout.strip() == "[]"
