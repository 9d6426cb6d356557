"""What only all lines of a file together tell: whether they are of one kind, and what another program did to them.

Each class sees one line after another, raises for one that differs from those before, and `finish` judges the whole.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from ..common.errors import UserError


class Alike:
    """Whether all lines of a collection have ids or none, texts that are not quoted, and titles that are titles."""

    def __init__(self, path: Path) -> None:
        self._path, self._is_table = path, path.suffix == ".tsv"
        self._named: bool | None = None
        self._quoted = Quoted()
        self._titles, self._numbers = 0, 0

    def see(self, number: int, line: str, has_id: bool) -> None:
        """Raises UserError, the reason alone, when a line has an id and those before had none, or the other way round."""
        if self._named is None:
            self._named = has_id
        if self._named != has_id:
            raise UserError(f"{'an' if has_id else 'no'} id, the lines before have {'none' if has_id else 'one'}")
        if self._is_table:
            columns = line.split("\t")
            self._quoted.see(number, columns[1:])
            self._titles += len(columns) > 2
            self._numbers += len(columns) > 2 and _is_figure(columns[2])

    def finish(self) -> None:
        """Raises UserError when every text is quoted, or every title a number."""
        self._quoted.finish(self._path)
        if self._titles > 1 and self._titles == self._numbers:
            raise UserError(
                f"{self._path}: its third column has {self._titles:,} numbers and no title, ColBERT would read them as titles; "
                "remove the column (cut -f 1,2)"
            )


class Quoted:
    """Whether a table was written as CSV, as pandas does: every field with a quotation mark is quoted, those in it doubled."""

    def __init__(self) -> None:
        self._plain, self._first, self._count = False, 0, 0

    def see(self, number: int, fields: Iterable[str]) -> None:
        for field in fields:
            if '"' not in field:
                continue
            inner = field[1:-1].replace('""', "")
            if len(field) < 2 or field[0] != '"' or field[-1] != '"' or '"' in inner:
                self._plain = True
            elif len(inner) < len(field) - 2:
                self._first, self._count = self._first or number, self._count + 1

    def finish(self, path: Path) -> None:
        """Raises UserError when it was: the quotes would be part of the texts."""
        if self._count and not self._plain:
            raise UserError(
                f"{path}, line {self._first}: the text is quoted as CSV, as in all {self._count:,} lines with quotation marks; "
                "write it again without (pandas: quoting=csv.QUOTE_NONE) or as .jsonl"
            )


def _is_figure(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]*[.,]?[0-9]+(e[+-]?[0-9]+)?|nan", text.strip().lower()) is not None
