"""The folder of one data set while it is read: its tables and labels by name, its media, and what was found missing.

A reader asks for a clip's media and gets paths; nothing vanishes on the way. A clip without its picture stays in the
manifest with the path where the picture should be, so that it fails visibly later; a clip without its sound file is
heard through the video. Both are counted and listed here, and so is everything else that a reader passes over.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mer_r1.corpora.tables import DEFAULT_ENCODING, Row, read_table
from mer_r1.data.npz import read_npz
from mer_r1.errors import UserError, printable


@dataclass
class Folder:
    """One data set's folder, and what reading it brought to light.

    Attributes:
        root: the folder.
        allow_pickle: whether `.npz` entries that hold Python objects may be read (`pickles.read_npz`).
        encoding: of the tables.
        notes: what was passed over or put right -> how often.
        remarks: what else should be known, one line each.
        no_video: names of clips whose picture is missing.
        no_audio: names of clips whose sound file is missing.
    """

    root: Path
    allow_pickle: bool = False
    encoding: str = DEFAULT_ENCODING
    notes: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)
    no_video: list[str] = field(default_factory=list)
    no_audio: list[str] = field(default_factory=list)

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return (self.root / name).is_file()

    def table(self, name: str, columns: Sequence[str], key: str = "name") -> dict[str, Row]:
        """A CSV table by clip name, see `tables.read_table`."""
        rows, repeated = read_table(self.root / name, columns, self.encoding, key)
        if repeated:
            self.notes[f"rows that are in {name} again"] += repeated
        return rows

    def corpus(self, name: str, key: str) -> dict[str, dict[str, Any]]:
        """The labels of one part: clip name -> its fields, in the file's order.

        Raises:
            UserError: the file or the entry cannot be read, or is no such mapping.
        """
        where = f"{printable(self.root / name)}: entry {key!r}"
        found = read_npz(self.root / name, key, allow_pickle=self.allow_pickle)
        if not isinstance(found, dict) or not all(
            isinstance(clip, str) and isinstance(label, dict) for clip, label in found.items()
        ):
            raise UserError(f"{where}: got a {type(found).__name__}, expected name -> {{'emo': ..., 'val': ...}}")
        return found

    def media(
        self, name: str, video: Sequence[str], audio: Sequence[str], suffixes: Sequence[str] = (".mp4", ".avi")
    ) -> tuple[Path, Path | None]:
        """Picture and sound of a clip.

        Args:
            name: the clip's name, which may hold a folder but may not lead out of the data set.
            video: folders to look in, in this order.
            audio: likewise.
            suffixes: endings of the picture's file, in this order.

        Returns:
            Paths of the video and of the sound file; the place where the picture is expected if it is missing, None
            for a missing sound file.

        Raises:
            UserError: the name is no possible file name, or leads out of the folder.
        """
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise UserError(
                f"{printable(self.root)}: the clip name {name!r:.80} leads out of the folder, or is no file name"
            )
        picture = self._first(video, [f"{name}{suffix}" for suffix in suffixes])
        sound = self._first(audio, [f"{name}.wav"])
        if picture is None:
            self.no_video.append(name)
        if sound is None and audio:
            self.no_audio.append(name)
        return picture or self.root / video[0] / f"{name}{suffixes[0]}", sound

    def _first(self, folders: Sequence[str], names: Sequence[str]) -> Path | None:
        for folder in folders:
            # An archive that holds its own folder is often unpacked into one of the same name.
            for place in (folder, os.path.join(folder, os.path.basename(folder))):
                for name in names:
                    file = os.path.join(self.root, place, name)
                    if os.path.isfile(file):
                        return Path(file)
        return None
