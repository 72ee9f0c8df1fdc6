"""Names of tracks, format tags and the types of attached pictures in other containers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.stream import Disposition
from tests.media import make_video, moving, times
from tests.video_run import run

from mtu.runtime.video import EncodeOptions, parse_muxer_options


def named(path: Path, tags: dict[str, str]) -> Path:
    """A video whose two streams, pictures and sound, have these tags."""
    plain = make_video(path.with_name(f"plain{path.suffix}"), 3, audio=True)
    with av.open(str(plain)) as source, av.open(str(path), "w") as out:
        copies = [out.add_stream_from_template(stream, opaque=True) for stream in source.streams]
        for copy in copies:
            copy.metadata.update(tags)
        for packet in source.demux():
            if packet.size:
                packet.stream = copies[packet.stream_index]
                out.mux(packet)
    return path


def tags_of(path: Path) -> list[dict[str, str]]:
    with av.open(str(path)) as file:
        return [{key.lower(): value for key, value in stream.metadata.items()} for stream in file.streams]


@pytest.mark.parametrize("target", ["mp4", "mov", "mkv", "m4v", "3gp", "nut"])
@pytest.mark.parametrize("source", ["mp4", "mov", "mkv"])
def test_names_of_tracks_survive(tmp_path: Path, source: str, target: str) -> None:
    run(named(tmp_path / f"in.{source}", {"title": "Commentary"}), tmp_path / f"out.{target}")
    for tags in tags_of(tmp_path / f"out.{target}"):
        if target in ("mp4", "mov"):
            assert tags["name"] == tags["handler_name"] == "Commentary"
        else:
            assert tags["handler_name" if target in ("m4v", "3gp") else "title"] == "Commentary"
            assert target != "mkv" or "name" not in tags


@pytest.mark.parametrize("target", ["mp4", "mov", "mkv"])
def test_handler_name_that_someone_gave_is_a_name(tmp_path: Path, target: str) -> None:
    run(named(tmp_path / "in.mp4", {"handler_name": "Kommentar"}), tmp_path / f"out.{target}")
    for tags in tags_of(tmp_path / f"out.{target}"):
        assert tags["title" if target == "mkv" else "handler_name"] == "Kommentar"
        assert target != "mkv" or "handler_name" not in tags


def test_name_and_handler_name_are_two(tmp_path: Path) -> None:
    run(named(tmp_path / "in.mov", {"title": "Angle 2", "handler_name": "Camera B"}), tmp_path / "out.mp4")
    for tags in tags_of(tmp_path / "out.mp4"):
        assert (tags["name"], tags["handler_name"]) == ("Angle 2", "Camera B")


@pytest.mark.parametrize(
    "handler",
    [
        "SoundHandler",
        "Core Media Audio",
        "Apple Sound Media Handler",
        "ISO Media file produced by Google Inc.",
        "GPAC ISO Audio Handler",
        "soun",
        "\x10",
    ],
)
def test_handler_name_of_software_is_no_name(tmp_path: Path, handler: str) -> None:
    run(named(tmp_path / "in.mp4", {"handler_name": handler}), tmp_path / "out.mkv")
    assert not any(tags.keys() & {"title", "handler_name", "name"} for tags in tags_of(tmp_path / "out.mkv"))


def codec_tags(path: Path) -> list[str]:
    with av.open(str(path)) as file:
        return [stream.codec_context.codec_tag for stream in file.streams.video]


HEVC = {"codec": "libx265", "options": {"x265-params": "log-level=error", "preset": "ultrafast"}}


def test_encoded_hevc_is_hvc1(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", 2)
    options = EncodeOptions(codec="hevc")
    for ending in ("mp4", "mov", "mkv"):
        run(source, tmp_path / f"out.{ending}", options=options)
        assert codec_tags(tmp_path / f"out.{ending}") == (["\0\0\0\0"] if ending == "mkv" else ["hvc1"])
        assert len(times(tmp_path / f"out.{ending}")) == 2


@pytest.mark.parametrize(
    ("ending", "tag", "kept"),
    [("mp4", "hvc1", "hvc1"), ("mp4", "hev1", "hev1"), ("mkv", "", "hvc1"), ("ts", "", "hvc1")],
)
def test_copied_hevc_keeps_a_tag_that_is_valid(tmp_path: Path, ending: str, tag: str, kept: str) -> None:
    hevc = make_video(tmp_path / "hevc.mkv", 3, **HEVC)
    with av.open(str(hevc)) as second, av.open(str(tmp_path / f"in.{ending}"), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"preset": "ultrafast"}, width=64, height=48)
        copy = out.add_stream_from_template(second.streams.video[0], opaque=True)
        if tag:
            copy.codec_context.codec_tag = tag
        for index, rgb in enumerate(moving(3)):
            picture = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = index, Fraction(1, 25)
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
        for packet in second.demux():
            if packet.size:
                packet.stream = copy
                out.mux(packet)
    for target in ("mp4", "mov"):
        run(tmp_path / f"in.{ending}", tmp_path / f"out.{target}")
        assert codec_tags(tmp_path / f"out.{target}") == ["avc1", kept]
        with av.open(str(tmp_path / f"out.{target}")) as file:
            assert len(list(file.decode(video=1))) == 3


COVERS = [("mjpeg", "yuvj420p", "image/jpeg", "cover.jpg"), ("png", "rgb24", "image/png", "cover.png")]
OTHERS = [("gif", "rgb8", "image/gif", "cover.gif"), ("tiff", "rgb24", "image/tiff", "cover.tif")]


def with_cover(path: Path, codec: str, form: str, kind: str, name: str) -> bytes:
    """A video with an attached picture; gives the picture's bytes."""
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 32, 32, form, Fraction(1, 25)
    picture = av.VideoFrame.from_ndarray(moving(1, 32, 32)[0], "rgb24").reformat(format=form)
    packets = encoder.encode(picture) + encoder.encode(None)
    data = b"".join(bytes(packet) for packet in packets)
    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=25, width=64, height=48)
        if path.suffix == ".mkv":
            out.add_attachment(name, kind, data)
        else:
            image = out.add_stream(codec, width=32, height=32, pix_fmt=form)
            image.disposition = av.stream.Disposition.attached_pic
            packet = av.Packet(data)
            packet.pts = packet.dts = 0
            packet.time_base, packet.stream = Fraction(1, 25), image
            out.mux(packet)
        for index, rgb in enumerate(moving(3)):
            shown = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format="yuv420p")
            shown.pts, shown.time_base = index, Fraction(1, 25)
            out.mux(video.encode(shown))
        out.mux(video.encode(None))
    return data


@pytest.mark.parametrize("source", ["mkv", "mp4"])
@pytest.mark.parametrize("target", ["mkv", "mp4"])
@pytest.mark.parametrize(("codec", "form", "kind", "name"), COVERS)
def test_type_of_a_cover(tmp_path: Path, source: str, target: str, codec: str, form: str, kind: str, name: str) -> None:
    data = with_cover(tmp_path / f"in.{source}", codec, form, kind, name)
    run(tmp_path / f"in.{source}", tmp_path / f"out.{target}")
    with av.open(str(tmp_path / f"out.{target}")) as file:
        cover = file.streams.video[1]
        assert cover.disposition == av.stream.Disposition.attached_pic and cover.codec_context.name == codec
        assert target == "mp4" or (cover.metadata["mimetype"], cover.metadata["filename"]) == (kind, name)
        assert next(bytes(packet) for packet in file.demux(cover) if packet.size) == data


@pytest.mark.parametrize(("codec", "form", "kind", "name"), OTHERS)
def test_type_of_an_unusual_cover(tmp_path: Path, codec: str, form: str, kind: str, name: str) -> None:
    with_cover(tmp_path / "in.mkv", codec, form, kind, name)
    run(tmp_path / "in.mkv", tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as file:
        tags = file.streams.video[1].metadata
        assert (tags["mimetype"], tags["filename"]) == (kind, name)
    assert f"cannot hold video stream 1 ({codec})" in run(tmp_path / "in.mkv", tmp_path / "out.mp4").text


def test_type_of_a_cover_is_that_of_its_data(tmp_path: Path) -> None:
    with_cover(tmp_path / "in.mkv", "mjpeg", "yuvj420p", "image/png", "cover.png")
    run(tmp_path / "in.mkv", tmp_path / "out.mkv")
    assert tags_of(tmp_path / "out.mkv")[1]["mimetype"] == "image/jpeg"


TAGS = {"title": "A day", "artist": "Me", "comment": "None", "my_key": "mine"}


@pytest.mark.parametrize(
    ("source", "target", "lost"),
    [
        ("mkv", "mkv", ""),
        ("mp4", "mov", ""),
        ("mkv", "mp4", "my_key; --mux use_metadata_tags would"),
        ("mkv", "avi", "my_key"),
        ("mkv", "ts", "artist, comment, my_key, title"),
        ("mp4", "h264", "artist, comment, title"),
        ("mkv", "gif", "artist, comment, my_key, title"),
        ("mov", "mpg", "artist, comment, title"),
    ],
)
def test_tags_that_are_lost_are_said(tmp_path: Path, source: str, target: str, lost: str) -> None:
    path = make_video(tmp_path / f"in.{source}", 3, metadata=TAGS)
    notes = [note for note in run(path, tmp_path / f"out.{target}").writer_notes if "cannot hold these tags: " in note]
    assert len(notes) == bool(lost)
    said, _, hint = "".join(notes).partition("tags: ")[2].partition(";")
    assert ", ".join(sorted(said.split(", "))) == lost.partition(";")[0] and hint.startswith(lost.partition(";")[2])


def test_all_tags_are_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    path = make_video(tmp_path / "in.mkv", 3, metadata=TAGS)
    options = EncodeOptions(muxer_options=parse_muxer_options(["use_metadata_tags"]))
    assert "tags" not in run(path, tmp_path / "out.mp4", options=options).text
    with av.open(str(tmp_path / "out.mp4")) as file:
        assert {key.lower(): value for key, value in file.metadata.items()}.items() >= TAGS.items()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("mkv", ""),
        ("mp4", ""),
        ("avi", "avi cannot hold of audio stream 2 (aac, deu): its language"),
        ("ts", ""),
        ("flv", "flv cannot hold of audio stream 2 (aac, deu): its language"),
    ],
)
def test_lost_names_and_languages_are_said(tmp_path: Path, target: str, said: str) -> None:
    path = make_video(tmp_path / "in.mkv", 3, audio=2, subtitles=True)
    found = [note for note in run(path, tmp_path / f"out.{target}").writer_notes if " cannot hold of " in note]
    assert said in " ".join(found) and bool(found) is bool(said)


@pytest.mark.parametrize(
    ("code", "kept"), [("deu", "ger"), ("fre", "fra"), ("eng", "eng"), ("zho", "chi"), ("cze", "ces"), ("ita", "ita")]
)
def test_languages_in_mov(tmp_path: Path, code: str, kept: str) -> None:
    run(named(tmp_path / "in.mkv", {"language": code}), tmp_path / "out.mov")
    assert [tags["language"] for tags in tags_of(tmp_path / "out.mov")] == [kept, kept]


def test_name_that_is_lost_is_said(tmp_path: Path) -> None:
    path = named(tmp_path / "in.mkv", {"title": "Commentary"})
    said = run(path, tmp_path / "out.ts").text
    assert "mpegts cannot hold of the video stream: its name" in said
    assert "mpegts cannot hold of audio stream 1 (aac, Commentary): its name" in said


def marked(path: Path, marks: Disposition) -> Path:
    """A file whose sound has these marks."""
    with av.open(str(make_video(path.with_stem("plain"), 3, audio=1))) as source, av.open(str(path), "w") as file:
        streams = [file.add_stream_from_template(stream, opaque=True) for stream in source.streams]
        streams[1].disposition = marks
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream_index]
                file.mux(packet)
    return path


@pytest.mark.parametrize(
    ("target", "marks", "lost"),
    [
        ("mkv", Disposition.comment | Disposition.hearing_impaired, ""),
        ("mkv", Disposition.default, ""),
        ("mov", Disposition.forced, "its mark forced"),
        ("mov", Disposition.hearing_impaired | Disposition.forced, "its marks forced, hearing_impaired"),
        ("flv", Disposition.comment, "its mark comment"),
        ("ts", Disposition.comment | Disposition.default, "its mark comment"),
    ],
)
def test_what_a_stream_is_marked_as_is_kept_or_said(tmp_path: Path, target: str, marks: Disposition, lost: str) -> None:
    out = tmp_path / f"out.{target}"
    found = [note for note in run(marked(tmp_path / "in.mkv", marks), out).writer_notes if "its mark" in note]
    assert [note.partition("): ")[2] for note in found] == ([lost] if lost else [])
    if not lost:
        with av.open(str(out)) as file:
            assert file.streams.audio[0].disposition & marks == marks
