"""The two tracks of a clip, fed with packets as they come out of the demuxer.

Picture: packets are kept, compressed, until the track's end is known; then the evenly spaced moments are chosen, and
only the groups of pictures that hold one of them are decoded. Sound: packets are decoded at once, mixed to mono and
resampled; gaps and a late start become silence, so that a sample's place is its time.

Times are in seconds from the clip's start.
"""

from typing import Any

import av

from mer_r1.data.media.container import DECODING_ERRORS, MediaLimits

SHORTEST_SOUND = 0.025
"""Seconds; one analysis window of a spectrogram. Shorter sound counts as none."""

_MAX_PACKETS = 100_000
_LONGEST_GAP = 0.1  # seconds between sounds that are bridged with silence
_SAMPLING_RATES = (2_000, 768_000)
_MAX_CHANNELS = 8  # what an AVFrame holds without extension; PyAV is not safe beyond it
_LONGEST_PACKET = 60.0  # seconds more than the part that is used
_CHANNEL_WEIGHTS = {"FC": 1.0, "FL": 0.7071, "FR": 0.7071, "LFE": 0.0, "LFE2": 0.0}
_OTHER_CHANNEL_WEIGHT = 0.5  # surround and rear channels, as in the usual ITU-R BS.775 downmix


class Track:
    """What both tracks share: time of a packet, the end of the part that is used, damage.

    Attributes:
        cut: the track goes on after the part that is used.
        damaged: packets that could not be decoded.
        reached: seconds, the latest time seen.
    """

    def __init__(self, stream: Any, start_seconds: float, limits: MediaLimits) -> None:
        self.stream, self.limits, self._start = stream, limits, start_seconds
        self._tick = float(stream.time_base or 0)
        self.cut = False
        self.damaged = 0
        self.reached = 0.0

    def seconds(self, ticks: int | None) -> float | None:
        """Seconds from the clip's start of a time stamp of this stream."""
        return None if ticks is None else ticks * self._tick - self._start

    def _decode(self, packet: Any) -> list[Any]:
        try:
            return self.stream.codec_context.decode(packet)
        except av.error.EOFError:
            return []
        except DECODING_ERRORS:
            self.damaged += 1
            return []
