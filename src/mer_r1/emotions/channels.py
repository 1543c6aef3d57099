"""The channels of a clip that a reasoning speaks of: picture, sound and words (the manifest's video, audio, subtitle).

A clip may lack a channel, and a model that was rewarded for its answers only learns to speak of it all the same. The
English words here are those of short reasonings such as the built-in scenes': a sign, not a proof. They are used by
the option `absent_channels` of the rewards (`rl.rewards`), and to count such talk (`lab.tiny.absence`).
"""

import re

_TALK = {
    "video": r"face|smil\w+|smirk|grin|sneer|frown|brows?|eyes?|eyelids|lips?|mouth|nose|jaw|teeth|cheeks?|head|nod"
    r"|gaze|look|tears|see|seen|picture",
    "audio": r"voice|tone|toneless|hear|heard|sound|speech|pitch|volume|breath|sighs|pauses|hushed",
    "subtitle": r"words|subtitle|sentence|speaker says|joke|story|talk|insult|complaint|threat|warning|apology|thanks"
    r"|plan|memory|question|phrase|failure|news",
}
_MENTIONS = {channel: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for channel, words in _TALK.items()}
CHANNELS = tuple(_TALK)


def channels_of(reasoning: str) -> set[str]:
    """Channels that a reasoning speaks of, of `CHANNELS`.

    >>> sorted(channels_of("I see a wide smile. The words do not fit the face. So sad."))
    ['subtitle', 'video']
    """
    return {channel for channel, found in _MENTIONS.items() if found.search(reasoning)}
