"""The layout of a data set on disk, as data: folders, files, columns, parts and the number of clips of each part.

The facts are those of the public releases (AffectGPT's loaders for the nine sets of MER-UniBench, the MER2025 tables
for training). A reader turns files into clips; `prepare.DATA_SETS` collects all layouts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from mer_r1.corpora.folder import Folder
from mer_r1.data.clip import Clip
from mer_r1.errors import UserError

Kind = Literal["discrete", "sentiment", "open-set", "training", "questions"]


@dataclass(frozen=True)
class Part:
    """One part of a data set, which `--split` names.

    Attributes:
        split: "train", "val" or "test", as in the manifest.
        clips: number of clips; None where it is not known.
        key: entry of the label file, or the file whose presence shows that this part is there.
        at_least: whether `clips` is a lower bound.
    """

    split: str
    clips: int | None = None
    key: str = ""
    at_least: bool = False


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        name: canonical name, `meta.dataset` in a manifest.
        title: display name.
        kind: kind of gold: one emotion word ("discrete", in `labels`), a number ("sentiment", in `meta.sentiment`),
            emotion words ("open-set", "training" with reasoning texts), or the answer to a question ("questions").
        folder: name of its folder in the release.
        read: reader of the clips of one part, given by its name.
        parts: name -> part; the first is the default.
        labels: file with the gold.
        subtitles: file with the subtitles, and its column.
        files: further files that are required.
        video: folders of the video files.
        audio: folders of the audio files; none if the audio is in the video files.
        suffixes: endings of the video files, in the order of search.
        vocabulary: the emotion words of a discrete set; where gold is an index, in the order of the indices.
        indexed: whether gold is an index into `vocabulary`.
        others: other names, in lower case without blanks and punctuation.
    """

    name: str
    title: str
    kind: Kind
    folder: str
    read: Callable[["DataSet", Folder, str], Iterator[Clip]]
    parts: dict[str, Part]
    labels: str = "label.npz"
    subtitles: tuple[str, str] = ("transcription-engchi-polish.csv", "english")
    files: tuple[str, ...] = ()
    video: tuple[str, ...] = ("video",)
    audio: tuple[str, ...] = ("audio",)
    suffixes: tuple[str, ...] = (".mp4", ".avi")
    vocabulary: tuple[str, ...] = ()
    indexed: bool = False
    others: tuple[str, ...] = ()

    def part(self, name: str) -> Part:
        """Look up a part by its name.

        Raises:
            UserError: no such part.
        """
        if name not in self.parts:
            raise UserError(f"split: got {name!r:.40}, {self.title} has {', '.join(self.parts)}")
        return self.parts[name]

    def subtitle(self, folder: Folder, table: dict[str, dict[str, str]], name: str) -> str:
        """The subtitle of a clip; a clip that the table lacks is counted and has an empty one."""
        if name not in table:
            folder.notes[f"clips that {self.subtitles[0]} lacks (their subtitle is empty)"] += 1
            return ""
        return table[name][self.subtitles[1]]


def letters(name: str) -> str:
    """Lower-case letters and digits of a name, to compare spellings; "+" counts as "plus"."""
    return "".join(letter for letter in name.lower().replace("+", "plus") if letter.isalnum())
