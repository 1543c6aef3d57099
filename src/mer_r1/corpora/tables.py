"""CSV tables of the data sets, one row per clip, read strictly: errors name file and line.

Which cells count as missing follows pandas, because the reference reads its tables with it: an empty cell, and also
words such as "NA" or "None". A subtitle that consists of "None" is therefore empty there, and here.
"""

import codecs
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mer_r1.errors import UserError, printable

MISSING_CELLS = frozenset(
    "|#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")  # noqa: SIM905
)
"""Cells that `pandas.read_csv` takes as missing by default (documented there as `na_values`)."""
DEFAULT_ENCODING = "utf-8"

Row = dict[str, str]


def read_table(
    path: Path, columns: Sequence[str], encoding: str = DEFAULT_ENCODING, key: str = "name"
) -> tuple[dict[str, Row], int]:
    """Read a CSV table with a header.

    Args:
        path: the file.
        columns: wanted columns besides `key`; others are ignored.
        encoding: encoding of the text; a byte order mark overrides it.
        key: the column with the clip's name.

    Returns:
        Name -> column -> cell ("" where it is missing), in the file's order; and the number of repeated rows, equal in
        all wanted columns.

    Raises:
        UserError: naming file and line: the file is missing, in another encoding or no CSV, lacks a column, has a row
            of another length than its header or without a name, or repeats a name with different contents.
    """
    rows: dict[str, Row] = {}
    repeated = 0
    header: list[str] | None = None
    file = printable(path)
    reader = csv.reader(io.StringIO(_text(path, encoding), newline=""))
    try:
        for cells in reader:
            where = f"{file}:{reader.line_num}"
            if header is None:
                header = _header(cells, [key, *columns], path)
                continue
            if not cells:
                continue
            if len(cells) != len(header):
                raise UserError(f"{where}: {len(cells)} cells, expected {len(header)} as in the header")
            cell_of = dict(zip(header, cells, strict=True))
            name = cell_of[key]
            row = {column: "" if cell_of[column] in MISSING_CELLS else cell_of[column] for column in columns}
            if name in MISSING_CELLS:
                raise UserError(f"{where}: {key}: got an empty cell, expected the name of a clip")
            if rows.setdefault(name, row) is not row:
                if rows[name] != row:
                    raise UserError(f"{where}: {key}: {name!r:.80} is there twice, and the rows differ")
                repeated += 1
    except csv.Error as error:
        raise UserError(f"{file}:{reader.line_num}: no CSV ({error})") from None
    if header is None:
        raise UserError(f"{file}: empty, expected a header with {', '.join([key, *columns])}")
    return rows, repeated


def _header(cells: Sequence[str], wanted: Sequence[str], path: Path) -> list[str]:
    header = [cell.strip() for cell in cells]
    missing = [column for column in wanted if column not in header]
    if missing:
        found = ", ".join(printable(cell) for cell in header[:12]) or "nothing"
        raise UserError(f"{printable(path)}: no column {', '.join(map(repr, missing))}, found {found:.300}")
    twice = [column for column in wanted if header.count(column) > 1]
    if twice:
        raise UserError(f"{printable(path)}: the column {twice[0]!r} is there more than once")
    return header


def _text(path: Path, encoding: str) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be read ({error.strerror})") from None
    for mark, marked in ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if content.startswith(mark):
            encoding = marked
            content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode(encoding)
    except LookupError:
        raise UserError(f"encoding: got {encoding!r:.40}, expected one that Python knows, such as gb18030") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{printable(path)}:{line}: not {encoding} (byte {error.start + 1} of the file); if it was saved in "
            "another encoding, say which with --encoding (Chinese tables are often in gb18030)"
        ) from None
