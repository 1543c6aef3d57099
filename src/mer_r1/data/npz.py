"""Reads what numpy stored in an `.npz` file without letting the file run anything.

The label files of the emotion corpora are `.npz` archives whose entries are pickled dictionaries, and an ordinary
unpickler calls whatever a pickle names. The reader here has two whitelists: names (`_ADMITTED`: plain containers, and
the pieces of numpy that numpy's own pickles name) and types of arrays (`_SPEC`: numbers, strings, objects). Every other
name is refused before it is looked up. It runs only where the caller allowed pickles.

Two things are not left to the libraries, because a few hostile bytes bring them down (tests/data/test_npz.py).
`ndarray.__setstate__`, `dtype.__setstate__` and `ndarray(buffer=...)` read memory that is not theirs if a pickle lies
about sizes or types: so a type is a checked string (`_DType`), and numpy makes an array once shape, type and content
agree (`_array`). The C unpickler takes memory for the highest memo index that a pickle claims, 34 GB for ten bytes: so
Python's own unpickler is the base, whose memo is a dictionary.
"""

import io
import math
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mer_r1.errors import UserError, printable

MAX_ENTRY_BYTES = 512 * 2**20
"""Unpacked size above which an entry is refused: the labels of 132,171 clips take a few megabytes."""
MAX_ITEMS = 2**26
"""Items above which an array is refused."""
MAX_DEPTH = 40
"""Containers within containers above which a pickle is refused, and axes above which an array is."""
MAX_KEY = 1000
"""Values in a key above which it is refused: a tuple that shares its parts takes for ever to hash."""
MAX_BITS = 1023
"""Length above which an integer is refused: longer ones are no floats and cannot be printed."""

_KEYS = {pickle.SETITEM[0]: slice(-2, None, 2), pickle.SETITEMS[0]: slice(None, None, 2)}
_KEYS |= {pickle.DICT[0]: slice(None, None, 2), pickle.ADDITEMS[0]: slice(None), pickle.FROZENSET[0]: slice(None)}
"""Opcodes that hash what is on the stack, and where it is."""
_CALLS = pickle.INST + pickle.OBJ + pickle.NEWOBJ + pickle.NEWOBJ_EX
_SPEC = re.compile(r"[|<>=]?(?:b1|[iu][1248]|f[248]|[US]\d{1,7}|O[48]?|[?bBhHiIlLqQefdO])")
_PLAIN = (bool, int, float, str, bytes)


def npz_keys(path: Path | str) -> list[str]:
    """Names of the entries of an `.npz` file, in its order.

    Raises:
        UserError: the file cannot be read, or is no `.npz`.
    """
    with _opened(Path(path)) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_npz(path: Path | str, key: str, *, allow_pickle: bool = False) -> Any:
    """One entry of an `.npz` file as plain Python values.

    Args:
        path: the archive.
        key: the entry's name.
        allow_pickle: whether an entry that holds Python objects may be read at all, by the reader of this module.

    Returns:
        Nested lists for an array, the single value for a 0-d array: numbers, strings, lists, tuples, sets and dicts.

    Raises:
        UserError: naming file and entry: it cannot be read, lacks the entry, holds a pickle without `allow_pickle`, or
            one that names anything but plain containers, numbers, strings and numpy arrays.
    """
    path = Path(path)
    with _opened(path) as archive:
        names = archive.namelist()
        if f"{key}.npy" not in names:
            found = ", ".join(printable(name.removesuffix(".npy")) for name in names[:8]) or "nothing"
            raise UserError(f"{printable(path)}: no entry {key!r}, found {found}")
        where = f"{printable(path)}: entry {key!r}"
        info = archive.getinfo(f"{key}.npy")
        if info.file_size > MAX_ENTRY_BYTES:
            raise UserError(f"{where} unpacks to {info.file_size} bytes, expected at most {MAX_ENTRY_BYTES}")
        try:
            content = io.BytesIO(archive.read(info))
        except Exception as error:  # each way of compressing has its own errors
            raise UserError(f"{where} is damaged ({error})") from None
    return _entry(content, where, allow_pickle)


def load_plain(content: bytes) -> Any:
    """Read a pickle that holds plain containers, numbers, strings and numpy arrays only.

    Raises:
        pickle.UnpicklingError: it names anything else, is damaged, or is nested deeper than `MAX_DEPTH`.

    >>> load_plain(pickle.dumps({"clip-1": {"emo": np.str_("happy"), "val": np.float64(1.5)}}))
    {'clip-1': {'emo': 'happy', 'val': 1.5}}
    >>> load_plain(pickle.dumps(print))
    Traceback (most recent call last):
    _pickle.UnpicklingError: it names builtins.print, which is no plain value
    """
    try:
        value = _plain(_PlainUnpickler(content).load(), {}, 0)
        if _size(value, {}) > 4 * len(content) + MAX_KEY:
            raise pickle.UnpicklingError("it unpacks to more than its size")
        return value
    except pickle.UnpicklingError:
        raise
    except RecursionError:
        raise pickle.UnpicklingError("it is nested too deeply") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise pickle.UnpicklingError(f"it is damaged ({type(error).__name__})") from None


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be read ({error.strerror})") from None
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        raise UserError(f"{printable(path)}: no .npz file (a zip archive of numpy arrays)") from None


def _entry(content: io.BytesIO, where: str, allow_pickle: bool) -> Any:
    try:
        version = np.lib.format.read_magic(content)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        with warnings.catch_warnings(action="ignore"):  # of a header that Python 2 wrote
            shape, fortran, dtype = readers[version](content)
    except Exception:  # numpy reads the header as Python text, which can fail in any way
        raise UserError(f"{where} is no numpy array (.npy, format 1 or 2)") from None
    raw = content.read()
    if dtype.hasobject and not allow_pickle:
        raise UserError(
            f"{where} is a pickle: a file that may run code when it is read. If you trust where it comes from, "
            "--allow-pickle reads it, admitting plain containers, numbers, strings and numpy arrays only"
        )
    try:
        if dtype.hasobject:
            return load_plain(raw)
        return _array(shape, _DType(dtype.str), fortran, raw).tolist()
    except pickle.UnpicklingError as error:
        raise UserError(f"{where} is refused: {printable(str(error))}") from None


def _key(value: Any) -> Any:
    """The value, which is about to be hashed, unless that would take long."""
    left, count = [value], 0
    while left:
        item = left.pop()
        count += 1
        if count > MAX_KEY:
            raise pickle.UnpicklingError(f"it has a key of more than {MAX_KEY} values")
        if isinstance(item, tuple | frozenset):
            left.extend(item)
    return value


def _with_small_keys(step: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    def checked(reader: Any) -> None:
        for key in reader.stack[keys]:
            _key(key)
        step(reader)

    return checked


class _PlainUnpickler(pickle._Unpickler):
    """Calls what is in `_ADMITTED`, by one opcode only, and uses no byte of the pickle more than twice.

    Shared bytes would otherwise become as many arrays as a pickle has calls. Protocols before 3 use a byte twice: they
    write content as text, which is encoded first.
    """

    stack: list[Any]
    read: Callable[[int], bytes]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: _with_small_keys(step, _KEYS[code]) if code in _KEYS else step
        for code, step in pickle._Unpickler.dispatch.items()
        if code not in _CALLS
    }

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._left = 2 * len(content)

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name."""
        try:
            return _ADMITTED[module, name]
        except KeyError:
            named = printable(f"{module}.{name}")
            raise pickle.UnpicklingError(f"it names {named:.100}, which is no plain value") from None

    def _use(self, *parts: Any) -> None:
        self._left -= sum(len(part) for part in parts if hasattr(part, "__len__"))
        if self._left < 0:
            raise pickle.UnpicklingError("it unpacks to more than its size")

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self._use(*arguments)
        self.stack[-1] = self.stack[-1](*arguments)

    def _build(self) -> None:
        # Sets what a type or an array is. Nothing else has a state, so that no other object can be changed.
        state, made = self.stack.pop(), self.stack[-1]
        self._use(*state)
        if type(made) is _DType:
            made.set_order(*state)
        elif type(made) is _Array:
            _, shape, dtype, fortran, data = state
            made.content = _array(shape, dtype, bool(fortran), data)
        else:
            raise pickle.UnpicklingError("it changes a name that it was only given to call")

    def _bytearray8(self) -> None:
        self.stack.append(self.read(int.from_bytes(self.read(8), "little")))

    dispatch |= {pickle.REDUCE[0]: _reduce, pickle.BUILD[0]: _build, pickle.BYTEARRAY8[0]: _bytearray8}


class _DType:
    """What a pickle says of a `numpy.dtype`: booleans, numbers, strings and objects, no records and no sub-arrays."""

    def __init__(self, spec: Any, *_: Any) -> None:
        if not isinstance(spec, str) or not _SPEC.fullmatch(spec):
            raise pickle.UnpicklingError(f"it has an array of type {printable(repr(spec)):.40}, which is no plain one")
        self.spec = spec

    def set_order(self, _: Any, order: Any, *parts: Any) -> None:
        """Take the byte order of a state, and nothing else."""
        if order not in ("|", "<", ">", "=") or any(part is not None for part in parts[:3]):
            raise pickle.UnpicklingError("it has an array of records, which is no plain one")
        self.spec = order.replace("|", "=") + self.spec.lstrip("|<>=")


@dataclass(eq=False)
class _Array:
    """Holds an array; a pickle names it before it says what is in it."""

    content: "np.ndarray[Any, Any] | None" = None


def _array(shape: Any, dtype: Any, fortran: bool, data: Any) -> "np.ndarray[Any, Any]":
    """An array from its flat content: a list of objects in row order, or the bytes of numbers or strings."""
    if type(shape) is not tuple or not all(type(side) is int and side >= 0 for side in shape[: MAX_DEPTH + 1]):
        raise pickle.UnpicklingError("it has an array without shape")
    if len(shape) > MAX_DEPTH or type(dtype) is not _DType:
        raise pickle.UnpicklingError("it has an array without type, or of too many sides")
    kind, count = np.dtype(dtype.spec), math.prod(shape)
    expected = (list, count) if kind.hasobject else (bytes, count * kind.itemsize)
    if (type(data), len(data)) != expected or math.prod(side or 1 for side in shape) > MAX_ITEMS:
        raise pickle.UnpicklingError(
            f"it is damaged or too large: {len(data)} bytes or items for an array of shape {shape!s:.80}"
        )
    if kind.hasobject:
        return np.fromiter(data, object, count).reshape(shape)
    flat = np.frombuffer(data, kind) if data else np.zeros(count, kind)
    return flat.reshape(shape, order="F" if fortran else "C")


def _plain(value: Any, done: dict[int, Any], depth: int) -> Any:
    """A value without `_Array`. `done` remembers by identity, so that shared parts are not copied again and again."""
    if type(value) is int and value.bit_length() > MAX_BITS:
        raise pickle.UnpicklingError(f"it has an integer of {value.bit_length()} bits")
    if value is None or type(value) in _PLAIN:
        return value
    if depth > MAX_DEPTH:
        raise pickle.UnpicklingError(f"it is nested deeper than {MAX_DEPTH} containers, or contains itself")
    if id(value) in done:
        return done[id(value)][1]
    result: Any
    if isinstance(value, dict):
        result = {_plain(key, done, depth + 1): _plain(item, done, depth + 1) for key, item in value.items()}
    elif isinstance(value, list | tuple | set | frozenset):
        result = type(value)(_plain(item, done, depth + 1) for item in value)
    elif isinstance(value, _Array) and value.content is not None:
        items = value.content.tolist()
        result = _plain(items, done, depth + 1) if value.content.dtype.hasobject else items
    else:
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__.strip('_')}, which is no plain value")
    done[id(value)] = (value, result)  # the value too: its identity must not be given to another one
    return result


def _size(value: Any, sizes: dict[int, int]) -> int:
    """Values in a value, shared ones counted each time and long texts as several."""
    if isinstance(value, str | bytes):
        return 1 + len(value) // 256
    if not isinstance(value, dict | list | tuple | set | frozenset):
        return 1
    if id(value) not in sizes:
        parts = (*value, *value.values()) if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_size(part, sizes) for part in parts)
    return sizes[id(value)]


def _reconstruct(kind: Any, *_: Any) -> _Array:
    if kind is not _NDARRAY:
        raise pickle.UnpicklingError("it has an array of an unknown class")
    return _Array()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: str, *_: Any) -> _Array:
    return _Array(_array(shape, dtype, order == "F", raw))


def _latin1(text: str, encoding: str) -> bytes:
    """How old protocols write bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes a text as {encoding!r:.20}, expected latin1")
    return text.encode("latin-1")


_NDARRAY = object()
_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): lambda pairs=(): OrderedDict((_key(key), value) for key, value in pairs),
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): _NDARRAY,  # never called: it is what `_reconstruct` is asked to make
    ("numpy", "dtype"): _DType,
}
for _module in ("builtins", "__builtin__"):  # protocols from 3, protocols before, which write empty bytes as a call
    _ADMITTED |= {(_module, "set"): lambda items=(): set(map(_key, items)), (_module, "bytes"): lambda: b""}
    _ADMITTED[_module, "frozenset"] = lambda items=(): frozenset(map(_key, items))
for _module in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
    _ADMITTED[f"{_module}.multiarray", "_reconstruct"] = _reconstruct
    _ADMITTED[f"{_module}.multiarray", "scalar"] = lambda dtype, raw: _array((), dtype, False, raw).item()
    _ADMITTED[f"{_module}.numeric", "_frombuffer"] = _frombuffer
