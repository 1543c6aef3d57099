"""What a data set looks like on disk, as data: folders, files, columns, parts and how many clips each part has.

The facts are those of the public releases (AffectGPT's loaders for the nine sets of MER-UniBench, the MER2025 tables
for training). A reader turns them into clips; `prepare.DATA_SETS` collects them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from mer_r1.corpora.folder import Folder
from mer_r1.data.clip import Clip
from mer_r1.errors import UserError

Kind = Literal["discrete", "sentiment", "open-set", "training", "questions"]


@dataclass(frozen=True)
class Part:
    """One part of a data set, which `--split` names.

    Attributes:
        split: "train", "val" or "test", as the manifest says it.
        clips: how many there are; None where it is not known.
        key: entry of the label file, or the file that shows that this part is there.
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
        name: the canonical name, which a manifest carries in `meta.dataset`.
        title: the name that people use.
        kind: what its gold is: one emotion word ("discrete", in `labels`), a number ("sentiment", in
            `meta.sentiment`), emotion words ("open-set", "training" with reasoning texts), or the answer to a question
            ("questions").
        folder: name of its folder in the release.
        read: gives the clips of one part, by its name.
        parts: name -> part; the first is what is taken unless told otherwise.
        labels: file with the gold.
        subtitles: file with the subtitles, and its column.
        files: all files that must be there.
        video: folders with the pictures.
        audio: folders with the sound files; none if the sound is in the video files.
        suffixes: endings of the picture files, in the order in which they are tried.
        vocabulary: the emotion words of a discrete set; where gold is an index, in the order of the indices.
        indexed: whether gold is an index into `vocabulary`.
        others: other names it goes by, in lower case without blanks and punctuation.
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
    others: tuple[str, ...] = field(default=())

    def part(self, name: str) -> Part:
        """A part by its name.

        Raises:
            UserError: no such part.
        """
        if name not in self.parts:
            raise UserError(f"split: got {name!r:.40}, {self.title} has {', '.join(self.parts)}")
        return self.parts[name]

    def subtitle(self, folder: Folder, table: dict[str, dict[str, str]], name: str) -> str:
        """What is said in a clip; a clip that the table lacks is counted and has an empty subtitle."""
        if name not in table:
            folder.notes[f"clips that {self.subtitles[0]} lacks (their subtitle is empty)"] += 1
            return ""
        return table[name][self.subtitles[1]]
