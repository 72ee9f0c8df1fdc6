"""What containers can hold, and what their demuxers tell: a row for each that is not ordinary. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace

_ANY_OPTIONS = "avoid_negative_ts fflags flush_packets max_delay max_interleave_delta packetsize strict"
_MOV_OPTIONS = (
    "movflags brand chunk_duration empty_hdlr_name encryption_key encryption_scheme frag_duration frag_interleave"
    " frag_size fragment_index iods_audio_profile iods_video_profile min_frag_duration moov_size"
    " mov_gamma movie_timescale use_editlist use_stream_ids_as_track_ids video_track_timescale write_btrt write_prft"
    " write_tmcd"
)
_MATROSKA_OPTIONS = (
    "allow_raw_vfw cluster_size_limit cluster_time_limit cues_to_front dash dash_track_number default_mode"
    " flipped_raw_rgb live reserve_index_space write_crc32"
)
_MPEGTS_OPTIONS = (
    "mpegts_flags mpegts_m2ts_mode mpegts_original_network_id mpegts_pmt_start_pid mpegts_service_id"
    " mpegts_service_type mpegts_start_pid mpegts_transport_stream_id muxrate omit_video_pes_length pat_period"
    " pcr_period pes_payload_size sdt_period tables_version"
)


@dataclass(frozen=True, kw_only=True)
class Container:
    """A container that is written. The defaults are those of most."""

    quicktime: bool = False
    """Made of QuickTime's boxes."""
    matroska: bool = False
    """Made of Matroska's elements; of these PyAV cannot write the pixel aspect."""
    edit_lists: bool = False
    """Hides what lies before time 0; shows nothing without an end."""
    matrix: bool = False
    """Keeps a display matrix; all eight turns and flips survive (test_video_pictures.py)."""
    chapters: bool = False
    covers: bool = False
    """Keeps a cover as a cover, not as one more video."""
    text: str | None = None
    """Its text subtitles, to which others are converted."""
    stereo: frozenset[str] | None = frozenset()
    """Arrangements of two views, in Matroska's words, that it can tell of an encoded stream; None: all."""
    rate_only: bool = False
    """Has no times, most a rate. FFmpeg's flag NO_TIMESTAMPS says so of others."""
    in_order: bool = False
    """Holds one time for each picture, of its place in the file: pictures must be shown in that order."""
    loops: str | None = None
    """Its option for how often it is played."""
    options: str = ""
    """Its muxer's own, for "did you mean": PyAV cannot list what a muxer takes."""

    def keeps_stereo(self, mode: str) -> bool:
        """Whether it can tell of an encoded stream that its pictures hold two views so."""
        return self.stereo is None or mode in self.stereo

    @property
    def known_options(self) -> list[str]:
        """Its own options and those that every muxer takes."""
        return f"{self.options} {_ANY_OPTIONS}".split()


@dataclass(frozen=True, kw_only=True)
class Demuxer:
    """A container that is read. The defaults are those of most."""

    free_clock: bool = False
    """Its clock begins anywhere; in others an offset is meant."""
    lasts_from_zero: bool = False
    """Its duration counts from time 0, not from where its clock begins."""
    packets_are_timed: bool = False
    """It has no timestamps, and those that FFmpeg makes up for B-frames are wrong: the place in the file, which is the
    packet's dts, is the time, and the n-th picture out belongs to the n-th packet in."""
    aspect_of_track: bool = False
    """The pixel aspect holds for the whole track; elsewhere the codec's, unless the container has another."""


_MOV = Container(quicktime=True, edit_lists=True, matrix=True, chapters=True, options=_MOV_OPTIONS)
_MATROSKA = Container(matroska=True, matrix=True, chapters=True, options=_MATROSKA_OPTIONS)
_RATE_ONLY = Container(rate_only=True)
_CONTAINERS = {
    "mp4": replace(_MOV, covers=True, text="mov_text"),
    "ipod": replace(_MOV, covers=True, text="mov_text"),
    "mov": replace(_MOV, text="mov_text"),
    **dict.fromkeys(("3gp", "3g2", "psp", "f4v"), _MOV),
    "ismv": replace(_MOV, edit_lists=False, chapters=False),
    "matroska": replace(_MATROSKA, covers=True, text="subrip", stereo=None),
    "webm": replace(
        _MATROSKA, text="webvtt", stereo=frozenset(("left_right", "right_left", "top_bottom", "bottom_top"))
    ),
    "nut": Container(chapters=True),
    "asf": Container(chapters=True, in_order=True),
    "asf_stream": Container(in_order=True),
    "avi": Container(rate_only=True, in_order=True, options="flipped_raw_rgb reserve_index_space write_channel_mask"),
    "ogg": replace(_RATE_ONLY, options="page_duration pagesize serial_offset"),
    **dict.fromkeys(("dv", "filmstrip", "ogv", "rm", "roq", "swf"), _RATE_ONLY),
    "gif": Container(loops="loop", options="final_delay loop"),
    "apng": Container(loops="plays", options="final_delay plays"),
    "webp": Container(loops="loop", options="loop"),
    "mpegts": Container(options=_MPEGTS_OPTIONS),
    "mpeg": Container(options="muxrate preload"),
    "flv": Container(options="flvflags"),
}
_DEMUXERS = {
    "mpegts": Demuxer(free_clock=True),
    "mpeg": Demuxer(free_clock=True),
    "matroska,webm": Demuxer(lasts_from_zero=True, aspect_of_track=True),
    "nut": Demuxer(lasts_from_zero=True),
    "avi": Demuxer(packets_are_timed=True),
}


def container_of(muxer: str) -> Container:
    """The row of a container by FFmpeg's name of its muxer."""
    return _CONTAINERS.get(muxer, Container())


def demuxer_of(name: str) -> Demuxer:
    """The row of a container by FFmpeg's name of its demuxer."""
    return _DEMUXERS.get(name, Demuxer())
