"""Reads what numpy stored in an `.npz` file without letting the file run anything.

The label files of the emotion corpora are `.npz` archives whose entries are pickled dictionaries, and an ordinary
unpickler calls whatever a pickle names. The reader here knows ten names, all of them plain containers or pieces of
numpy, and none of them reaches numpy's own code: each is replaced by a stand-in that accepts numbers and strings and
nothing else. Every other name is refused before it is looked up. It runs only where the caller allowed pickles.
"""

import io
import math
import pickle
import re
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mer_r1.errors import UserError, printable

MAX_ENTRY_BYTES = 512 * 2**20
"""Unpacked size above which an entry is refused: the labels of 132,171 clips take a few megabytes."""
MAX_DEPTH = 40
"""Containers within containers above which a pickle is refused."""

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
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError, zlib.error) as error:
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
        return _plain(_PlainUnpickler(io.BytesIO(content)).load(), {}, 0)
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
    except zipfile.BadZipFile:
        raise UserError(f"{printable(path)}: no .npz file (a zip archive of numpy arrays)") from None


def _entry(content: io.BytesIO, where: str, allow_pickle: bool) -> Any:
    try:
        version = np.lib.format.read_magic(content)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(content)
    except (ValueError, KeyError, TypeError, SyntaxError):
        raise UserError(f"{where} is no numpy array (.npy, format 1 or 2)") from None
    raw = content.read()
    if not dtype.hasobject:
        if math.prod(shape) * dtype.itemsize != len(raw):
            raise UserError(f"{where} is damaged: {len(raw)} bytes for an array of shape {shape}")
        return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C").tolist()
    if not allow_pickle:
        raise UserError(
            f"{where} is a pickle: a file that may run code when it is read. If you trust where it comes from, "
            "--allow-pickle reads it, admitting plain containers, numbers, strings and numpy arrays only"
        )
    try:
        return load_plain(raw)
    except pickle.UnpicklingError as error:
        raise UserError(f"{where} is refused: {printable(str(error))}") from None


class _PlainUnpickler(pickle.Unpickler):
    """Looks names up in `_ADMITTED` and nowhere else."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name."""
        try:
            return _ADMITTED[module, name]
        except KeyError:
            named = printable(f"{module}.{name}")
            raise pickle.UnpicklingError(f"it names {named:.100}, which is no plain value") from None


class _Maker:
    """A callable that a pickle can call but not change (its BUILD opcode sets attributes of what it is given)."""

    __slots__ = ("_make",)
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "_make", make)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("it changes a name that it was only given to call")

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)


class _DType:
    """Stands in for `numpy.dtype`: booleans, numbers, strings and objects, no records and no sub-arrays."""

    __slots__ = ("_order", "_spec")

    def __init__(self, spec: Any, *_: Any) -> None:
        if not isinstance(spec, str) or not _SPEC.fullmatch(spec):
            raise pickle.UnpicklingError(f"it has an array of type {printable(repr(spec)):.40}, which is no plain one")
        self._spec, self._order = spec.lstrip("|<>="), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *parts = state
        if order not in ("|", "<", ">", "=") or any(part is not None for part in parts[:3]):
            raise pickle.UnpicklingError("it has an array of records, which is no plain one")
        self._order = order

    @property
    def holds_objects(self) -> bool:
        """Whether the array's items are pickled one by one."""
        return self._spec.startswith("O")

    def values(self, raw: Any) -> "np.ndarray[Any, Any]":
        """The numbers or strings in some bytes."""
        if self.holds_objects or not isinstance(raw, bytes | bytearray):
            raise pickle.UnpicklingError("it has an array whose content is no bytes")
        return np.frombuffer(raw, np.dtype(self._order.replace("|", "=") + self._spec))


class _Array:
    """Stands in for `numpy.ndarray` until `_plain` turns it into lists."""

    __slots__ = ("items", "shape")

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.shape: tuple[int, ...] = (0,)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _DType) or not all(isinstance(side, int) and side >= 0 for side in shape):
            raise pickle.UnpicklingError("it has an array without shape or type")
        self.fill(tuple(shape), dtype, bool(fortran), data)

    def fill(self, shape: tuple[int, ...], dtype: _DType, fortran: bool, data: Any) -> "_Array":
        """Take the content, flat."""
        if dtype.holds_objects and isinstance(data, list) and (len(shape) < 2 or not fortran):
            self.items = data
        else:
            self.items = dtype.values(data).reshape(shape, order="F" if fortran else "C").ravel().tolist()
        if len(self.items) != math.prod(shape):
            raise pickle.UnpicklingError(f"it has an array of shape {shape} with {len(self.items)} items")
        self.shape = shape
        return self


def _plain(value: Any, done: dict[int, Any], depth: int) -> Any:
    """A value without stand-ins. `done` remembers by identity, so that shared parts are not copied again and again."""
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
    elif isinstance(value, _Array):
        result = _nested([_plain(item, done, depth + 1) for item in value.items], value.shape)
    else:
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__.strip('_')}, which is no plain value")
    done[id(value)] = (value, result)  # the value too: its identity must not be given to another one
    return result


def _nested(items: list[Any], shape: tuple[int, ...]) -> Any:
    """Flat items as lists of lists; the item itself for a 0-d array."""
    if not shape:
        return items[0]
    for side in reversed(shape[1:]):
        items = [items[start : start + side] for start in range(0, len(items), side)] if side else []
    return items


def _reconstruct(kind: Any, *_: Any) -> _Array:
    if kind is not _NDARRAY:
        raise pickle.UnpicklingError("it has an array of an unknown class")
    return _Array()


def _scalar(dtype: Any, raw: Any) -> Any:
    values = dtype.values(raw)
    return values[0].item()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: str, *_: Any) -> _Array:
    return _Array().fill(tuple(shape), dtype, order == "F", bytes(raw))


def _latin1(text: str, encoding: str) -> bytes:
    """How old protocols write bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes a text as {encoding!r:.20}, expected latin1")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    """How old protocols write empty bytes."""
    return b""


def _uncallable(*_: Any) -> Any:
    raise pickle.UnpicklingError("it makes an array without content")


_NDARRAY = _Maker(_uncallable)
_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _Maker(_latin1),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Maker(_DType),
}
for _module in ("builtins", "__builtin__"):  # protocols from 3, protocols before
    _ADMITTED[_module, "set"] = set
    _ADMITTED[_module, "frozenset"] = frozenset
    _ADMITTED[_module, "bytes"] = _Maker(_no_bytes)
for _module in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
    _ADMITTED[f"{_module}.multiarray", "_reconstruct"] = _Maker(_reconstruct)
    _ADMITTED[f"{_module}.multiarray", "scalar"] = _Maker(_scalar)
    _ADMITTED[f"{_module}.numeric", "_frombuffer"] = _Maker(_frombuffer)
