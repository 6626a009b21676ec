"""Tables of text."""

__all__ = ["format_table"]


def format_table(rows: list[list[str]]) -> str:
    """Rows of equal length as lines: the first column to the left, the others to the right.

    Example:
        >>> print(format_table([["steps", "1"], ["spikes", "20"]]))
        steps    1
        spikes  20
    """
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in rows)
