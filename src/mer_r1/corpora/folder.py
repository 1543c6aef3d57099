"""The folder of one data set while it is read: tables, labels, media files, and a record of what is missing.

A reader asks for a clip's media and gets paths; no clip is dropped silently. A clip without its video file stays in the
manifest with the path where the file should be, so that it fails visibly later; a clip without its audio file takes the
audio of its video file. Both are counted and listed here, like everything else that a reader skips.
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
    """One data set's folder, and what reading it found.

    Attributes:
        root: the folder.
        allow_pickle: whether `.npz` entries that hold Python objects may be read (`data.npz.read_npz`).
        encoding: encoding of the tables.
        notes: what was skipped or corrected -> how often.
        remarks: further warnings, one line each.
        no_video: names of clips whose video file is missing.
        no_audio: names of clips whose audio file is missing.
    """

    root: Path
    allow_pickle: bool = False
    encoding: str = DEFAULT_ENCODING
    notes: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)
    no_video: list[str] = field(default_factory=list)
    no_audio: list[str] = field(default_factory=list)

    def has(self, name: str) -> bool:
        """Whether a file exists."""
        return (self.root / name).is_file()

    def table(self, name: str, columns: Sequence[str], key: str = "name") -> dict[str, Row]:
        """Read a CSV table by clip name, see `tables.read_table`."""
        rows, repeated = read_table(self.root / name, columns, self.encoding, key)
        if repeated:
            self.notes[f"rows that are in {name} again"] += repeated
        return rows

    def corpus(self, name: str, key: str) -> dict[str, dict[str, Any]]:
        """Read the labels of one part: clip name -> its fields, in the file's order.

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
        """Find the video and the audio file of a clip.

        Args:
            name: the clip's name, which may hold a folder but may not lead out of the data set.
            video: folders of video files, in the order of search.
            audio: folders of audio files, likewise.
            suffixes: endings of video files, in the order of search.

        Returns:
            Paths of the video and of the audio file; the expected path if the video file is missing, None for a missing
            audio file.

        Raises:
            UserError: the name is no possible file name, or leads out of the folder.
        """
        if name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise UserError(
                f"{printable(self.root)}: the clip name {name!r:.80} leads out of the folder, or is no file name"
            )
        video_file = self._first(video, [f"{name}{suffix}" for suffix in suffixes])
        audio_file = self._first(audio, [f"{name}.wav"])
        if video_file is None:
            self.no_video.append(name)
        if audio_file is None and audio:
            self.no_audio.append(name)
        return video_file or self.root / video[0] / f"{name}{suffixes[0]}", audio_file

    def _first(self, folders: Sequence[str], names: Sequence[str]) -> Path | None:
        for folder in folders:
            # An archive that contains its own folder is often unpacked into one of the same name.
            for place in (folder, os.path.join(folder, os.path.basename(folder))):
                for name in names:
                    file = os.path.join(self.root, place, name)
                    if os.path.isfile(file):
                        return Path(file)
        return None
