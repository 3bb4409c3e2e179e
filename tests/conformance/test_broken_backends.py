"""Deliberately broken backends fail exactly the cases meant for them, and no others.

What each one does wrong is said in its docstring in `tests/conformance/broken/`. They are made of the embedded broker
in memory, and of dirbus for what that one does not declare.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.breaking import BreakingHarness, Defect, Sound, dirbus, memory
from tests.conformance.broken import receiving, sending, transactions
from tests.conformance.through import Parts, ThroughBackend
from txbus.conformance import run

DEFECTS = {
    "loses_what_it_sent_when_killed": Defect(
        {
            "redelivery.delayed_survives_its_sender",
            "sending.awaited_append_survives_the_death_of_the_sender",
            "sending.batch_survives_whole",
            "sending.survives_the_death_of_the_sender",
        },
        client=sending.LosesWhatItSentWhenKilled,
        parts=sending.BEHIND,
    ),
    "sends_in_parts": Defect(
        {
            "sending.no_part_of_a_batch_is_readable",
            "sending.oversized_message_refuses_the_batch",
            "sending.unknown_topic_refuses_the_batch",
        },
        parts=Parts(sender=sending.SendsInParts),
    ),
    "drops_delay": Defect(
        {
            "redelivery.delay_above_the_limit",
            "redelivery.delayed_come_by_time",
            "redelivery.delayed_comes_in_its_time",
            "redelivery.delayed_holds_up_nobody",
            "redelivery.delayed_is_not_passed_over",
        },
        parts=Parts(sender=sending.DropsDelay),
    ),
    "sends_latin": Defect(
        {
            "log.records_are_read_as_sent",
            "sending.headers_survive",
        },
        parts=Parts(sender=sending.SendsLatin),
    ),
    "sends_when_asked": Defect(
        {
            "sending.unawaited_append_is_sent",
        },
        parts=Parts(sender=sending.SendsWhenAsked),
    ),
    "reorders_keys": Defect(
        {
            "sending.key_has_one_partition_in_transactions_too",
            "sending.order_across_two_senders",
            "sending.order_over_many_sends",
            "sending.order_when_they_come_again",
            "sending.order_within_one_send",
        },
        parts=Parts(receiver=receiving.ReordersKeys),
    ),
    "forgets_positions": Defect(
        {
            "admin.status_of_a_group",
            "log.reading_moves_no_group",
            "ownership.former_owner_is_fenced",
            "ownership.timely_ack_counts",
            "receiving.ack_is_idempotent",
            "receiving.acknowledged_does_not_come_again",
            "receiving.committed_follows_the_acks",
            "receiving.groups_are_independent",
            "receiving.pause_keeps_ownership",
            "receiving.position_passes_a_closed_gap",
            "receiving.position_resumes_after_close",
            "receiving.start_yields_to_the_position",
            "receiving.unfinished_comes_again_after_a_crash",
            "redelivery.delayed_is_not_passed_over",
            "redelivery.redelivered_and_acknowledged_is_gone",
            "redelivery.redelivery_goes_to_the_new_owner",
            "redelivery.redelivery_survives_a_crash",
            "replay.ack_after_seek_back",
            "replay.seek_forgets_the_unfinished",
            "replay.seek_is_not_durable",
            "sending.order_when_they_come_again",
        },
        parts=Parts(receiver=receiving.ForgetsPositions),
    ),
    "acks_when_closed": Defect(
        {
            "admin.status_of_a_group",
            "ownership.former_owner_is_fenced",
            "ownership.moved_is_handed_over",
            "ownership.timely_ack_counts",
            "receiving.committed_follows_the_acks",
            "receiving.unfinished_comes_again_after_a_crash",
            "redelivery.redelivery_survives_a_crash",
            "replay.seek_is_not_durable",
        },
        parts=Parts(receiver=receiving.AcksWhenClosed),
    ),
    "passes_the_unfinished": Defect(
        {
            "receiving.position_stops_at_the_unfinished",
        },
        parts=Parts(receiver=receiving.PassesTheUnfinished),
    ),
    "ignores_maximum": Defect(
        {
            "receiving.batches_are_limited",
        },
        parts=Parts(receiver=receiving.IgnoresMaximum),
    ),
    "cannot_be_woken": Defect(
        {
            "receiving.wake_ends_the_wait",
        },
        parts=Parts(receiver=receiving.CannotBeWoken),
    ),
    "ignores_pause": Defect(
        {
            "receiving.pause_holds_back",
        },
        parts=Parts(receiver=receiving.IgnoresPause),
    ),
    "never_ends_leases": Defect(
        {
            "ownership.former_owner_is_fenced",
            "ownership.late_ack_does_nothing",
            "ownership.loss_is_reported",
            "ownership.takeover_after_a_crash",
            "ownership.takeover_after_the_lease",
            "ownership.timely_ack_counts",
            "positions.consume_transform_produce",
            "positions.lost_before_commit_is_fenced",
            "positions.lost_partition_is_fenced",
            "positions.outdated_membership_is_fenced",
            "receiving.unfinished_comes_again_after_a_crash",
            "redelivery.redelivery_by_a_former_owner",
            "redelivery.redelivery_survives_a_crash",
        },
        client=receiving.NeverEndsLeases,
    ),
    "does_not_fence": Defect(
        {
            "ownership.former_owner_is_fenced",
            "ownership.moved_is_handed_over",
        },
        parts=Parts(receiver=receiving.DoesNotFence),
    ),
    "accepts_former_owners": Defect(
        {
            "ownership.former_owner_is_fenced",
            "ownership.late_ack_does_nothing",
            "ownership.moved_is_handed_over",
        },
        parts=Parts(receiver=receiving.AcceptsFormerOwners),
    ),
    "hides_loss": Defect(
        {
            "ownership.changes_add_up",
            "ownership.four_members_on_sixteen_partitions",
            "ownership.joining_gets_a_part",
            "ownership.kept_is_not_interrupted",
            "ownership.leaving_frees_at_once",
            "ownership.loss_is_reported",
            "ownership.moved_is_handed_over",
            "ownership.polling_keeps_the_lease",
            "ownership.status_names_the_owner",
            "ownership.takeover_after_a_crash",
            "ownership.two_members_share",
            "ownership.within_the_lease_nobody_takes_over",
            "positions.newest_snapshot_commits_what_was_kept",
            "positions.outdated_membership_is_fenced",
        },
        parts=Parts(receiver=receiving.HidesLoss),
    ),
    "gains_silently": Defect(
        {
            "ownership.changes_add_up",
            "ownership.gain_comes_before_records",
        },
        parts=Parts(receiver=receiving.GainsSilently),
    ),
    "redelivers_early": Defect(
        {
            "redelivery.redelivery_holds_up_nobody",
            "redelivery.redelivery_survives_a_crash",
            "redelivery.redelivery_waits",
        },
        parts=Parts(receiver=receiving.RedeliversEarly),
    ),
    "redelivers_in_memory": Defect(
        {
            "redelivery.redelivered_and_acknowledged_is_gone",
            "redelivery.redelivery_at_once",
            "redelivery.redelivery_comes_after_the_delay",
            "redelivery.redelivery_goes_to_the_new_owner",
            "redelivery.redelivery_is_not_passed_over",
            "redelivery.redelivery_survives_a_crash",
        },
        parts=Parts(receiver=receiving.RedeliversInMemory),
    ),
    "forgets_attempts": Defect(
        {
            "redelivery.redelivery_comes_after_the_delay",
            "redelivery.redelivery_goes_to_the_new_owner",
        },
        parts=Parts(receiver=receiving.ForgetsAttempts),
    ),
    "shows_aborted": Defect(
        {
            "brokertransactions.abort_is_invisible",
            "brokertransactions.transactions_follow_each_other",
            "log.aborted_is_not_readable",
            "positions.abort_does_not_move_the_position",
            "positions.messages_and_positions_are_one",
        },
        parts=Parts(transaction=transactions.ShowsAborted),
    ),
    "shows_open": Defect(
        {
            "brokertransactions.abandon_leaves_nothing",
            "brokertransactions.abort_is_invisible",
            "brokertransactions.close_aborts",
            "brokertransactions.fenced_at_commit",
            "brokertransactions.fenced_while_sending",
            "brokertransactions.killed_before_commit",
            "brokertransactions.newer_owner_works",
            "brokertransactions.open_is_invisible",
            "brokertransactions.oversized_message_aborts_all",
            "brokertransactions.silence_ends_it",
            "brokertransactions.takeover_ends_the_open_one",
            "brokertransactions.transactions_follow_each_other",
            "brokertransactions.unknown_topic_aborts_all",
            "log.aborted_is_not_readable",
            "log.open_is_not_readable",
            "positions.consume_transform_produce",
            "positions.lost_before_commit_is_fenced",
            "positions.lost_partition_is_fenced",
            "positions.messages_and_positions_are_one",
            "positions.outdated_membership_is_fenced",
        },
        parts=Parts(transaction=transactions.ShowsOpen),
    ),
    "fences_nobody": Defect(
        {
            "brokertransactions.fenced_at_begin",
            "brokertransactions.fenced_at_commit",
            "brokertransactions.fenced_at_empty_commit",
            "brokertransactions.fenced_while_sending",
        },
        client=transactions.FencesNobody,
    ),
    "loses_notes": Defect(
        {
            "positions.note_is_read_back",
        },
        parts=Parts(transaction=transactions.LosesNotes),
    ),
    "positions_at_once": Defect(
        {
            "positions.abort_does_not_move_the_position",
            "positions.consume_transform_produce",
            "positions.lost_before_commit_is_fenced",
        },
        parts=Parts(transaction=transactions.PositionsAtOnce),
    ),
    "accepts_outdated": Defect(
        {
            "positions.lost_partition_is_fenced",
            "positions.outdated_membership_is_fenced",
        },
        parts=Parts(transaction=transactions.AcceptsOutdated, receiver=transactions.RemembersMemberships),
    ),
    "ends_too_early": Defect(
        {
            "log.end_includes_what_was_committed",
            "log.end_includes_what_was_sent",
            "log.read_at_the_end",
            "log.truncate_everything",
        },
        parts=Parts(log=transactions.EndsTooEarly),
    ),
    "ends_too_late": Defect(
        {
            "log.empty_log",
            "log.open_is_not_readable",
            "log.read_below_the_truncation",
            "log.reading_reaches_the_end",
            "log.truncate_everything",
        },
        parts=Parts(log=transactions.EndsTooLate),
    ),
    "truncates_too_much": Defect(
        {
            "log.group_starts_behind_the_truncation",
            "log.read_below_the_truncation",
            "log.truncate_deletes_below",
            "log.truncate_is_idempotent",
            "replay.seek_into_a_gap",
        },
        parts=Parts(log=transactions.TruncatesTooMuch),
    ),
    "truncates_nothing": Defect(
        {
            "log.group_starts_behind_the_truncation",
            "log.read_below_the_truncation",
            "log.truncate_deletes_below",
            "log.truncate_everything",
            "log.truncate_is_idempotent",
            "replay.seek_into_a_gap",
        },
        parts=Parts(log=transactions.TruncatesNothing),
    ),
    "declares_tags": Defect(
        {
            "receiving.filtered_out_is_finished",
            "receiving.filters_are_per_group",
            "receiving.one_tag",
            "receiving.several_tags",
        },
        client=sending.DeclaresTags,
    ),
    "hides_replay_by_time": Defect(
        {
            "replay.seek_after_everything",
            "replay.seek_back_in_time",
            "replay.seek_before_everything",
            "replay.seek_between",
            "replay.seek_is_inclusive",
            "replay.start_at_a_time",
            "replay.stored_times_grow",
        },
        client=sending.HidesReplayByTime,
    ),
    "filters_nothing": Defect(
        {
            "receiving.filtered_out_is_finished",
            "receiving.filters_are_per_group",
            "receiving.one_tag",
            "receiving.several_tags",
        },
        client=receiving.FiltersNothing,
        sound=dirbus,
    ),
    "forgets_attempts_counted": Defect(
        {
            "redelivery.close_without_ack_counts",
            "redelivery.counted_for_each_group",
            "redelivery.counted_for_each_message",
            "redelivery.crashes_count",
            "redelivery.lost_lease_counts",
            "redelivery.redeliveries_and_crashes_add_up",
            "redelivery.redelivery_comes_after_the_delay",
            "redelivery.redelivery_goes_to_the_new_owner",
        },
        parts=Parts(receiver=receiving.ForgetsAttempts),
        sound=dirbus,
    ),
    "shows_halves": Defect(
        {
            "halfmessages.answer_committed",
            "halfmessages.answer_is_idempotent",
            "halfmessages.answer_rolled_back",
            "halfmessages.answer_unknown",
            "halfmessages.halves_are_independent",
            "halfmessages.other_groups_are_not_asked",
            "halfmessages.prepared_is_invisible",
            "halfmessages.rolled_back_stays_invisible",
            "halfmessages.several_are_asked_about",
            "halfmessages.unfinished_is_asked_about",
        },
        parts=Parts(halves=transactions.ShowsHalves),
        sound=dirbus,
    ),
    "never_asks": Defect(
        {
            "halfmessages.answer_committed",
            "halfmessages.answer_is_idempotent",
            "halfmessages.answer_rolled_back",
            "halfmessages.answer_unknown",
            "halfmessages.other_groups_are_not_asked",
            "halfmessages.several_are_asked_about",
            "halfmessages.unfinished_is_asked_about",
        },
        parts=Parts(halves=transactions.NeverAsks),
        sound=dirbus,
    ),
    "takes_unknown_for_no": Defect(
        {
            "halfmessages.answer_unknown",
        },
        parts=Parts(halves=transactions.TakesUnknownForNo),
        sound=dirbus,
    ),
    "ignores_partition": Defect(
        {
            "admin.status_of_a_group",
            "log.partitions_are_separate",
            "log.truncate_one_partition",
            "ownership.moved_is_handed_over",
            "ownership.polling_keeps_the_lease",
            "ownership.within_the_lease_nobody_takes_over",
            "positions.several_positions",
            "receiving.pause_holds_back",
            "receiving.several_topics",
            "replay.manual_waits_for_seek",
            "replay.seek_one_partition",
            "sending.appends_keep_their_order",
        },
        parts=Parts(sender=sending.IgnoresPartition),
    ),
    "makes_topics": Defect(
        {
            "sending.unknown_topic",
            "sending.unknown_topic_refuses_the_batch",
        },
        parts=Parts(sender=sending.MakesTopics),
    ),
    "ignores_start": Defect(
        {
            "receiving.start_latest",
            "replay.start_at_a_time",
        },
        client=receiving.IgnoresStart,
    ),
    "ignores_seek": Defect(
        {
            "replay.ack_after_seek_back",
            "replay.seek_back",
            "replay.seek_below_the_start",
            "replay.seek_forgets_the_unfinished",
            "replay.seek_forward",
            "replay.seek_into_a_gap",
            "replay.seek_is_not_durable",
            "replay.seek_one_partition",
        },
        parts=Parts(receiver=receiving.IgnoresSeek),
    ),
    "cuts_payloads": Defect(
        {
            "sending.oversized_message_refuses_the_batch",
            "sending.payload_above_the_limit",
            "sending.payload_of_the_limit",
        },
        parts=Parts(sender=sending.CutsPayloads),
    ),
    "drops_the_refused": Defect(
        {
            "redelivery.delay_above_the_limit",
            "sending.headers_above_the_limit",
            "sending.oversized_message_refuses_the_batch",
            "sending.payload_above_the_limit",
        },
        parts=Parts(sender=sending.DropsTheRefused),
    ),
    "guesses_receipts": Defect(
        {
            "sending.receipts_name_the_position",
        },
        parts=Parts(sender=sending.GuessesReceipts),
    ),
    "wanders_keys": Defect(
        {
            "log.records_are_read_as_sent",
            "sending.key_and_payload_survive",
            "sending.key_has_one_partition",
            "sending.key_has_one_partition_in_transactions_too",
            "sending.order_across_two_senders",
            "sending.order_over_many_sends",
            "sending.order_within_one_send",
        },
        parts=Parts(sender=sending.WandersKeys),
    ),
    "verifies_nothing": Defect(
        {
            "admin.verify_counts_partitions",
            "admin.verify_looks_at_the_retention",
            "admin.verify_of_a_missing_topic",
        },
        parts=Parts(admin=sending.VerifiesNothing),
    ),
    "mixes_groups": Defect(
        {
            "admin.status_of_a_group",
            "ownership.groups_do_not_share",
            "ownership.status_names_the_owner",
            "positions.commit_moves_the_position",
            "positions.consume_transform_produce",
            "positions.messages_and_positions_are_one",
            "positions.newest_snapshot_commits_what_was_kept",
            "positions.note_is_read_back",
            "positions.several_positions",
            "receiving.groups_are_independent",
        },
        client=receiving.MixesGroups,
    ),
    "shares_ids": Defect(
        {
            "brokertransactions.ids_are_independent",
        },
        client=transactions.SharesIds,
    ),
    "loses_commits": Defect(
        {
            "brokertransactions.commit_makes_visible",
            "brokertransactions.empty_commit",
            "brokertransactions.fenced_at_commit",
            "brokertransactions.fenced_at_empty_commit",
            "brokertransactions.fenced_while_sending",
            "brokertransactions.ids_are_independent",
            "brokertransactions.killed_after_commit",
            "brokertransactions.killed_before_commit",
            "brokertransactions.named_partition",
            "brokertransactions.newer_owner_works",
            "brokertransactions.open_is_invisible",
            "brokertransactions.oversized_message_aborts_all",
            "brokertransactions.several_topics",
            "brokertransactions.silence_ends_it",
            "brokertransactions.transactions_follow_each_other",
            "brokertransactions.unknown_topic_aborts_all",
            "log.end_includes_what_was_committed",
            "log.open_is_not_readable",
            "positions.commit_moves_the_position",
            "positions.consume_transform_produce",
            "positions.lost_before_commit_is_fenced",
            "positions.lost_partition_is_fenced",
            "positions.messages_and_positions_are_one",
            "positions.newest_snapshot_commits_what_was_kept",
            "positions.note_is_read_back",
            "positions.outdated_membership_is_fenced",
            "positions.several_positions",
            "sending.key_has_one_partition_in_transactions_too",
        },
        parts=Parts(transaction=transactions.LosesCommits),
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_exactly_the_cases_meant_for_it_fail(name: str, tmp_path: Path) -> None:
    """A broken backend fails the cases that name its defect, and no others."""
    defect = DEFECTS[name]
    report = run(BreakingHarness(defect.sound(str(tmp_path)), defect.client, defect.parts))
    assert report.failed == defect.noticed_by, "\n".join(map(str, report.failures))


@pytest.mark.parametrize("sound", [memory, dirbus], ids=["memory", "dirbus"])
def test_without_a_defect_nothing_fails(sound: Sound, tmp_path: Path) -> None:
    """Negative control: seen through sound parts, the sound backends pass."""
    report = run(BreakingHarness(sound(str(tmp_path)), ThroughBackend, Parts()))
    assert report.failed == frozenset(), "\n".join(map(str, report.failures))
