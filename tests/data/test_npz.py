"""The reader of pickled labels: plain values come through whatever numpy wrote them, everything else is refused."""

import builtins
import collections
import contextlib
import datetime
import functools
import io
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mer_r1.data import npz as pickles
from mer_r1.data.npz import load_plain, npz_keys, read_npz
from mer_r1.errors import UserError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
SIGN = Path("the-pickle-ran")


class Attack:
    """Pickles as a call of anything."""

    def __init__(self, call, *args):
        self.reduced = (call, args)

    def __reduce__(self):
        return self.reduced


def hostile() -> dict[str, bytes]:
    touch = f"__import__('pathlib').Path({str(SIGN)!r}).touch()"
    return {
        "os.system": pickle.dumps(Attack(os.system, f"touch {SIGN}")),
        "eval": pickle.dumps(Attack(eval, touch)),
        "exec": pickle.dumps(Attack(exec, touch)),
        "getattr": pickle.dumps(Attack(getattr, [], "append")),
        "open": pickle.dumps(Attack(open, str(SIGN), "w")),
        "partial": pickle.dumps(Attack(functools.partial, print)),
        "date": pickle.dumps(datetime.date(2020, 1, 1)),
        "np.load": pickle.dumps(Attack(np.load, "x.npy")),
        # numpy's own helpers that build what is no plain array
        "memmap": pickle.dumps(Attack(np.memmap, str(SIGN), "u1", "w+", 0, (8,))),
        "records": pickle.dumps(np.zeros(2, [("a", "i4"), ("b", "O")])),
        "bare ndarray": pickle.dumps(Attack(np.ndarray, (10**6,))),
        "subclass": pickle.dumps(np.zeros(2).view(np.recarray)),
        "persistent": b"\x80\x04\x8c\x01x" + pickle.BINPERSID + b".",
        "extension": pickle.EXT1 + b"\x01.",
        "codec": pickle.dumps(Attack(__import__("_codecs").encode, "x", "rot13")),
        # BUILD on a name that was only given to call: sets its attributes
        "build": b"cnumpy.core.multiarray\nscalar\n(N(dS'_make'\ncbuiltins\nset\nstb.",
        "build state": b"cnumpy.core.multiarray\nscalar\n(dS'_make'\nI1\nsb.",
        "dotted": b"\x80\x04\x8c\x08builtins\x8c\x0cset.__init__\x93.",
        "nothing": b"",
        "text": b"hello",
        "cut": pickle.dumps({"a": [1, 2, 3]})[:-4],
        "huge memo": pickle.LONG_BINPUT + b"\xff\xff\xff\x7f.",
        "huge bytes": b"\x80\x04" + pickle.BINBYTES8 + b"\xff" * 7 + b"\x7f.",
        "lying array": _lying_array(),
    } | crafted()


def crafted() -> dict[str, bytes]:
    """Names that are admitted, with content that numpy's own objects would crash on or take any memory for."""
    pointers = b"A" * 8
    begun = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    objects = b"cnumpy\ndtype\n(S'O8'\ntR"
    floats = b"cnumpy\ndtype\n(S'f8'\ntR"
    raw = pickle.SHORT_BINBYTES + bytes([8]) + pointers
    return {
        # a list shorter than its array, and bytes taken for pointers: numpy reads memory that is not its own
        "short list": begun + b"(I1\n(I1000000\nt" + objects + b"I00\n(I1\nltb.",
        "bytes as objects": begun + b"(I1\n(I1\nt" + objects + b"I00\n" + raw + b"tb.",
        "flags": begun + b"(I1\n(I1\nt" + objects + b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\n" + raw + b"tb.",
        "buffer of objects": b"cnumpy\nndarray\n((I1\ntS'O'\n" + raw + b"tR.",
        "negative side": begun + b"(I1\n(I-1\nI-1\nt" + floats + b"I00\n" + raw + b"tb.",
        "records by state": begun
        + b"(I1\n(I1\nt"
        + floats
        + b"(I3\nS'|'\nN(S'a'\nt(dI8\nI1\nI0\ntbI00\n"
        + raw
        + b"tb.",
        # little content, much memory
        "empty rows": begun + b"(I1\n(I1000000000\nI0\nt" + floats + b"I00\nC\x00tb.",
        "empty strings": begun + b"(I1\n(I1000000000\ntcnumpy\ndtype\n(S'U0'\ntRI00\nC\x00tb.",
        "many sides": begun + b"(I1\n(" + 1000 * b"I1\n" + b"t" + floats + b"I00\n" + raw + b"tb.",
        "zeros": b"cbuiltins\nbytes\n(I1000000000000\ntR.",
        "huge bytearray": b"\x80\x05" + pickle.BYTEARRAY8 + b"\xff" * 7 + b"\x7f.",
        "shared bytes": _many_times(pickle.dumps(b"x" * 80_000, 3)[2:-1], b"cnumpy\ndtype\n(S'S80000'\ntR"),
        "shared list": b"(lp0\n(" + 1000 * b"N" + b"e0" + b"(" + 100 * b"cbuiltins\nset\n(g0\ntR" + b"l.",
        "uncounted call": b"(icollections\nOrderedDict\n.",
        "long integer": pickle.dumps(1 << 2000),
        # what is admitted changes nothing and is no value
        "assignment": begun + b"I0\nI1\ns.",
        "empty array": begun + b".",
        "bare name": b"cbuiltins\nset\n.",
    }


def _many_times(content: bytes, dtype: bytes) -> bytes:
    """A list of a hundred strings that are all made from the same bytes."""
    call = b"cnumpy._core.multiarray\nscalar\n(g1\ng0\ntR"
    return content + b"p0\n" + dtype + b"p1\n(" + 100 * call + b"l."


def _lying_array() -> bytes:
    """An array of a million strings with six bytes of content."""
    content = pickle.dumps(np.array(["abc"]), protocol=2)
    return content.replace(b"K\x01\x85", b"J\x40\x42\x0f\x00\x85")


def npz_of(path: Path, content: bytes, key: str = "test_corpus") -> Path:
    """An `.npz` whose entry claims to be a 0-d object array and holds these bytes."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|O", "fortran_order": False, "shape": ()})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{key}.npy", head.getvalue() + content)
    return path


# --- what is plain comes through --------------------------------------------------------------------------------------


def test_a_header_of_python_2_is_read_without_a_word(tmp_path, recwarn):
    header = b"{'descr': '<i4', 'fortran_order': False, 'shape': (3L,), }\n"
    entry = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + np.arange(3, dtype="<i4").tobytes()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", entry)
    assert np.load(tmp_path / "a.npz")["x"].tolist() == [0, 1, 2]
    assert "Python 2" in str(recwarn.pop().message)
    assert read_npz(tmp_path / "a.npz", "x") == [0, 1, 2]
    assert not list(recwarn)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_gives_the_values_that_were_pickled(protocol):
    value = {
        "clip-1": {"emo": np.str_("happy"), "val": np.float32(0.5), "n": np.int64(3), "yes": np.bool_(True)},
        np.str_("片段"): {"emo": "sad", "val": -1.25, "bytes": b"\xff\x00", "none": None},
        "arrays": [np.arange(6).reshape(2, 3), np.array(["a", "bc"]), np.array([1.5], ">f4")],
        "objects": np.array([["x", 1], [None, {"y": 2.0}]], object),
        "sets": ({1, 2}, frozenset({"a"})),
        "order": collections.OrderedDict(b=1, a=2),
    }
    assert load_plain(pickle.dumps(value, protocol=protocol)) == {
        "clip-1": {"emo": "happy", "val": 0.5, "n": 3, "yes": True},
        "片段": {"emo": "sad", "val": -1.25, "bytes": b"\xff\x00", "none": None},
        "arrays": [[[0, 1, 2], [3, 4, 5]], ["a", "bc"], [1.5]],
        "objects": [["x", 1], [None, {"y": 2.0}]],
        "sets": ({1, 2}, frozenset({"a"})),
        "order": {"b": 1, "a": 2},
    }


def test_values_are_python_s_own():
    found = load_plain(pickle.dumps([np.float64(1), np.str_("a"), np.array([1, 2], "u1")]))
    assert [type(item) for item in (*found[:2], *found[2])] == [float, str, int, int]


def test_arrays_in_column_order():
    array = np.asfortranarray(np.arange(6).reshape(2, 3))
    assert load_plain(pickle.dumps(array)) == [[0, 1, 2], [3, 4, 5]]


def test_names_of_numpy_1_are_known():
    new = pickle.dumps({"a": np.float64(2.5), "b": np.arange(2)}, protocol=2)
    old = new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != new
    assert load_plain(old) == {"a": 2.5, "b": [0, 1]}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
        max_leaves=12,
    ),
    st.sampled_from(PROTOCOLS),
)
def test_plain_values_survive(value, protocol):
    assert load_plain(pickle.dumps(value, protocol=protocol)) == value


def shared(levels: int, content: object) -> list:
    """A list of 2^levels references to one value, in a pickle of some bytes per level."""
    value: object = content
    for _ in range(levels):
        value = [value, value]
    return value


def test_shared_parts_are_not_multiplied():
    found = load_plain(pickle.dumps(shared(3, ["x"])))
    assert found == [[[["x"], ["x"]], [["x"], ["x"]]], [[["x"], ["x"]], [["x"], ["x"]]]]
    assert found[0] is found[1]


def nested_tuple(levels: int) -> bytes:
    """A tuple of twice the tuple below it, and so on: 2^levels steps to hash or to print."""
    return b"K\x01" + levels * (pickle.DUP + pickle.TUPLE2)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(shared(30, ["x"])),
        pickle.dumps([text := "x" * 10**6] + [text] * 10**5),
        nested_tuple(40) + b".",
        b"}" + nested_tuple(40) + b"K\x02s.",
        b"}(" + nested_tuple(40) + b"K\x02u.",
        b"(" + nested_tuple(40) + b"K\x02d.",
        b"\x8f(" + nested_tuple(40) + b"\x90.",
        b"(" + nested_tuple(40) + b"\x91.",
        b"cbuiltins\nset\n(]" + nested_tuple(40) + b"atR.",
        b"cbuiltins\nfrozenset\n(]" + nested_tuple(40) + b"atR.",
        b"ccollections\nOrderedDict\n(]]" + nested_tuple(40) + b"aK\x01aatR.",
    ],
    ids=["list", "text", "tuple", "setitem", "setitems", "dict", "additems", "frozenset", "set", "frozen", "ordered"],
)
def test_a_few_bytes_that_would_take_for_ever_to_print_or_to_hash_are_refused(content):
    with pytest.raises(pickle.UnpicklingError, match="more than"):
        load_plain(content)


# --- what is not is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(hostile()))
def test_hostile_pickles_are_refused_and_do_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = dict(vars(builtins))
    with pytest.raises(pickle.UnpicklingError):
        load_plain(hostile()[name])
    assert not SIGN.exists()
    assert dict(vars(builtins)) == before
    assert load_plain(pickle.dumps(np.float64(1.5))) == 1.5  # the reader itself is as it was


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("name", ["os.system", "eval", "open", "memmap", "records"])
def test_a_malicious_npz_is_refused_with_and_without_the_flag(name, allow, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = npz_of(tmp_path / "label.npz", hostile()[name])
    with pytest.raises(UserError) as caught:
        read_npz(path, "test_corpus", allow_pickle=allow)
    assert "\n" not in str(caught.value)
    assert ("is refused" if allow else "--allow-pickle") in str(caught.value)
    assert not SIGN.exists()


def test_the_attacks_would_have_worked(tmp_path, monkeypatch):
    """An ordinary unpickler runs what the reader refuses: the tests above are not empty."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(hostile()["eval"])
    assert SIGN.exists()


def test_something_that_contains_itself():
    value: list = []
    value.append(value)
    with pytest.raises(pickle.UnpicklingError, match="contains itself"):
        load_plain(pickle.dumps(value))


def test_deep_nesting():
    value: list = []
    for _ in range(pickles.MAX_DEPTH + 5):
        value = [value]
    with pytest.raises(pickle.UnpicklingError, match="nested deeper"):
        load_plain(pickle.dumps(value))


def test_memory_is_not_taken_on_a_pickle_s_word():
    """The C unpickler makes room for every memo index below the one that is named."""
    tracemalloc.start()
    try:
        assert load_plain(b"N" + pickle.LONG_BINPUT + (1 << 24).to_bytes(4, "little") + b".") is None
        for name in ("empty rows", "empty strings", "zeros", "huge bytearray", "shared bytes", "lying array"):
            with pytest.raises(pickle.UnpicklingError):
                load_plain(hostile()[name])
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def test_empty_strings_and_arrays():
    value = [
        np.str_(""),
        np.array([""]),
        np.zeros((0, 3)),
        np.array([], object),
        np.asfortranarray([["x", {}]], object),
    ]
    for protocol in PROTOCOLS:
        assert load_plain(pickle.dumps(value, protocol)) == ["", [""], [], [], [["x", {}]]]


@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_the_one_error(content):
    with contextlib.suppress(pickle.UnpicklingError):
        load_plain(content)


@given(st.data())
def test_damaged_pickles_give_a_value_or_the_one_error(data):
    content = bytearray(pickle.dumps({"a": np.arange(3), "b": np.float64(1.5), "c": np.array(["x", "yz"])}, protocol=2))
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(pickle.UnpicklingError):
        load_plain(bytes(content))


# --- the archive ------------------------------------------------------------------------------------------------------


def test_entries_without_objects_need_no_flag(tmp_path):
    np.savez(tmp_path / "a.npz", names=np.array(["x", "é"]), grid=np.arange(4.0).reshape(2, 2).T, one=np.int64(7))
    assert npz_keys(tmp_path / "a.npz") == ["names", "grid", "one"]
    assert read_npz(tmp_path / "a.npz", "names") == ["x", "é"]
    assert read_npz(tmp_path / "a.npz", "grid") == [[0.0, 2.0], [1.0, 3.0]]
    assert read_npz(tmp_path / "a.npz", "one") == 7


def test_what_numpy_saved_is_what_we_read(tmp_path):
    """The same value as numpy's own reader, for the reference's two forms of a result file."""
    np.savez_compressed(
        tmp_path / "a.npz",
        name2reason={"a": "He is glad.", "b": ""},
        filenames=["a", "b"],
        fileitems=np.array(["[happy]", "[]"], object),
    )
    ours = [read_npz(tmp_path / "a.npz", key, allow_pickle=True) for key in ("name2reason", "filenames", "fileitems")]
    theirs = np.load(tmp_path / "a.npz", allow_pickle=True)
    assert ours == [theirs["name2reason"].tolist(), theirs["filenames"].tolist(), theirs["fileitems"].tolist()]


def broken_archives(folder: Path) -> dict[str, tuple[Path, str]]:
    np.save(folder / "bare.npy", np.arange(3))
    np.savez(folder / "whole.npz", a=np.arange(1000))
    whole = (folder / "whole.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[:-30])
    flipped = bytearray(whole)
    flipped[300] ^= 255
    (folder / "flipped.npz").write_bytes(bytes(flipped))
    with zipfile.ZipFile(folder / "text.npz", "w") as archive:
        archive.writestr("a.npy", b"hello")
    with zipfile.ZipFile(folder / "short.npz", "w") as archive:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (10**9,)})
        archive.writestr("a.npy", head.getvalue())
    heads = {
        "negative.npz": "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}",
        "rows.npz": "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 0)}",
        "strings.npz": "{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000,)}",
        "records.npz": "{'descr': [('a', '<i4'), ('b', '<i4')], 'fortran_order': False, 'shape': (1,)}",
        "brackets.npz": "{'descr': '<f8', 'fortran_order': False, 'shape': " + "(" * 5000,
    }
    for name, head in heads.items():
        with zipfile.ZipFile(folder / name, "w") as archive:
            magic = np.lib.format.magic(1, 0) + (len(head) + 1).to_bytes(2, "little")
            archive.writestr("a.npy", magic + head.encode() + b"\n" + b"A" * (8 if "-1" in head or "i4" in head else 0))
    with zipfile.ZipFile(folder / "lzma.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", b"hello " * 100)
    packed = bytearray((folder / "lzma.npz").read_bytes())
    packed[45:60] = b"\xff" * 15
    (folder / "lzma.npz").write_bytes(bytes(packed))
    return {
        "negative shape": (folder / "negative.npz", "without shape"),
        "empty rows": (folder / "rows.npz", "too large"),
        "empty strings": (folder / "strings.npz", "too large"),
        "records": (folder / "records.npz", "no plain one"),
        "brackets": (folder / "brackets.npz", "no numpy array"),
        "lzma": (folder / "lzma.npz", "damaged"),
        "missing": (folder / "none.npz", "cannot be read"),
        "folder": (folder, "cannot be read"),
        "bare array": (folder / "bare.npy", "no .npz file"),
        "cut": (folder / "cut.npz", "no .npz file"),
        "flipped": (folder / "flipped.npz", "damaged"),
        "no array": (folder / "text.npz", "no numpy array"),
        "lying shape": (folder / "short.npz", "damaged"),
    }


BROKEN = ["missing", "folder", "bare array", "cut", "flipped", "no array", "lying shape"]
BROKEN += ["negative shape", "empty rows", "empty strings", "records", "brackets", "lzma"]


@pytest.mark.parametrize("case", BROKEN)
def test_broken_archives_give_one_line(case, tmp_path):
    path, expected = broken_archives(tmp_path)[case]
    with pytest.raises(UserError, match=expected) as caught:
        read_npz(path, "a", allow_pickle=True)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_entry_that_is_not_there(tmp_path):
    np.savez(tmp_path / "a.npz", train_corpus=np.arange(2))
    with pytest.raises(UserError, match="no entry 'test_corpus', found train_corpus"):
        read_npz(tmp_path / "a.npz", "test_corpus")


def test_an_entry_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_ENTRY_BYTES", 1000)
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10_000))
    with pytest.raises(UserError, match="unpacks to 80128 bytes, expected at most 1000"):
        read_npz(tmp_path / "a.npz", "a")
