"""What worker processes run in tests: in a module of its own, so that they import no more than they need."""

import os

from mer_r1.data.check import Probe
from mer_r1.data.clip import Clip


def crash_on_bad(clip: Clip, limits: object) -> Probe:
    """Stands for a decoder that takes its process down."""
    if clip.id == "bad":
        os._exit(1)
    return Probe(seconds=1.0)
