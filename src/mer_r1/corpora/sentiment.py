"""CMU-MOSI and CMU-MOSEI (English video blogs), CH-SIMS and CH-SIMS v2 (Chinese films and series): sentiment.

Gold is a number, 0 for neutral; the benchmark asks only whether it is above 0 and leaves out the zeros. CH-SIMS is
subtitled in English translation, as in the reference.
"""

from mer_r1.corpora.labelled import labelled_clips
from mer_r1.corpora.layout import DataSet, Part


def _sentiment_set(name: str, title: str, clips: int, video: str, audio: str, others: tuple[str, ...] = ()) -> DataSet:
    parts = {
        "test": Part("test", clips, "test_corpus"),
        "val": Part("val", None, "val_corpus"),
        "train": Part("train", None, "train_corpus"),
    }
    return DataSet(
        name,
        title,
        "sentiment",
        f"{name}-process",
        labelled_clips,
        parts,
        video=(video,),
        audio=(audio,),
        others=others,
    )


SENTIMENT_SETS = (
    _sentiment_set("cmumosi", "CMU-MOSI", 686, "subvideo", "subaudio", ("mosi",)),
    _sentiment_set("cmumosei", "CMU-MOSEI", 4659, "subvideo_new", "subaudio", ("mosei",)),
    _sentiment_set("sims", "CH-SIMS", 457, "video", "audio", ("chsims",)),
    _sentiment_set("simsv2", "CH-SIMS v2", 1034, "video_new", "audio", ("chsimsv2",)),
)
