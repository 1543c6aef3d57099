"""Subtitle files (SRT, WebVTT): what is said when.

Files come from everywhere, so reading is lenient about blank lines, numbers, styles and the order of cues, and strict
about what cannot be read: a file without a single cue is an error that names the line.
"""

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mer_r1.errors import UserError, printable

ENDINGS = (".srt", ".vtt")
_MOMENT = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[,.](\d{1,3})"
_TIMES = re.compile(rf"^\s*{_MOMENT}\s*-->\s*{_MOMENT}")
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


@dataclass(frozen=True)
class Cue:
    """Words on display from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def read_subtitles(path: Path | str) -> list[Cue]:
    """The cues of an SRT or WebVTT file, by their begin; cues without words are left out.

    Raises:
        UserError: naming file and line: not readable, not UTF-8, a cue that ends before it begins, or no cue at all.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(path)}: expected UTF-8 text: {error}") from None
    cues: list[Cue] = []
    times: tuple[float, float] | None = None
    said: list[str] = []
    for number, line in enumerate([*lines, "", "00:00.000 --> 00:00.001"], start=1):
        if found := _TIMES.match(line):
            # In SRT a number stands on the line before the times.
            words = said[:-1] if said and said[-1].isdigit() else said
            cues += _cue(times, words)
            groups = found.groups()
            times, said = (_seconds(groups[:4]), _seconds(groups[4:])), []
            if times[1] < times[0]:
                raise UserError(
                    f"{printable(path)} line {number}: a cue that ends before it begins: {line.strip():.60}"
                )
        elif times is not None:
            said.append(line.strip())
    if not cues:
        raise UserError(f"{printable(path)}: no cue with words in it, expected SRT or WebVTT")
    return sorted(cues, key=lambda cue: (cue.start, cue.end))


def beside(media: Path) -> Path | None:
    """The subtitle file of a media file: of the same name, ending in .srt or .vtt; None without one."""
    return next((path for ending in ENDINGS if (path := media.with_suffix(ending)).is_file()), None)


def words_within(cues: Iterable[Cue], start: float, end: float) -> str:
    """The words of the cues whose middle lies within these seconds."""
    return " ".join(cue.text for cue in cues if start <= (cue.start + cue.end) / 2 < end)


def format_subtitles(cues: Sequence[Cue], ending: str) -> str:
    r"""Cues as the text of a file.

    >>> format_subtitles([Cue(0.5, 62.25, "Hello.")], ".srt")
    '1\n00:00:00,500 --> 00:01:02,250\nHello.\n'
    >>> format_subtitles([Cue(0.5, 62.25, "a < b")], ".vtt")
    'WEBVTT\n\n00:00:00.500 --> 00:01:02.250\na &lt; b\n'
    """
    web = ending == ".vtt"
    blocks = ["WEBVTT\n"] if web else []
    for number, cue in enumerate(cues, start=1):
        times = f"{moment(cue.start)} --> {moment(cue.end)}"
        text = "\n".join(line for line in cue.text.splitlines() if line.strip())
        text = html.escape(text.replace("-->", "->"), quote=False) if web else text.replace("-->", "->")
        blocks.append(f"{times}\n{text}\n" if web else f"{number}\n{times.replace('.', ',')}\n{text}\n")
    return "\n".join(blocks)


def moment(seconds: float) -> str:
    """Seconds as hours, minutes, seconds and milliseconds.

    >>> moment(3725.0625)
    '01:02:05.062'
    """
    thousandths = round(1000 * seconds)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}.{rest % 1000:03}"


def _seconds(groups: Sequence[str | None]) -> float:
    hours, minutes, seconds, fraction = groups
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + float(f"0.{fraction}")


def _cue(times: tuple[float, float] | None, lines: Sequence[str]) -> list[Cue]:
    block: list[str] = []
    for line in lines:  # a blank line ends a cue; what follows is a comment, a style or the next cue's name
        if not line and block:
            break
        block += [line] if line else []
    text = " ".join(html.unescape(_MARKUP.sub("", " ".join(block))).split())
    return [Cue(*times, text)] if times is not None and text else []
