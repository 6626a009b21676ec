"""Convert every network of the zoo, and write what came of it.

``python -m tests.zoo`` continues where it stopped; ``--help`` says what can be chosen. Each network
is tried in a process of its own, with a limit of time.
"""

import argparse
import csv
import fnmatch
import multiprocessing
import multiprocessing.connection
import resource
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from spikingjelly.logger import logger

from . import table
from .attempt import Result, attempt
from .entry import Entry
from .everything import entries
from .libraries import survey_timm

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("only", nargs="*", default=["*"], help="patterns of library/network")
    parser.add_argument("--csv", type=Path, default=ROOT / "figures" / "zoo.csv")
    parser.add_argument("--again", nargs="*", default=[], help="verdicts to try again")
    parser.add_argument("--seconds", type=float, default=120, help="limit for one network")
    parser.add_argument("--gigabytes", type=float, default=8, help="limit of memory for one network")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--survey-timm", action="store_true", help="only list the networks of timm")
    arguments = parser.parse_args()
    if arguments.survey_timm:
        survey_timm()
        return
    if not arguments.table:
        rows = _rows(arguments.csv, arguments.again)
        done = {(row["library"], row["network"]) for row in rows}
        wanted = [
            entry
            for entry in entries()
            if (entry.library, entry.name) not in done
            and any(fnmatch.fnmatch(f"{entry.library}/{entry.name}", p) for p in arguments.only)
        ]
        for result in _attempt_all(wanted, arguments):
            print(result.library, result.network, result.verdict, result.reason[:300], flush=True)
            rows.append(result.row())
            _write(arguments.csv, rows)
    rows = _rows(arguments.csv)
    arguments.csv.with_suffix(".md").write_text(table.markdown(rows))
    print(table.summary(rows))


def _rows(file: Path, without: Iterable[str] = ()) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    with file.open(newline="") as opened:
        return [row for row in csv.DictReader(opened) if row["verdict"] not in without]


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(Result("", "").row()), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _attempt_all(wanted: list[Entry], limits: argparse.Namespace) -> Iterator[Result]:
    """Each in a forked process; so many at a time."""
    context = multiprocessing.get_context("fork")
    waiting, running = list(reversed(wanted)), {}
    while waiting or running:
        while waiting and len(running) < limits.jobs:
            entry = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(entry, sender, limits.gigabytes))
            process.start()
            sender.close()
            running[receiver] = (entry, process, time.monotonic() + limits.seconds)
        first = min(until for _, _, until in running.values())
        ready = multiprocessing.connection.wait(list(running), max(0, first - time.monotonic()))
        for receiver, (entry, process, until) in list(running.items()):
            if receiver in ready or time.monotonic() > until:
                del running[receiver]
                yield _received(receiver, entry)
                process.kill()
                process.join()


def _received(receiver: Any, entry: Entry) -> Result:
    """What a process found, if it has found it."""
    try:
        return receiver.recv() if receiver.poll() else Result(entry.library, entry.name, "timed out")
    except EOFError:
        return Result(entry.library, entry.name, "does not run", "its process died")


def _work(entry: Entry, sender: Any, gigabytes: float) -> None:
    warnings.simplefilter("ignore")
    logger.remove()
    torch.set_num_threads(1)
    most = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    sender.send(attempt(entry))


if __name__ == "__main__":
    main()
