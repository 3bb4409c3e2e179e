"""Relations between settings: each has both its sides, and each is refused by itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txbus._retry import Retry
from txbus.errors import SettingsError
from txbus.settings import Settings, check_relations, inbox_horizon_s

DAY_S = 86_400.0


def test_the_defaults_agree_with_one_another() -> None:
    """A bus with default settings and default retries opens."""
    check_relations(Settings(), [Retry()])
    check_relations(Settings(), [])


BROKEN: list[tuple[dict[str, Any], list[str]]] = [
    ({"lease_s": 2, "poll_s": 1}, ["2 x poll_s = 2", "lease_s = 2"]),
    ({"half_timeout_s": 30}, ["half_timeout_s = 30", "local_timeout_s = 30"]),
    ({"lock_wait_s": 31}, ["lock_wait_s = 31", "local_timeout_s = 30"]),
    ({"hint_linger_s": 2}, ["hint_linger_s = 2", "check_after_s = 2"]),
    ({"held_key_max": 20_000}, ["held_key_max = 20,000", "window_halves_max = 20,000"]),
    ({"stop_timeout_s": 0.5}, ["poll_s = 0.5", "stop_timeout_s = 0.5"]),
    ({"ledger_retention_s": 200}, ["(local_timeout_s", "= 109", "0.5 x ledger_retention_s = 100"]),
    ({"check_lock_wait_s": 1.5}, ["check_lock_wait_s = 1.5", "check_budget_s = 1"]),
    ({"send_timeout_s": 31}, ["2 x send_timeout_s = 62", "broker_transaction_timeout_s = 60"]),
    ({"step_bytes_max": 2**27}, ["step_bytes_max = 134,217,728", "payload_budget_bytes = 67,108,864"]),
    ({"max_in_flight": 3}, ["workers = 4", "max_in_flight = 3"]),
    ({"inbox_horizon_s": DAY_S}, ["= 604,810", "inbox_horizon_s = 86,400"]),
]


@pytest.mark.parametrize(("changed", "texts"), BROKEN, ids=[next(iter(c)) for c, _ in BROKEN])
def test_a_broken_relation_shows_both_names_and_figures(changed: dict[str, Any], texts: list[str]) -> None:
    """One setting too far: the message names both settings with their figures, and nothing else."""
    with pytest.raises(SettingsError) as raised:
        check_relations(Settings(**changed), [])
    for text in texts:
        assert text in str(raised.value)
    assert ";" not in str(raised.value), "a second relation was reported"


def test_a_local_timeout_beyond_half_the_ledger_s_retention_is_refused() -> None:
    """Rule 10: a local transaction must not outlive the time in which a missing row means ROLLED_BACK."""
    with pytest.raises(SettingsError, match="local_timeout_s"):
        check_relations(Settings(local_timeout_s=3_600, ledger_retention_s=7_200), [])


def test_a_retry_schedule_longer_than_the_topic_keeps_its_messages_is_refused() -> None:
    """The last attempt of a message must come while the broker still has it."""
    retry = Retry(max_attempts=10, backoff_s=(3_600.0, 3_600.0), jitter=0.0)
    with pytest.raises(SettingsError, match=r"lease_s = 32,410 must be less than topic_retention_s = 32,000"):
        check_relations(Settings(topic_retention_s=32_000), [Retry(), retry])


def test_all_broken_relations_are_reported_at_once() -> None:
    """Two contradictions need one run to be found."""
    with pytest.raises(SettingsError, match="half_timeout_s.*; .*workers"):
        check_relations(Settings(half_timeout_s=40, max_in_flight=1), [])


@given(
    lease_s=st.floats(2, 3_600),
    reach_s=st.floats(1, 1e7),
    retention_s=st.floats(1, 1e7),
    attempts=st.integers(1, 50),
    cap_s=st.floats(1, 1e4),
)
def test_the_computed_inbox_horizon_covers_every_way_a_message_comes_again(
    lease_s: float, reach_s: float, retention_s: float, attempts: int, cap_s: float
) -> None:
    """It is more than retry schedule + lease + replay reach, and than what the topic retains."""
    retry = Retry(max_attempts=attempts, backoff_s=(1.0, cap_s))
    settings = Settings(lease_s=lease_s, replay_reach_s=reach_s, topic_retention_s=retention_s)
    horizon_s = inbox_horizon_s(settings, [retry])
    assert horizon_s > retry.horizon_s() + lease_s + reach_s
    assert horizon_s > retry.horizon_s() + lease_s + retention_s


def test_a_horizon_that_is_given_is_taken_as_it_is() -> None:
    """The setting replaces the computed value."""
    assert inbox_horizon_s(Settings(inbox_horizon_s=30 * DAY_S), [Retry()]) == 30 * DAY_S
