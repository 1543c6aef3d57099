"""MELD (seven emotions, television dialogue) and IEMOCAP (four classes, acted dialogue).

Gold is an index in both. IEMOCAP comes as one corpus of five sessions; the benchmark tests on the fifth, and its
"happy" holds the clips that annotators called excited (1636 of the 5531 clips of the four classes).
"""

from collections.abc import Iterator

from mer_r1.corpora.folder import Folder
from mer_r1.corpora.labelled import labelled_clips
from mer_r1.corpora.layout import DataSet, Part
from mer_r1.data.clip import Clip
from mer_r1.errors import UserError

SESSION = 4
"""Place of the session's number in a clip's name: the fifth character of `Ses05F_impro01_F000`."""
TEST_SESSION = "5"


def iemocap_clips(data: DataSet, folder: Folder, part: str) -> Iterator[Clip]:
    """Clips of IEMOCAP: the fifth session is the test part.

    Raises:
        UserError: see `labelled_clips`; or a name does not tell its session.
    """
    testing = data.part(part).split == "test"
    yield from labelled_clips(data, folder, part, lambda name: (_session(name) == TEST_SESSION) == testing)


def _session(name: str) -> str:
    """The session of an IEMOCAP clip.

    >>> _session("Ses05F_impro01_F000")
    '5'
    """
    session = name[SESSION : SESSION + 1]
    if session not in tuple("12345"):
        raise UserError(f"IEMOCAP: the name {name!r:.80} tells no session, expected one like Ses05F_impro01_F000")
    return session


DIALOGUE_SETS = (
    DataSet(
        name="meld",
        title="MELD",
        kind="discrete",
        folder="meld-process",
        read=labelled_clips,
        parts={
            "test": Part("test", 2610, "test_corpus"),
            "val": Part("val", None, "val_corpus"),
            "train": Part("train", None, "train_corpus"),
        },
        video=("subvideo",),
        audio=("subaudio",),
        vocabulary=("anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise"),
        indexed=True,
    ),
    DataSet(
        name="iemocap",
        title="IEMOCAP (four classes)",
        kind="discrete",
        folder="iemocap-process",
        read=iemocap_clips,
        parts={"test": Part("test", 1241, "whole_corpus"), "train": Part("train", 5531 - 1241, "whole_corpus")},
        labels="label_4way.npz",
        video=("subvideo-tgt",),
        audio=("subaudio",),
        suffixes=(".avi", ".mp4"),
        vocabulary=("happy", "sad", "neutral", "anger"),
        indexed=True,
        others=("iemocapfour",),
    ),
)
