"""A schedule: the sparse list of deviations from "no fault, first come first served".

The text of a schedule is one deviation a line, in any order, `#` begins a comment::

    txbus schedule 1
    # The answer to the first COMMIT is lost, and the process dies in the recovery.
    orders/sql.commit:shop#1 answer-lost
    orders+1/broker.send:orders#2 crash-after
    stock/broker.receive:stock.reserve#3 pause-before 90s

An address is ``process/label#n``: the n-th operation with this label (from 1) in this incarnation of
this process (``orders`` is the first, ``orders+1`` the one after its first restart). It stays the same
when unrelated code changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from txbus_sim.errors import MalformedSchedule
from txbus_sim.faults import Fault

__all__ = ["Address", "Deviation", "Schedule"]

_VERSION = 1
_ADDRESS = re.compile(r"(?P<process>[^/\s]+)/(?P<label>\S+)#(?P<number>[1-9][0-9]*)")
_AMOUNT = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<unit>ns|us|ms|s|B)")
_UNITS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_FAULTS = {fault.value: fault for fault in Fault}
_TIMED = {Fault.PAUSE_BEFORE, Fault.PAUSE_AFTER, Fault.DELAY, Fault.CLOCK_STEP, Fault.LATE_END, Fault.CHECK_LATE}


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """The n-th operation with a label in one incarnation of a process."""

    process: str
    label: str
    number: int

    def __str__(self) -> str:
        return f"{self.process}/{self.label}#{self.number}"

    @classmethod
    def parse(cls, text: str) -> Address:
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise MalformedSchedule(f"{text!r} is no address: process/label#n, such as orders/sql.commit:shop#1")
        return cls(found["process"], found["label"], int(found["number"]))


@dataclass(frozen=True, slots=True)
class Deviation:
    """One fault at one address; ``amount`` in nanoseconds, or in bytes for a torn file."""

    address: Address
    fault: Fault
    amount: int = 0

    def __str__(self) -> str:
        return f"{self.address} {self.fault.value}{_amount_text(self)}"

    @classmethod
    def parse(cls, text: str) -> Deviation:
        words = text.split()
        if len(words) not in (2, 3) or words[1] not in _FAULTS:
            raise MalformedSchedule(
                f"{text!r} is no deviation: ADDRESS FAULT [AMOUNT]; faults: {', '.join(sorted(_FAULTS))}"
            )
        fault = _FAULTS[words[1]]
        return cls(Address.parse(words[0]), fault, _parse_amount(words[2], fault) if len(words) == 3 else 0)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Deviations, at most one an address, in the order in which they are read."""

    deviations: tuple[Deviation, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        seen: set[Address] = set()
        for deviation in self.deviations:
            if deviation.address in seen:
                raise MalformedSchedule(f"{deviation.address} is named twice; an address takes one fault")
            seen.add(deviation.address)

    def __iter__(self) -> Iterator[Deviation]:
        return iter(self.deviations)

    def __len__(self) -> int:
        return len(self.deviations)

    def __str__(self) -> str:
        notes = [f"# {line}".rstrip() for line in self.note.splitlines()]
        return "\n".join([f"txbus schedule {_VERSION}", *notes, *map(str, self.deviations), ""])

    def with_(self, *more: Deviation) -> Schedule:
        return Schedule((*self.deviations, *more), self.note)

    def without(self, *gone: Deviation) -> Schedule:
        return Schedule(tuple(one for one in self.deviations if one not in gone), self.note)

    @classmethod
    def of(cls, deviations: Iterable[Deviation]) -> Schedule:
        return cls(tuple(deviations))

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """MalformedSchedule with the line's number for text that is no schedule of this version."""
        lines = text.splitlines()
        if not lines or lines[0].strip() != f"txbus schedule {_VERSION}":
            first = lines[0] if lines else ""
            raise MalformedSchedule(f"line 1 is {first!r}, not 'txbus schedule {_VERSION}'")
        deviations, notes = [], []
        for number, line in enumerate(lines[1:], start=2):
            text, _, comment = line.partition(" #") if not line.startswith("#") else ("", "", line[1:])
            if not text.strip():
                if comment:
                    notes.append(comment.strip())
                continue
            try:
                deviations.append(Deviation.parse(text.strip()))
            except MalformedSchedule as exc:
                raise MalformedSchedule(f"line {number}: {exc}") from None
        return cls(tuple(deviations), "\n".join(notes))


def _amount_text(deviation: Deviation) -> str:
    if not deviation.amount:
        return ""
    if deviation.fault not in _TIMED:
        return f" {deviation.amount}B"
    for unit in ("s", "ms", "us"):
        if deviation.amount % _UNITS[unit] == 0:
            return f" {deviation.amount // _UNITS[unit]}{unit}"
    return f" {deviation.amount}ns"


def _parse_amount(text: str, fault: Fault) -> int:
    found = _AMOUNT.fullmatch(text)
    if found is None:
        raise MalformedSchedule(f"{text!r} is no amount: a number with ns, us, ms, s or B, such as 90s")
    if (found["unit"] != "B") != (fault in _TIMED):
        wanted = "a time, such as 90s" if fault in _TIMED else "a number of bytes, such as 17B"
        raise MalformedSchedule(f"{fault.value} {text}: its amount is {wanted}")
    return round(float(found["number"]) * _UNITS.get(found["unit"], 1))
