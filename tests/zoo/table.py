"""The table of what was converted, grouped by library."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from .attempt import COUNTED

__all__ = ["markdown", "summary"]

Row = Mapping[str, str]
_ORDER = (
    *COUNTED,
    *("refused rightly", "timed out", "too large", "does not run"),
)


def summary(rows: Sequence[Row]) -> str:
    """How many networks of each library have which verdict, and the share that converts.

    Example:
        >>> print(summary([{"library": "a", "verdict": "converts"}]))
        | library | networks | converts | of what is convertible |
        | - | - | - | - |
        | a | 1 | 1 | 100.0 % of 1 |
        | all | 1 | 1 | 100.0 % of 1 |
    """
    verdicts = [v for v in _ORDER if any(row["verdict"] == v for row in rows)]
    lines = [
        f"| library | networks | {' | '.join(verdicts)} | of what is convertible |",
        "| - " * (len(verdicts) + 3) + "|",
    ]
    groups = {name: list(part) for name, part in groupby(_sorted(rows), lambda row: row["library"])}
    for name, part in [*groups.items(), ("all", list(rows))]:
        count = Counter(row["verdict"] for row in part)
        convertible = sum(count[v] for v in COUNTED)
        share = f"{100 * count['converts'] / convertible:.1f} % of {convertible}" if convertible else ""
        cells = [name, len(part), *(count[v] for v in verdicts), share]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _sorted(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row["library"], row.get("network", "").lower()))


def markdown(rows: Sequence[Row]) -> str:
    """The whole table."""
    lines = [_HEAD, summary(rows), ""]
    for library, part in groupby(_sorted(rows), lambda row: row["library"]):
        lines += [f"\n## {library}\n", _COLUMNS, "| - " * 8 + "|"]
        for row in part:
            errors = [row[f"error_{key}"] for key in ("16", "256", "many", "in_steps")]
            reason = row["reason"].replace("|", "\\|")[:300]
            cells = [row["network"], row["verdict"], reason, *errors, row["seconds"]]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


_COLUMNS = "| network | verdict | reason | error, Γ = 16 | error, Γ = 256 | Γ = 2^20 | and T = 4 | s |"
_HEAD = """# The zoo: which networks convert

Networks with random weights, each layer scaled to unit variance and each BatchNorm with statistics of
its own, are converted with `threshold="mse"`, `calibration="none"` for one step of Γ = 16 and of 256
levels, and with θ = maximum/Γ for one and four steps of Γ = 2^20; networks of timm of more than 590
million multiplications with θ = maximum/Γ throughout. The error is that of the worst output,
relative to its spread over the batch, on three of the four samples that the thresholds were fitted on.
*Converts* means that the last two errors are below 1 %, or are with 2^24 levels in float64 where the
table says so: some networks make much of small errors. What may be refused is decided by an oracle
(`tests/zoo/oracle.py`) that looks at torch's own operations: a product of two activations, a
normalisation by the sample, an activation other than sums of ReLUs between two neurons. After the
last neuron anything may stand, as a softmax: it acts on the mean output. Made by `python -m tests.zoo`.
"""
