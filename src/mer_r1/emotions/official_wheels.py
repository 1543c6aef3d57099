"""Readers of the official word tables of MER-UniBench: one CSV file and six small Excel sheets.

The rules (which cell inherits, which placement overwrites which) are those of the reference, inferred from its
behaviour and tested against its outputs word by word. `wheels.official` combines the tables.
"""

import csv
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from mer_r1.errors import UserError

MOST_BYTES, MOST_ROWS, MOST_COLUMNS = 2**24, 20_000, 64
"""Largest Excel file, unpacked, and sheet; the official ones have some hundred rows and up to sixteen columns."""


def normalise(word: str) -> str:
    """The form of a word in every look-up: lower-case and trimmed, changed in no other way."""
    return word.lower().strip()


def read_forms(path: Path) -> dict[str, tuple[str, ...]]:
    """Surface form -> its base words in alphabetical order, from the columns `name` and `format` of a CSV file.

    Raises:
        UserError: the file cannot be read or lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            _require(path, reader.fieldnames or (), ("name", "format"))
            rows = [(row["name"], row["format"] or "") for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV file with columns name, format ({error})") from error
    if not rows or any(name is None for name, _ in rows):
        raise UserError(f"{path}: expected rows with a name, got {'a row without' if rows else 'the header only'}")
    bases: dict[str, set[str]] = {}
    for name, variants in rows:
        for form in (name, *variants.split(",")):
            if form:
                bases.setdefault(form, set()).add(name)
    return {form: tuple(sorted(names)) for form, names in bases.items()}


def read_synonyms(path: Path) -> dict[str, tuple[str, ...]]:
    """Base word -> the wheel labels of all eight runs that name it, in alphabetical order, from an Excel sheet.

    Raises:
        UserError: the sheet cannot be read or lacks a column.
    """
    columns = [f"{kind}_run{run}" for run in range(1, 9) for kind in ("word", "synonym")]
    labels: dict[str, set[str]] = {}
    for row in _read_sheet(path, columns):
        for word, variants in zip(row[::2], row[1::2], strict=True):
            label = normalise(word)
            for base in (label, *map(normalise, variants.split(","))):
                if base:
                    labels.setdefault(base, set()).add(label)
    return {base: tuple(sorted(names)) for base, names in labels.items()}


def read_rings(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Label -> sector on the inner and on the outer ring of the wheel in one sheet.

    A blank level-1 or level-2 cell repeats the one above it. A later placement of a label overwrites an earlier one,
    and a level-1 label stands on the outer ring for the alphabetically first of its sectors.

    Raises:
        UserError: the sheet cannot be read or lacks a column.
    """
    tree: dict[str, dict[str, list[str]]] = {}
    inner = outer = ""
    for cells in _read_sheet(path, ("level1", "level2", "level3")):
        first, second, third = map(normalise, cells)
        inner, outer = first or inner, second or outer
        tree.setdefault(inner, {}).setdefault(outer, []).append(third)
    level1: dict[str, str] = {}
    level2: dict[str, str] = {}
    for sector, outers in tree.items():
        level1[sector], level2[sector] = sector, min(outers)
        for outer_sector, labels in outers.items():
            for label in (outer_sector, *labels):
                level1[label], level2[label] = sector, outer_sector
    return level1, level2


def _read_sheet(path: Path, columns: Sequence[str]) -> list[list[str]]:
    """The named columns of the first sheet, as text ("" for a blank cell), without wholly blank rows."""
    rows = _sheet_rows(path)
    header = [name.strip() for name in rows[0]] if rows else []
    _require(path, header, columns)
    places = [header.index(name) for name in columns]
    picked = [[row[place] if place < len(row) else "" for place in places] for row in rows[1:]]
    if not (filled := [row for row in picked if any(cell.strip() for cell in row)]):
        raise UserError(f"{path}: a header without rows")
    return filled


def _sheet_rows(path: Path) -> list[list[str]]:
    """The first sheet, as text."""
    import openpyxl  # only the official tables need it, and it takes a tenth of a second

    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
        if unpacked > MOST_BYTES:
            raise UserError(f"it unpacks to {unpacked} bytes, expected at most {MOST_BYTES}")
        with warnings.catch_warnings(action="ignore"):  # of styles and the like, which do not matter here
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            # Bounded, because one cell in the last corner makes a sheet of 17 billion.
            cells = book.worksheets[0].iter_rows(max_row=MOST_ROWS + 1, max_col=MOST_COLUMNS, values_only=True)
            rows = [["" if cell is None else str(cell) for cell in row] for row in cells]
            book.close()
    except Exception as error:  # openpyxl lets zip, XML and key errors through
        raise UserError(f"{path}: cannot be read as an Excel sheet ({error!s:.200})") from error
    if len(rows) > MOST_ROWS:
        raise UserError(f"{path}: more than {MOST_ROWS} rows, expected an official word table")
    return rows


def _require(path: Path, found: Iterable[str], columns: Iterable[str]) -> None:
    missing = [name for name in columns if name not in found]
    if missing:
        raise UserError(f"{path}: missing column {', '.join(missing)} (found: {', '.join(found) or 'none'})")
