"""The conformance suite: a backend or a store proves itself with one call.

::

    from txbus.conformance import Harness, run

    class MyHarness(Harness):
        def backend(self): ...

    report = run(MyHarness(ports))
    print(report)
    report.raise_for_failures()

Or one test for each case: ``@pytest.mark.parametrize("case", cases(harness), ids=lambda c: c.name)``.
What a backend declares must hold; what it does not declare must be refused with CapabilityMissing.
"""

from txbus.conformance import (  # noqa: F401 - importing a kit registers its cases
    admin,
    brokertransactions,
    halfmessages,
    inboxes,
    ledgers,
    log,
    ownership,
    positions,
    receiving,
    redelivery,
    replay,
    sending,
)
from txbus.conformance.clock import LeapingClock
from txbus.conformance.harness import Harness, NotPromised, PromiseBroken, Report, Result, Status
from txbus.conformance.stage import Member, Stage
from txbus.conformance.stores import StoreHarness, run_store, store_cases
from txbus.conformance.suite import BoundCase, Case, case, cases, run

__all__ = [
    "BoundCase",
    "Case",
    "Harness",
    "LeapingClock",
    "Member",
    "NotPromised",
    "PromiseBroken",
    "Report",
    "Result",
    "Stage",
    "Status",
    "StoreHarness",
    "case",
    "cases",
    "run",
    "run_store",
    "store_cases",
]
