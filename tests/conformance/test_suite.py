"""The suite itself: how much it asks, and what it says."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest

from tests.conformance.test_custom_backend import DirHarness
from txbus.conformance import BoundCase, PromiseBroken, Report, Result, Status, case, cases, run
from txbus.spi import Backend, Capabilities, Capability, Log, TopicKind


def all_cases() -> tuple[BoundCase, ...]:
    return cases(DirHarness(tempfile.gettempdir()))


def test_every_capability_has_at_least_five_cases() -> None:
    """At least 60 named cases, five or more for each capability of the SPI."""
    count = Counter(bound.case.capability for bound in all_cases())
    assert count.total() >= 60
    assert {one: count[one] for one in Capability if count[one] < 5} == {}


def test_every_case_says_a_sentence_of_its_own() -> None:
    """No two cases state the same fact, and none ends with a full stop."""
    said = [bound.case.property for bound in all_cases()]
    assert len(set(said)) == len(said)
    assert [one for one in said if one.endswith(".") or not one] == []


def test_a_report_names_what_failed_and_why() -> None:
    """A report prints every case, counts them, and raises with name and reason."""
    kept = Result("sending.kept", None, "it is kept", Status.PASSED)
    broken = Result("sending.broken", Capability.LOG, "it is broken", Status.FAILED, "because of this")
    report = Report((kept, broken))
    assert "2 cases: 1 passed, 1 failed, 0 refused, 0 not promised" in str(report)
    assert report.failed == {"sending.broken"}
    with pytest.raises(PromiseBroken, match=r"(?s)1 of 2 .*sending\.broken: it is broken.*because of this"):
        report.raise_for_failures()
    Report((kept,)).raise_for_failures()


class Unreachable(DirHarness):
    """A broker that no client reaches."""

    def backend(self) -> Backend:
        raise ConnectionError("nobody there")


def test_an_error_of_the_backend_is_a_failure_with_its_type(tmp_path: Path) -> None:
    """Any exception fails the case, with type and text; the run goes on to the next one."""
    report = run(Unreachable(str(tmp_path)), only=lambda one: one.name.startswith("log."))
    assert len(report.results) > 5
    assert {result.status for result in report.results} == {Status.FAILED}
    assert {result.reason for result in report.results} == {"ConnectionError: nobody there"}


def test_a_bound_case_raises_with_its_reason(tmp_path: Path) -> None:
    """Calling a case raises PromiseBroken when it fails, so that a test needs nothing else."""
    with pytest.raises(PromiseBroken, match="nobody there"):
        cases(Unreachable(str(tmp_path)))[0]()


class RefusesWrongly(DirHarness):
    """Its log is undeclared, and asking for it is another error than CapabilityMissing."""

    def backend(self) -> Backend:
        backend = super().backend()
        backend.log = _no_such_method  # type: ignore[method-assign]
        return backend


def _no_such_method(topic: str) -> Log:
    raise KeyError(topic)


def test_an_undeclared_call_must_be_refused_with_capability_missing(tmp_path: Path) -> None:
    """KeyError from an undeclared call is a failure; CapabilityMissing is the one right answer."""

    def log_cases(one: object) -> bool:
        return getattr(one, "capability", None) is Capability.LOG

    assert {one.status for one in run(DirHarness(str(tmp_path)), only=log_cases).results} == {Status.REFUSED}
    wrong = run(RefusesWrongly(str(tmp_path)), only=log_cases)
    assert {one.status for one in wrong.results} == {Status.FAILED}


def test_two_cases_cannot_share_a_name() -> None:
    """The name is what a report, a pytest id and an expectation go by."""

    def empty_payload(stage: object) -> None: ...

    empty_payload.__module__ = "txbus.conformance._sending"
    with pytest.raises(AssertionError, match=r"two cases are called sending\.empty_payload"):
        case(None, property="never registered")(empty_payload)


class Silent(DirHarness):
    """Declares nothing at all."""

    def backend(self) -> Backend:
        backend = super().backend()
        limits = backend.capabilities().limits

        def nothing(kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
            return Capabilities(frozenset(), limits)

        backend.capabilities = nothing  # type: ignore[method-assign]
        return backend


def test_what_no_call_asks_for_is_not_promised(tmp_path: Path) -> None:
    """An undeclared quality of a call that everybody has is neither passed nor failed."""
    report = run(Silent(str(tmp_path)), only=lambda one: one.capability is Capability.ORDER_BY_KEY)
    assert {result.status for result in report.results} == {Status.NOT_PROMISED}
