"""The conformance suite: a backend or a store proves itself with one call.

::

    from txbus.conformance import PluginHarness, run

    report = run(PluginHarness(plugin, BackendURL("mybus", "localhost:7001"), leaping=False))
    print(report)
    report.raise_for_failures()

Or one test for each case: ``@pytest.mark.parametrize("case", cases(harness), ids=lambda c: c.name)``.
A broker that needs more (cutting connections, longer leases) gets a `Harness` of its own.
What a backend declares must hold; what it does not declare must be refused with CapabilityMissing.
"""

from txbus.conformance import (  # noqa: F401 - importing a kit registers its cases
    _admin,
    _brokertransactions,
    _halfmessages,
    _inboxes,
    _ledgers,
    _log,
    _ownership,
    _positions,
    _receiving,
    _redelivery,
    _replay,
    _sending,
)
from txbus.conformance._clock import LeapingClock
from txbus.conformance._harness import Harness, NotPromised, PromiseBroken, Report, Result, Status
from txbus.conformance._local import PluginHarness
from txbus.conformance._stage import Member, Stage
from txbus.conformance._stores import (
    BoundStoreCase,
    StoreCase,
    StoreHarness,
    StoreStage,
    run_store,
    store_case,
    store_cases,
)
from txbus.conformance._suite import BoundCase, Case, case, cases, run

__all__ = [
    "BoundCase",
    "BoundStoreCase",
    "Case",
    "Harness",
    "LeapingClock",
    "Member",
    "NotPromised",
    "PluginHarness",
    "PromiseBroken",
    "Report",
    "Result",
    "Stage",
    "Status",
    "StoreCase",
    "StoreHarness",
    "StoreStage",
    "case",
    "cases",
    "run",
    "run_store",
    "store_case",
    "store_cases",
]
