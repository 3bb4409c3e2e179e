"""The text report of a failing run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.simulation import report_story as story
from txbus.spi import Outcome
from txbus_sim import history as h
from txbus_sim._lines import cells
from txbus_sim._timeline import focus, timeline
from txbus_sim._words import heading
from txbus_sim.faults import Fault
from txbus_sim.history import History, Record
from txbus_sim.report import Told, render_failure
from txbus_sim.result import RunResult, Verdict, VerdictKind
from txbus_sim.schedule import Address, Deviation, Schedule
from txbus_sim.shrink import Necessity

GOLDEN = Path(__file__).with_name("report_lost.txt")
PART = (
    "BROKEN no-loss",
    "The shortest schedule",
    "Each deviation is needed",
    "Timeline",
    "Log of orders",
    "Details",
    "This verdict rests on",
    "To pin it, commit",
    "To run it again",
)


def lost() -> tuple[RunResult, Told]:
    """The run that loses a message, with the proof that its one fault is needed."""
    result = story.run(story.LOST)
    (deviation,) = result.schedule
    without = story.run()
    assert without.verdict is None
    return result, Told((Necessity(deviation, Schedule(), None),), Path("tests/schedules/lost.sched"))


def failed(*records: Record, verdict: Verdict | None = None) -> RunResult:
    """A failing run of a history written by hand."""
    history = History()
    for record in records:
        history.add(record)
    return RunResult(Schedule(), verdict or Verdict(VerdictKind.PROPERTY, "no-loss", "it is lost"), history)


def shown(*records: Record, verdict: Verdict | None = None, width: int = 160) -> str:
    return render_failure(failed(*records, verdict=verdict), width=width)


def test_same_run_gives_the_same_text_to_the_letter() -> None:
    """The whole report is the one on file. After a change that is meant: write it anew with
    ``python -m tests.simulation.report_story``, and read the difference."""
    assert story.report() == GOLDEN.read_text("utf-8")


def test_parts_stand_in_their_order() -> None:
    """First what failed, then how to get there, last what to do with it."""
    result, told = lost()
    assert result.verdict is not None
    assumed = replace(result.verdict, assumed=("rocketmq overdue: a delivery timestamp that is over means at once",))
    text = render_failure(replace(result, verdict=assumed), told)
    places = [text.index(part) for part in PART]
    assert places == sorted(places)


@pytest.mark.parametrize("width", [60, 80, 100, 160, 220])
def test_no_line_is_wider_than_asked(width: int) -> None:
    """With lanes or without them, every line fits (what is copied, source and schedules, is short here)."""
    result, told = lost()
    assert max(map(cells, render_failure(result, told, width=width).splitlines())) <= width


def test_wide_characters_count_twice() -> None:
    """A log line in Chinese is broken where a terminal is full."""
    text = shown(h.ProcessStarted(0, "p"), h.Logged(0, "p", "INFO", "shop", "订单" * 40), width=60)
    assert max(map(cells, text.splitlines())) <= 60
    assert text.count("订单") >= 38


def test_own_assertion_is_shown_with_its_source(tmp_path: Path) -> None:
    """The user's assertion comes first: the file and line, and the whole statement there."""
    file = tmp_path / "test_shop.py"
    file.write_text("def check():\n    x = 1\n    assert (\n        x == 2\n    ), 'books'\n")
    verdict = Verdict(VerdictKind.ASSERTION, "books", "books: 1 is not 2", site=f"{file}:4")
    text = shown(verdict=verdict)
    assert text.splitlines()[:6] == [
        "ASSERTION: books: 1 is not 2",
        "",
        f"  {file}:4",
        "       3 | assert (",
        "  >    4 |     x == 2",
        "       5 | ), 'books'",
    ]


def test_source_that_is_gone_leaves_its_place() -> None:
    """A file that cannot be read is named all the same."""
    verdict = Verdict(VerdictKind.ASSERTION, "books", "books", site="/nowhere/shop.py:12")
    assert "  /nowhere/shop.py:12\n" in shown(verdict=verdict)


def test_stuck_says_who_waits_for_what(tmp_path: Path) -> None:
    """Each waiting thread has its line, and under it the source line where it stands."""
    file = tmp_path / "shop.py"
    file.write_text("import threading\nwith stock_lock:\n    pass\n")
    detail = f"orders:main waits for Lock stock, held by orders:worker at {file}:2"
    verdict = Verdict(VerdictKind.STUCK, "deadlock", "2 threads wait for one another for ever", (detail,))
    lines = shown(verdict=verdict).splitlines()
    place = lines.index("  orders:main waits for Lock stock, held by orders:worker")
    assert lines[place + 1] == f"      at {file}:2: with stock_lock:"
    assert lines.index("Who waits for what") < place
    assert "Details" not in lines


def test_crash_tells_what_was_durable_and_what_was_lost() -> None:
    """At a crash: what this incarnation had committed, and what died with it, from the history alone."""
    text = shown(
        h.ProcessStarted(0, "orders"),
        h.LocalCommitted(1, "orders", "shop", 1, {"orders": 2, "txbus_ledger": 1}),
        h.Stored(2, "orders", "txbus.half.shop", 0, 0, "m1", None, "tx-1"),
        h.Delivered(3, "orders", "g", "replies", 0, 5, "r1", 1),
        h.Delivered(3, "orders", "g", "replies", 0, 6, "r2", 1),
        h.PositionCommitted(4, "orders", "g", "replies", 0, 6),
        h.FaultHappened(5, Address("orders", "sql.commit:shop", 2), Fault.CRASH_BEFORE),
        h.ProcessEnded(5, "orders", "crashed"),
        h.LocalRolledBack(5, "orders", "shop", 1, "crash"),
    )
    words = " ".join(text.replace("│", " ").split())
    assert "durable: 2 rows of shop.orders; 1 row of shop.txbus_ledger 0.0000 s" in words
    lost = (
        "LOST: its memory; what it had not committed to shop; the end of broker transaction tx-1 with "
        "1 record in txbus.half.shop; the handling of r2, to be delivered again"
    )
    assert lost in words
    assert "LOST what orders had not committed (crash)" in words


def test_what_a_broker_transaction_committed_is_not_lost() -> None:
    """A producer's records count as durable once its broker transaction was committed."""
    text = shown(
        h.ProcessStarted(0, "relay"),
        h.Stored(1, "relay", "orders", 0, 0, "m1", None, "tx-1"),
        h.BrokerTransactionEnded(2, "tx-1", 0, True, "relay"),
        h.ProcessEnded(3, "relay", "crashed"),
    )
    assert "durable: 1 record in orders" in text
    assert "the end of broker transaction" not in text


def test_record_of_every_kind_has_its_words() -> None:
    """Whatever a history can hold is told in its column, or left out on purpose (reads, logs)."""
    text = shown(
        h.ProcessStarted(0, "p"),
        h.Intended(1, "p", "shop", "t1", "orders", "m1", None),
        h.LocalCommitted(2, "p", "shop", 1, {}, answered=False),
        h.LocalRolledBack(3, "p", "shop", 1, "dropped"),
        h.LocalRolledBack(3, "p", "shop", 1, "asked"),
        h.Stored(4, "p", "orders", 1, 7, "m1", "k", "tx-1"),
        h.Visible(5, "orders", 1, 7, "m1", "k", b"{}"),
        h.BrokerTransactionEnded(6, "tx-1", 3, False, "broker"),
        h.HalfStored(7, "p", "orders", "h1", "m2"),
        h.Checked(8, "p", "h1", "m2", 2, None),
        h.Checked(9, "p", "h1", "m2", 3, Outcome.COMMITTED),
        h.Settled(10, "h1", "m2", Outcome.ROLLED_BACK),
        h.Settled(11, "h2", "m3", Outcome.UNKNOWN, discarded=True),
        h.Read(12, "p", "orders", 1, 0, (7,), 8),
        h.Delivered(13, "p", "g", "orders", 1, 7, "m1", 2),
        h.Acknowledged(14, "p", "g", "orders", 1, 7, "m1"),
        h.PositionCommitted(15, "p", "g", "orders", 1, 8),
        h.ProcessEnded(16, "p", "raised", "ValueError: no"),
        h.ProcessStarted(17, "p+1"),
        h.ProcessEnded(18, "p+1", "over"),
    )
    assert rows_of(text) == [
        "● starts",
        "→ m1 for orders",
        "p committed nothing, the answer is lost",
        "LOST what p had not committed (dropped)",
        "orders/1@7 stored m1, not visible yet",
        "orders/1@7 visible m1",
        "tx-1 ABORTED by broker",
        "half m2 for orders stored",
        "check 2 of m2: no answer",
        "check 3 of m2: COMMITTED",
        "half m2 settled ROLLED_BACK",
        "half m3 settled given up",
        "← m1 (orders/1@7, attempt 2)",
        "✓ m1 acknowledged",
        "g is at orders/1@8",
        "■ raised: ValueError: no",
        "● starts anew as p+1",
    ]


def rows_of(text: str) -> list[str]:
    """What the timeline of a report says, without times and lanes."""
    return [line[14:].replace("│", "").strip() for line in text.splitlines() if re.match(r" +[0-9.]+ s  ", line)]


def test_record_that_is_readable_at_once_has_one_row() -> None:
    """Stored and visible is one thing outside of a broker transaction, if the one follows the other."""
    stored, visible = h.Stored(1, "p", "orders", 0, 3, "m1", None), h.Visible(1, "orders", 0, 3, "m1", None, b"")
    point = h.Point(1, "p", "clock.sleep", 1, ())
    start = h.ProcessStarted(0, "p")
    assert rows_of(shown(start, stored, visible))[1:] == ["orders/0@3 stored m1, visible"]
    assert rows_of(shown(start, stored, point, visible))[1:] == ["orders/0@3 stored m1", "orders/0@3 visible m1"]
    other = h.Visible(1, "orders", 0, 2, "m0", None, b"")
    assert rows_of(shown(start, stored, other))[1:] == ["orders/0@3 stored m1", "orders/0@2 visible m0"]


def test_fence_of_a_relay_needs_no_rows() -> None:
    """What a process stores for nobody and takes back leaves no row; what the broker takes from it does,
    and so does a message that was taken back."""
    start = h.ProcessStarted(0, "p")
    fence = h.Stored(1, "p", "txbus.half.shop", 0, 0, "", None, "tx")
    message = h.Stored(1, "p", "orders", 0, 0, "m1", None, "tx")
    back = h.BrokerTransactionEnded(2, "tx", 0, False, "p")
    taken = h.BrokerTransactionEnded(2, "tx", 0, False, "broker")
    assert rows_of(shown(start, fence, back))[1:] == []
    assert rows_of(shown(start, fence, taken))[1:] == [
        "txbus.half.shop/0@0 stored a record, not visible yet",
        "tx ABORTED by broker",
    ]
    assert rows_of(shown(start, fence, message, back))[-2:] == [
        "orders/0@0 stored m1, not visible yet",
        "tx ABORTED by p",
    ]


def test_long_ids_are_cut_and_still_found() -> None:
    """Of a long hexadecimal id the beginning is shown; the row of the message accused stays all the same."""
    ids = [f"{number:08x}" + "0" * 24 for number in range(200)]
    records = [h.Visible(at, "orders", 0, at, one, None, b"") for at, one in enumerate(ids)]
    verdict = Verdict(VerdictKind.PROPERTY, "no-loss", f"message {ids[150]} is lost")
    text = render_failure(failed(h.ProcessStarted(0, "p"), *records, verdict=verdict), rows_max=3)
    assert "orders/0@150 visible 00000096…" in text


def test_process_that_raises_again_and_again_is_told_once() -> None:
    """In a long timeline the first and the last of equal lives stay."""
    records: list[Record] = []
    for number in range(50):
        key = f"p+{number}" if number else "p"
        records += [h.ProcessStarted(number, key), h.ProcessEnded(number, key, "raised", "ValueError: no")]
    records += [h.Visible(at, "orders", 0, at, f"m{at}", None, b"") for at in range(100)]
    text = render_failure(failed(*records), rows_max=15)
    assert [row for row in rows_of(text) if "starts" in row] == [
        "● starts",
        "● starts anew as p+1",
        "● starts anew as p+49",
    ]
    assert sum("raised" in row for row in rows_of(text)) == 2


def test_lane_is_drawn_while_its_process_lives() -> None:
    """Between a crash and the next start a process has no lane."""
    text = shown(
        h.ProcessStarted(0, "orders"),
        h.ProcessEnded(1, "orders", "crashed"),
        h.LocalCommitted(2, "other", "shop", 1, {"a": 1}),
        h.ProcessStarted(3, "orders+1"),
        h.LocalCommitted(4, "orders+1", "shop", 1, {"b": 1}),
    )
    rows = [line[14] for line in text.splitlines() if " committed " in line]
    assert rows == [" ", "│"]


def test_long_timeline_keeps_faults_and_the_message_accused() -> None:
    """What is cut is counted; the fault, the lives and the message that the verdict names stay."""
    records: list[Record] = [h.ProcessStarted(0, "p")]
    records += [h.Visible(at, "orders", 0, at, f"m{at}", None, b"") for at in range(1, 500)]
    records.insert(250, h.FaultHappened(250, Address("p", "broker.send:orders", 3), Fault.ANSWER_LOST))
    verdict = Verdict(VerdictKind.PROPERTY, "no-loss", "one message is lost: m77.")
    text = render_failure(failed(*records, verdict=verdict), rows_max=20)
    told = [line for line in text.splitlines() if re.match(r" +[0-9.]+ s  ", line)]
    assert len(told) == 20
    assert any("visible m77" in line for line in told)
    assert not any("visible m78" in line for line in told)
    assert any("✗ answer-lost" in line for line in told)
    assert [line.split()[-1] for line in told if "visible m2" in line] == [f"m{at}" for at in range(247, 253)]
    missing = sum(int(number) for number in re.findall(r"⋮  (\d+) other record", text))
    assert missing + len(told) == len(records)


def test_short_timeline_is_not_cut() -> None:
    """What fits is shown as it is."""
    whole = timeline(story.run(story.LOST).history)
    assert focus(whole, (), 200) is whole


def test_every_point_is_shown_when_asked() -> None:
    """With every point, no operation is left out."""
    history = story.run(story.LOST).history
    whole = timeline(history, every_point=True)
    assert sum(row.operations for row in whole.rows) == 0
    steps = [row for row in whole.rows if row.cell is not None and "#" in row.cell.text and "✗" not in row.cell.text]
    assert len(steps) == len(history.points())
    some = timeline(history)
    assert sum(row.operations for row in some.rows) + 3 == len(history.points())


def test_logs_keep_the_last_lines_and_count_the_others() -> None:
    """Of each process the last lines, with how many came before; lines of a traceback stay together."""
    records = [h.ProcessStarted(0, "p"), h.ProcessStarted(0, "p+1")]
    logged = [h.Logged(n, "p+1", "ERROR", "shop", f"line {n}\nat {n}") for n in range(30)]
    text = render_failure(failed(*records, *logged), logs_max=3)
    begin = text.index("Log of p")
    assert text[begin:].splitlines() == [
        "Log of p",
        "           ⋮  27 earlier lines",
        "    0.0000 s  p+1 ERROR shop: line 27",
        "                at 27",
        "    0.0000 s  p+1 ERROR shop: line 28",
        "                at 28",
        "    0.0000 s  p+1 ERROR shop: line 29",
        "                at 29",
    ]


def test_terminal_is_not_obeyed() -> None:
    """What a payload or a log holds cannot clear the screen, nor turn the reading direction."""
    evil = "\x1b[2J\r\u202egnp"
    text = shown(
        h.ProcessStarted(0, "p"),
        h.Logged(0, "p", "INFO", evil, evil),
        h.Visible(0, "orders", 0, 0, evil, None, b""),
        verdict=Verdict(VerdictKind.PROPERTY, "no-loss", evil, (evil,), "", (evil,)),
    )
    assert not set(text) & {"\x1b", "\r", "\u202e"}
    assert "\\x1b[2J" in text


def test_colours_only_where_asked() -> None:
    """Without colours the same text; with them nothing but codes is added."""
    result, told = lost()
    plain = render_failure(result, told)
    coloured = render_failure(result, told, colour=True)
    assert "\x1b[" not in plain
    assert "\x1b[1;31m" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_deviation_that_changes_the_failure_says_so() -> None:
    """Where the run without a deviation fails in another way, that way is named."""
    deviation = Deviation.parse("p/a#1 crash-before")
    other = Verdict(VerdictKind.STUCK, "stuck", "nothing can go on")
    need = Necessity(deviation, Schedule.of([Deviation.parse("p/b#1 fail")]), other)
    text = render_failure(failed(), Told((need,)))
    assert "without p/a#1 crash-before (1 other): fails in another way, STUCK: nothing can go on" in text


def test_failure_without_faults_has_no_schedule_to_keep() -> None:
    """An empty schedule is not worth a file; the command that was given is shown all the same."""
    told = Told(file=Path("x.sched"))
    assert "x.sched" not in render_failure(failed(), told)
    assert render_failure(failed(), replace(told, command="pytest -k shop")).endswith("again\n  pytest -k shop\n")


def test_run_that_passed_has_no_report() -> None:
    """A report of a run that passed is a mistake of the caller."""
    with pytest.raises(AssertionError, match="passed"):
        render_failure(story.run())


def test_reference_page_shows_the_report_as_it_is() -> None:
    """The example in the documentation is the report on file, and every kind of failure is explained there."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "sim-report.md").read_text("utf-8")
    assert f"```text\n{GOLDEN.read_text('utf-8')}```\n" in page
    for kind in VerdictKind:
        word = heading(Verdict(kind, "", "")).strip()
        assert f"| `{word}`" in page
