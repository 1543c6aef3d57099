"""Subtitle files are read as they come, and written as players read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.data.subtitles import Cue, beside, format_subtitles, moment, read_subtitles, words_within
from mer_r1.errors import UserError

SRT = """\ufeff1
00:00:01,000 --> 00:00:02,500
<i>Hello</i>
my friend.

2
00:01:00,5 --> 00:01:02,000 X1:0
{\\an8}42

3
00:00:03,000 --> 00:00:04,000

"""
VTT = """WEBVTT - a talk

STYLE
::cue { color: red }

NOTE nobody reads this

intro
00:01.000 --> 00:02.500 align:start
<v Mary>Hello &amp; my friend.</v>

01:00:00.000 --> 01:00:01.000
Later.

NOTE a comment that is no word of the last cue
"""


def test_both_kinds_are_read(tmp_path):
    (tmp_path / "a.srt").write_text(SRT, encoding="utf-8")
    (tmp_path / "a.vtt").write_text(VTT, encoding="utf-8")
    assert read_subtitles(tmp_path / "a.srt") == [Cue(1.0, 2.5, "Hello my friend."), Cue(60.5, 62.0, "42")]
    assert read_subtitles(tmp_path / "a.vtt") == [Cue(1.0, 2.5, "Hello & my friend."), Cue(3600.0, 3601.0, "Later.")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no cue"),
        (b"just text\n", "no cue"),
        (b"1\n00:00:02,000 --> 00:00:01,000\nx\n", "line 2: a cue that ends"),
        ("1\n00:00:01,000 --> 00:00:02,000\nälter\n".encode("latin-1"), "expected UTF-8"),
    ],
)
def test_what_is_none_is_said_in_one_line(tmp_path, text, message):
    (tmp_path / "a.srt").write_bytes(text)
    with pytest.raises(UserError, match=message):
        read_subtitles(tmp_path / "a.srt")
    with pytest.raises(UserError, match="cannot be read"):
        read_subtitles(tmp_path / "gone.srt")


words = st.text(st.characters(categories=("L", "N", "P", "S"), exclude_characters="<>{}&\\"), min_size=1).map(str.strip)
cues = st.lists(
    st.builds(
        lambda start, length, text: Cue(start / 1000, (start + length) / 1000, text),
        st.integers(0, 20_000_000),
        st.integers(1, 60_000),
        words.filter(lambda text: text and "-->" not in text and not text.isdigit()),
    ),
    min_size=1,
    max_size=5,
)


@given(cues=cues, ending=st.sampled_from([".srt", ".vtt"]))
def test_what_is_written_is_read_again(tmp_path_factory, cues, ending):
    path = tmp_path_factory.mktemp("cues") / f"a{ending}"
    path.write_text(format_subtitles(cues, ending), encoding="utf-8")
    expected = sorted(cues, key=lambda cue: (cue.start, cue.end))
    assert [(moment(cue.start), moment(cue.end), cue.text) for cue in read_subtitles(path)] == [
        (moment(cue.start), moment(cue.end), cue.text) for cue in expected
    ]


def test_a_cue_belongs_to_the_section_that_holds_its_middle():
    said = [Cue(0, 2, "one"), Cue(2, 4, "two"), Cue(3, 9, "three")]
    assert words_within(said, 0, 3) == "one"
    assert words_within(said, 3, 6) == "two"
    assert words_within(said, 0, 7) == "one two three"


def test_the_file_beside_a_clip_is_found(tmp_path):
    assert beside(tmp_path / "a.mp4") is None
    (tmp_path / "a.vtt").touch()
    assert beside(tmp_path / "a.mp4") == tmp_path / "a.vtt"
    (tmp_path / "a.srt").touch()
    assert beside(tmp_path / "a.mp4") == tmp_path / "a.srt"
