"""What decides a content is written beside it, and every change of it is noticed (signed files, digests)."""

from hypothesis import given
from hypothesis import strategies as st

from mer_r1.data.claim import differences, digest, digests, read_signed, write_signed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(content=JSON)
def test_what_is_written_is_read_back(content, tmp_path_factory):
    file = tmp_path_factory.mktemp("signed") / "a.json"
    write_signed(file, content=content)
    assert read_signed(file) == {"content": content}


def test_a_changed_half_or_missing_file_says_nothing(tmp_path):
    file = tmp_path / "a.json"
    assert read_signed(file) == {}
    write_signed(file, seed=1, sizes=[float("inf"), 2])
    whole = file.read_bytes()
    assert read_signed(file) == {"seed": 1, "sizes": [float("inf"), 2]}
    for changed in (b"", whole[:-20], whole.replace(b"1", b"2", 1), b"[1]", b'{"seed": 1}', b"\xff"):
        file.write_bytes(changed)
        assert read_signed(file) == {}


def test_differences_by_hand():
    before = {"stage": "sft", "seed": 1, "rate": 0.1, "a": 1, "b": 2}
    assert differences(before, before) == ""
    assert differences(before, before | {"seed": 2}) == "seed: 1, now 2"
    assert differences(before, before | {"c": 3}) == "c: None, now 3"
    now = {"stage": "sft", "seed": 2, "rate": 0.2, "b": 3}
    assert differences(before, now) == "seed: 1, now 2; rate: 0.1, now 0.2; b: 2, now 3; and 1 more"
    assert differences(before, now | {"stage": "rl"}) == "stage: 'sft', now 'rl'"


def test_digests_are_of_contents(tmp_path):
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        (tmp_path / name).write_bytes(content)
    one, two, again = digests(sorted(tmp_path.iterdir()))
    assert one == again != two
    assert one == digest("one") == digest(b"one")
