"""What the simulator raises.

::

    TxbusError
    └── SimulationError         the simulation itself cannot go on
        ├── NotModelled         the code asked for something that the simulator does not model
        ├── MalformedSchedule   a schedule's text cannot be read
        └── MalformedHistory    a history that no run can have made: a defect of a dialect
    BaseException
    └── ProcessIsDead           thrown in a dead process's frames while their memory is freed
"""

from __future__ import annotations

from typing import ClassVar

from txbus.errors import TxbusError

__all__ = ["MalformedHistory", "MalformedSchedule", "NotModelled", "ProcessIsDead", "SimulationError"]


class SimulationError(TxbusError):
    """The simulation cannot go on; says nothing about the code under test."""


class NotModelled(SimulationError):
    """The code under test asked for something that the simulator does not model.

    Names what was asked for, the place, and what to do. Never answered with a guess. The run ends
    with this verdict even if the code swallows the error.
    """

    raised: ClassVar[list[NotModelled]] = []
    """Every one of this run, for the verdict."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.raised.append(self)


class MalformedSchedule(SimulationError):
    """A schedule's text cannot be read, or names an address that the run never reached."""


class MalformedHistory(SimulationError):
    """No run of a correct dialect leaves this history; the dialect is at fault, not the code."""


class ProcessIsDead(BaseException):
    """Unwinds the frames of a process that was crashed, once its run is over.

    Every port, database and broker it could reach is inert by then, so what its ``finally`` blocks
    do has no effect. Application code never sees it during a run.
    """
