"""The video of an open file: frames on display at evenly spaced moments, decoded, upright and scaled.

Packets are kept, compressed, until the end of the track is known. Then the moments are chosen, and only the groups of
pictures (from one keyframe to the next) that hold one of them are decoded, in them without the frames that no other one
refers to and that are not wanted.
"""

import math
from bisect import bisect_right
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter

from mer_r1.data.media.container import MediaLimits, check_size, decoder_bound
from mer_r1.data.media.track import MAX_PACKETS, Track

_TELL_UNREFERENCED = ("h264", "mpeg4")
"""Codecs whose packets say that no frame refers to theirs. (HEVC's do so for their own temporal layer only.)"""


class PictureTrack(Track):
    """The video stream of a clip.

    Attributes:
        span: (first, last) seconds of the part that is used; set by `sample`.
        rate: frames per second in that part, as their times say; set by `sample`.
        source_size: (height, width) of the upright frames before scaling.
    """

    def __init__(self, stream: Any, start_seconds: float, limits: MediaLimits, threads: int = 1) -> None:
        super().__init__(stream, start_seconds, limits)
        context = stream.codec_context
        check_size(context.width, context.height, limits.max_pixels)
        context.thread_count = threads
        context.options = {"max_pixels": decoder_bound(limits.max_pixels)}
        self.source_size = (context.height, context.width)
        self.span, self.rate = (0.0, 0.0), 0.0
        self._packets: list[Any] = []
        self._times: list[float] = []
        self._bytes = 0
        self._can_skip = threads == 1 and context.name in _TELL_UNREFERENCED
        rate = stream.average_rate or stream.guessed_rate
        self._frame_seconds = 1 / float(rate) if rate else 0.0
        self._reformatter = VideoReformatter()
        self._made: tuple[Any, np.ndarray] | None = None

    def add(self, packet: Any) -> None:
        """Keep the next packet, until the part that is used ends."""
        if not packet.size:
            return
        displayed_at = self.seconds(packet.pts if packet.pts is not None else packet.dts)
        if displayed_at is None:  # no time stamps at all: count frames
            displayed_at = len(self._times) * (self._frame_seconds or 0.04)
        decoded_at = self.seconds(packet.dts)
        self.reached = max(self.reached, displayed_at)
        if self.cut:
            return
        late = (displayed_at if decoded_at is None else decoded_at) >= self.limits.max_seconds
        if late or self._bytes + packet.size > self.limits.max_bytes or len(self._packets) >= MAX_PACKETS:
            self.cut = True
            return
        if self.trims and packet.is_keyframe and displayed_at <= 0:  # decoding of the section can start here
            self._packets, self._times, self._bytes = [], [], 0
        self._can_skip = self._can_skip and packet.pts is not None
        self._bytes += packet.size
        self._packets.append(packet)
        self._times.append(displayed_at)
        if packet.duration:
            self._frame_seconds = packet.duration * self._tick

    def sample(self) -> tuple[np.ndarray, np.ndarray, float | None] | None:
        """Decode the frames on display at evenly spaced moments.

        Returns:
            frames (F, 3, H, W) uint8, their moments (F,) in seconds, and the rate of these moments in frames per second
            (None for a single frame without a length); None if no frame can be decoded.
        """
        times = sorted(time for time in self._times if -1e-3 < time < self.limits.max_seconds)
        if not times:
            return None
        first = times[0]
        # Some formats give the last frame no length, or one tick: it stays on display as long as the shortest other.
        spacings = np.diff(times)
        held = max(self._frame_seconds, spacings[spacings > 0].min(initial=math.inf) if spacings.any() else 0.0)
        last = min(max(times[-1] + held, first), self.limits.max_seconds)
        self.rate = len(times) / (last - first) if last > first else 0.0
        wanted = self.limits.max_frames
        if self.limits.fps is not None:
            wanted = min(wanted, max(1, round((last - first) * self.limits.fps)))
        count = min(wanted, len(times)) if last > first else 1
        step = (last - first) / count
        moments = first + step * (np.arange(count) + 0.5)
        frames = self._frames_at(moments.tolist(), self._can_skip)
        if self._can_skip and self.damaged:  # what is on display may then be another frame than the times say
            self.stream.codec_context.flush_buffers()
            self.damaged, self._made = 0, None
            frames = self._frames_at(moments.tolist(), False)
        self.span = (first, last if len(frames) == count else first + step * len(frames))
        if not frames:
            return None
        stacked = np.ascontiguousarray(np.stack(frames).transpose(0, 3, 1, 2))
        return stacked, moments[: len(frames)], 1 / step if step else None

    def _frames_at(self, moments: list[float], skip: bool) -> list[np.ndarray]:
        """Images (H, W, 3) on display at the moments; those after the last frame that decodes are left out.

        With `skip`, unwanted frames that none refers to are not decoded.
        """
        wanted = self._on_display(moments)
        keys = [index for index, packet in enumerate(self._packets) if packet.is_keyframe] or [0]
        key_times = [self._times[index] for index in keys]
        images: list[np.ndarray] = []
        position, before, before_time = 0, None, 0.0
        while len(images) < len(moments) and position <= len(self._packets):
            # Decoding can start at the last keyframe before the next moment: skip to it if it lies ahead.
            entry = keys[max(bisect_right(key_times, moments[len(images)]) - 1, 0)]
            if entry > position:
                self.stream.codec_context.flush_buffers()
                position, before = entry, None
            packet = self._packets[position] if position < len(self._packets) else None
            self._skip_unless_wanted(self._times[position] if skip and packet is not None else None, wanted)
            position += 1
            for frame in self._decode(packet):
                shown_at = self.seconds(frame.pts if frame.pts is not None else frame.dts)
                time = before_time + self._frame_seconds if shown_at is None else shown_at
                self._show(before, time - 1e-6, moments, images)
                before, before_time = frame, time
        end = before_time + 2 * self._frame_seconds if self.damaged else math.inf
        self._show(before, end, moments, images)
        return images

    def _skip_unless_wanted(self, time: float | None, wanted: set[float]) -> None:
        # None decodes every frame.
        self.stream.codec_context.skip_frame = "DEFAULT" if time is None or time in wanted else "NONREF"

    def _on_display(self, moments: list[float]) -> set[float]:
        """Times of the packets on display at the moments, as far as rounding lets one tell."""
        times = sorted(self._times)
        near = (moment + slack for moment in moments for slack in (-1e-5, 1e-5))
        return {times[max(bisect_right(times, moment) - 1, 0)] for moment in near}

    def _show(self, frame: Any, until: float, moments: list[float], images: list[np.ndarray]) -> None:
        """Append the image of a frame for every moment that is still without one and lies before `until`."""
        while frame is not None and len(images) < len(moments) and moments[len(images)] < until:
            images.append(self._image(frame))

    def _image(self, frame: Any) -> np.ndarray:
        """(H, W, 3) uint8: upright, square pixels, scaled. All images of a track get the size of its first."""
        if self._made is not None and self._made[0] is frame:
            return self._made[1]
        check_size(frame.width, frame.height, self.limits.max_pixels)
        swap, mirror, flip = orientation(frame)
        if self._made is None:
            self._choose_size(frame, swap)
        height, width = self._size[::-1] if swap else self._size
        shrinks = height * width <= frame.height * frame.width
        rgb = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="AREA" if shrinks else "BICUBIC"
        ).to_ndarray()
        rgb = rgb.transpose(1, 0, 2) if swap else rgb
        rgb = rgb[:: -1 if flip else 1, :: -1 if mirror else 1]
        self._made = (frame, rgb)
        return rgb

    def _choose_size(self, frame: Any, swap: bool) -> None:
        aspect = float(self.stream.codec_context.sample_aspect_ratio or 1)
        width = max(1, round(frame.width * aspect)) if 0.25 <= aspect <= 4 else frame.width
        size = (width, frame.height) if swap else (frame.height, width)
        self.source_size = size
        scale = min(1.0, self.limits.max_side / max(size))
        scaled = [max(1, round(side * scale)) for side in size]
        if (bound := self.limits.frame_pixels) and math.prod(scaled) > bound:
            scaled = [max(1, int(side * math.sqrt(bound / math.prod(scaled)))) for side in scaled]
        self._size = self.limits.size or (scaled[0], scaled[1])


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """How a stored frame is turned upright: swap its axes, then mirror it left-right, then flip it upside down.

    A display matrix (a b u; c d v; x y w) maps a stored point (p, q) to (ap + cq, bp + dq). Only the eight orientations
    of a rectangle exist in practice, so the signs and the larger terms determine it.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0
