"""What the video and the audio track of a clip share. Times are in seconds from the clip's start."""

from typing import Any

import av

from mer_r1.data.media.container import DECODING_ERRORS, MediaLimits

MAX_PACKETS = 100_000
"""Packets of a track above which the rest is cut."""


class Track:
    """One stream of an open file, fed with packets as they come out of the demuxer.

    Attributes:
        cut: whether the track continues after the part that is used.
        damaged: number of packets that could not be decoded.
        reached: latest time seen, in seconds.
        trims: whether what lies before 0 s is left out, because the clip is a section of a longer recording.
    """

    trims = False

    def __init__(self, stream: Any, start_seconds: float, limits: MediaLimits) -> None:
        self.stream, self.limits, self._start = stream, limits, start_seconds
        self._tick = float(stream.time_base or 0)
        self.cut = False
        self.damaged = 0
        self.reached = 0.0

    def seconds(self, ticks: int | None) -> float | None:
        """Convert a time stamp of this stream to seconds from the clip's start."""
        return None if ticks is None else ticks * self._tick - self._start

    def _decode(self, packet: Any) -> list[Any]:
        try:
            return self.stream.codec_context.decode(packet)
        except av.error.EOFError:
            return []
        except DECODING_ERRORS:
            self.damaged += 1
            return []
