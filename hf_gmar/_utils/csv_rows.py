"""Read CSV files."""

from __future__ import annotations

import csv
from pathlib import Path


def read_csv(path: Path) -> list[tuple[int, list[str]]]:
    """Read the rows that are not empty, each with its line number.

    The separator is that of the first row: a comma, a semicolon or a tab.

    Raises:
        OSError: the file can't be read.
        UnicodeDecodeError: the file is not in UTF-8.
        csv.Error: the file is no CSV.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        try:
            separator = csv.Sniffer().sniff(first, ",;\t").delimiter
        except csv.Error:  # a single column has none
            separator = ","
        reader = csv.reader(file, delimiter=separator, strict=True)
        return [(reader.line_num, row) for row in reader if row]
