"""The audio of an open file: decoded packet by packet, mixed to one channel and resampled.

Gaps and a late start become silence, so that a sample's place in the waveform is its time.
"""

from typing import Any

import av
import numpy as np

from mer_r1.data.media.container import DECODING_ERRORS, MediaLimits
from mer_r1.data.media.track import MAX_PACKETS, Track
from mer_r1.errors import UserError

SHORTEST_SOUND = 0.025
"""Seconds; one analysis window of a spectrogram. Shorter audio counts as none."""

_LONGEST_GAP = 0.1  # seconds without audio above which silence is filled in
_SAMPLING_RATES = (2_000, 768_000)
_MAX_CHANNELS = 8  # what an AVFrame holds without extension; PyAV is not safe beyond it
_LONGEST_PACKET = 60.0  # seconds more than the part that is used
_RUN_UP = 1.0  # seconds before a section that are decoded, because packets depend on those before
_CHANNEL_WEIGHTS = {"FC": 1.0, "FL": 0.7071, "FR": 0.7071, "LFE": 0.0, "LFE2": 0.0}
_OTHER_CHANNEL_WEIGHT = 0.5  # surround and rear channels, as in the usual ITU-R BS.775 downmix


class SoundTrack(Track):
    """The audio stream of a clip."""

    def __init__(self, stream: Any, start_seconds: float, limits: MediaLimits, threads: int = 1) -> None:
        super().__init__(stream, start_seconds, limits)
        context = stream.codec_context
        context.thread_count = threads
        low, high = _SAMPLING_RATES
        if context.sample_rate and not low <= context.sample_rate <= high:
            raise UserError(f"sound with a sampling rate of {context.sample_rate} Hz, expected {low} to {high} Hz")
        if len(context.layout.channels) > _MAX_CHANNELS:
            raise UserError(f"sound with {len(context.layout.channels)} channels, expected at most {_MAX_CHANNELS}")
        self._size = round(limits.max_seconds * limits.sampling_rate)
        self._pieces: list[np.ndarray] = []
        self._samples = self._skipped = 0
        self._packets = 0
        self._clock = 0.0  # seconds of audio and silence so far
        self._resampler: Any = None
        self._source: tuple[Any, ...] = ()

    def add(self, packet: Any) -> None:
        """Decode the next packet, until the part that is used ends."""
        time = self.seconds(packet.pts)
        self.reached = max(self.reached, time or 0.0)
        if self.trims and time is not None and time < -_RUN_UP:
            return
        self._packets += 1
        if self.cut:
            return
        if (time or 0.0) >= self.limits.max_seconds or self._packets > MAX_PACKETS:
            self.cut = True
            return
        for frame in self._decode(packet):
            self._add_frame(frame)

    def waveform(self) -> np.ndarray | None:
        """(S,) float32, mono; None if it is shorter than `SHORTEST_SOUND`. Samples that are not finite become 0."""
        self._flush()
        if not self._pieces:
            return None
        waveform = np.concatenate(self._pieces)[: self._size]
        if not np.isfinite(waveform).all():
            self.damaged += 1
            waveform = np.nan_to_num(waveform, nan=0.0, posinf=0.0, neginf=0.0)
        return waveform if len(waveform) >= SHORTEST_SOUND * self.limits.sampling_rate else None

    def _add_frame(self, frame: Any) -> None:
        rate, duration = frame.sample_rate, frame.samples / max(frame.sample_rate, 1)
        usual = _SAMPLING_RATES[0] <= rate <= _SAMPLING_RATES[1] and len(frame.layout.channels) <= _MAX_CHANNELS
        if not usual or not frame.samples or duration > self.limits.max_seconds + _LONGEST_PACKET:
            self.damaged += 1
            return
        time = self.seconds(frame.pts)
        if self.trims and time is not None and time < 0:
            if (duration := duration + time) <= 0:
                return
            self._skipped, time = round(-time * self.limits.sampling_rate), 0.0
        gap = 0.0 if time is None else min(time, self.limits.max_seconds) - self._clock
        if gap > _LONGEST_GAP:
            self._flush()
            self._keep(np.zeros((1, round(gap * self.limits.sampling_rate)), np.float32), ("FC",))
            self._clock += gap
        source = (frame.format.name, frame.layout.name, rate)
        if source != self._source:  # the first frame, the first after a gap, or a change in mid-stream
            self._flush()
            self._source = source
            self._resampler = av.AudioResampler(format="fltp", rate=self.limits.sampling_rate)
        self._clock += duration
        frame.pts = None
        self._resample(frame)

    def _resample(self, frame: Any) -> None:
        try:
            made = self._resampler.resample(frame)
        except DECODING_ERRORS:
            self.damaged += 1
            return
        for piece in made:
            if piece is not None:
                self._keep(piece.to_ndarray(), tuple(channel.name for channel in piece.layout.channels))

    def _flush(self) -> None:
        if self._resampler is not None:
            self._resample(None)
            self._resampler, self._source = None, ()

    def _keep(self, channels: np.ndarray, names: tuple[str, ...]) -> None:
        if self._samples >= self._size:
            self.cut = True
            return
        channels, self._skipped = channels[:, self._skipped :], max(self._skipped - channels.shape[1], 0)
        self._pieces.append(_mono(channels, names))
        self._samples += channels.shape[1]


def _mono(channels: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Mix (C, S) channels to (S,): front channels louder than surround, no subwoofer, weights that sum to 1."""
    if len(channels) == 1:
        return channels[0]
    weights = np.array([_CHANNEL_WEIGHTS.get(name, _OTHER_CHANNEL_WEIGHT) for name in names], np.float32)
    if len(weights) != len(channels) or not weights.sum():
        weights = np.ones(len(channels), np.float32)
    return (weights / weights.sum()) @ channels
