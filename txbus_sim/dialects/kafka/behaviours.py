"""What the Kafka model does, fact by fact, with where each is known from.

"facts" stands for measurements of this project on real Apache Kafka 4.3.1 brokers with
confluent-kafka 2.16.1, which later real-arm tests repeat; a path is a file of Apache Kafka 4.x or of
librdkafka 2.x.
"""

from __future__ import annotations

from typing import Final

from txbus_sim.dialects.behaviours import Behaviour, Status

__all__ = ["BEHAVIOURS"]

_FACTS = "facts (Kafka 4.3.1, confluent-kafka 2.16.1)"
_V, _S, _A = Status.VERIFIED, Status.FROM_SOURCE, Status.ASSUMED

PARTITIONS: Final = (
    Behaviour(
        "append-all-or-none",
        "A batch to one partition is stored whole or not at all, at consecutive offsets",
        "storage: UnifiedLog.append",
        _S,
    ),
    Behaviour(
        "acked-when-replicated",
        "A record is acknowledged (acks=all) and readable once every in-sync replica has it, not before",
        "KIP-101; core: ReplicaManager.appendRecords, DelayedProduce",
        _S,
    ),
    Behaviour(
        "failover-keeps-acked",
        "When a leader dies no acknowledged record is lost and none is doubled; senders wait for seconds",
        _FACTS + ", three brokers, kill -9 of a leader",
        _V,
    ),
    Behaviour(
        "failover-loses-unreplicated",
        "When a leader dies before replication the record is gone and its offset is given again",
        "KIP-101; storage: UnifiedLog.truncateTo",
        _S,
    ),
    Behaviour(
        "retry-is-deduplicated",
        "A batch that an idempotent producer sends again is not stored again; the answer has the first offset",
        "KIP-98; storage: ProducerStateEntry.findDuplicateBatch (last five batches)",
        _S,
    ),
    Behaviour(
        "sequence-gap-is-refused",
        "A batch whose sequence leaves a gap, or a new epoch not beginning with 0, is refused (45)",
        "KIP-98; storage: ProducerAppendInfo.checkSequence",
        _S,
    ),
    Behaviour(
        "outdated-epoch-is-refused",
        "A partition refuses a producer's epoch lower than one it has seen (47)",
        "KIP-98; storage: ProducerAppendInfo.checkProducerEpoch",
        _S,
    ),
    Behaviour(
        "too-large-is-refused",
        "A record above max.message.bytes of its topic is refused (10)",
        "core: UnifiedLog.analyzeAndValidateRecords",
        _S,
    ),
    Behaviour(
        "timestamps-of-the-broker",
        "Records carry the broker's milliseconds (message.timestamp.type=LogAppendTime, set by the backend)",
        "KIP-32",
        _S,
    ),
    Behaviour(
        "offset-for-time",
        "The offset for a time is the first record at or after it, at most the last stable offset",
        "KIP-79; core: ReplicaManager.fetchOffset",
        _S,
    ),
    Behaviour(
        "delete-records",
        "delete_records moves the start, also beyond the last stable offset; beyond the high watermark it "
        "is refused (1)",
        _FACTS + ", Reading",
        _V,
    ),
)

TRANSACTIONS: Final = (
    Behaviour(
        "open-is-invisible",
        "Records of an open broker transaction are not readable by read_committed readers",
        _FACTS + ", Reading",
        _V,
    ),
    Behaviour(
        "open-holds-back",
        "An open broker transaction holds back every later record of its partitions (last stable offset)",
        _FACTS + ", Reading",
        _V,
    ),
    Behaviour(
        "marker-takes-an-offset",
        "Each end leaves a marker that takes an offset; readers pass over markers and aborted records",
        _FACTS + ", Reading",
        _V,
    ),
    Behaviour(
        "aborted-is-never-visible",
        "Records of an aborted broker transaction are never readable, those behind it are",
        _FACTS + ", Producer and transactions",
        _V,
    ),
    Behaviour(
        "end-acked-before-markers",
        "EndTxn is answered when the outcome is decided; its records are visible about 1 ms later",
        _FACTS + "; core: TransactionCoordinator.endTransaction",
        _V,
    ),
    Behaviour(
        "init-bumps-the-epoch",
        "init_transactions gives the same producer id with a higher epoch, and fences every former owner",
        _FACTS + ", Producer and transactions",
        _V,
    ),
    Behaviour(
        "init-aborts-the-open-one",
        "init_transactions aborts the predecessor's open broker transaction first, which takes half a second",
        _FACTS + ": p50 557 ms",
        _V,
    ),
    Behaviour(
        "fenced-everywhere",
        "A former owner is refused when it adds partitions, produces, sends offsets, commits or aborts (47, 90)",
        _FACTS + ", table of a fenced producer",
        _V,
    ),
    Behaviour(
        "empty-commit-sees-no-fence",
        "The client ends an empty broker transaction without a request; the backend has to look for itself",
        _FACTS + ", table of a fenced producer",
        _V,
    ),
    Behaviour(
        "timeout-aborts-and-fences",
        "The broker's scan aborts a broker transaction older than its time-out and fences its owner",
        _FACTS + ", Producer and transactions",
        _V,
    ),
    Behaviour(
        "timeout-above-the-maximum",
        "A time-out above 900 s is refused by init_transactions (50)",
        _FACTS + ", Producer and transactions",
        _V,
    ),
    Behaviour(
        "end-again-is-answered",
        "EndTxn again with the same outcome is OK, with the other one it is refused (48)",
        "core: TransactionCoordinator.endTransaction (V1)",
        _S,
    ),
    Behaviour(
        "late-end-ends-the-next",
        "A late EndTxn of the same epoch ends the next broker transaction of that owner",
        "KAFKA-17754; " + _FACTS + ", Versions",
        _S,
    ),
    Behaviour(
        "late-end-is-fenced-by-init",
        "After a new init_transactions a late EndTxn of the former owner has no effect",
        "KAFKA-17754; core: TransactionCoordinator.endTransaction",
        _S,
    ),
    Behaviour(
        "commit-unknown",
        "After a commit that was not answered, the next init_transactions completes or aborts it, and "
        "nobody says which; only a record written inside it tells",
        _FACTS + ", Commit that timed out",
        _V,
    ),
    Behaviour(
        "coordinator-failover",
        "When the transaction coordinator moves, decided outcomes stand and their markers come later",
        _FACTS + ", three brokers, kill -9 of the coordinator",
        _V,
    ),
    Behaviour(
        "unregistered-produce-is-refused",
        "A record for a partition that the ongoing transaction does not contain is refused (48)",
        "KIP-890 part 1; core: TransactionCoordinator.validateTransactionMarkers, AddPartitionsToTxnManager",
        _S,
    ),
)

SKIPPED_MARKERS: Final = (
    Behaviour(
        "marker-skipped-sticks",
        "A broker that restarts can complete a timed-out abort without markers: the last stable offset of "
        "its partitions stays, later records are invisible, and init_transactions does not repair it",
        _FACTS + ", Danger",
        _V,
    ),
    Behaviour(
        "marker-skipped-then-commit",
        "The next commit of that id on such a partition makes the old, aborted records visible",
        _FACTS + ", Danger",
        _V,
    ),
    Behaviour(
        "marker-skipped-then-abort",
        "An aborted broker transaction of that id that touches such a partition repairs it",
        _FACTS + ", Danger (one run)",
        _V,
    ),
    Behaviour(
        "marker-skipped-then-delete",
        "delete_records past the open records repairs such a partition",
        _FACTS + ", Danger (one run)",
        _V,
    ),
    Behaviour(
        "deleted-in-part",
        "Of an open broker transaction whose first records are deleted the rest holds readers back",
        "ours: the facts know only the deletion of all of it",
        _A,
    ),
    Behaviour(
        "marker-skipped-for-positions",
        "Positions of a broker transaction are skipped with the markers: they stay pending, the next commit "
        "of that id in that group makes them count, an abort forgets them",
        "core: TransactionMarkerChannelManager (__consumer_offsets is as any partition); GroupMetadata",
        _S,
    ),
)

GROUPS: Final = (
    Behaviour(
        "members-share",
        "Each partition is assigned to one member, shares differ by one at most, what a member has it keeps",
        "KIP-429; clients: CooperativeStickyAssignor",
        _S,
    ),
    Behaviour(
        "moved-after-release",
        "A partition that moves is given to its new member only after the old one has polled and let go",
        "KIP-429",
        _S,
    ),
    Behaviour(
        "rebalance-waits",
        "A rebalance waits until every member has joined again or its session or rebalance time-out is over",
        "core: GroupCoordinator.prepareRebalance (classic)",
        _S,
    ),
    Behaviour(
        "rejoin-after-poll",
        "The client joins a rebalance in the background, but not before the application has polled for the "
        "assignment of the last one",
        "librdkafka: rdkafka_cgrp.c (a rejoin waits for the rebalance callback); not measured",
        _A,
    ),
    Behaviour(
        "session-timeout",
        "A member that sends no heartbeat for session.timeout.ms is removed; its partitions go to others",
        "core: GroupCoordinator.onExpireHeartbeat (classic)",
        _S,
    ),
    Behaviour(
        "max-poll-interval",
        "A member that does not poll for max.poll.interval.ms leaves by itself; the others own all after it",
        _FACTS + ": after 6 s with an interval of 6 s",
        _V,
    ),
    Behaviour(
        "leave-frees-at-once",
        "The partitions of a member that leaves are dealt at the next rebalance, without a time-out",
        "core: GroupCoordinator.handleLeaveGroup (classic)",
        _S,
    ),
    Behaviour(
        "session-timeout-bounds",
        "A session time-out outside of 6 s to 30 min is refused (26)",
        "group.min.session.timeout.ms, group.max.session.timeout.ms",
        _S,
    ),
    Behaviour(
        "group-coordinator-failover",
        "When the group's coordinator moves, members and generation stand, and sessions begin anew",
        "core: GroupMetadataManager.loadGroupsAndOffsets (classic)",
        _S,
    ),
    Behaviour(
        "generation-checked",
        "Offsets with an older generation are refused (22), plain and in a broker transaction",
        _FACTS + ", Consumer groups and transactions",
        _V,
    ),
    Behaviour(
        "member-checked",
        "Offsets of a member that is gone are refused (25), plain and in a broker transaction",
        _FACTS + ", Consumer groups and transactions",
        _V,
    ),
    Behaviour(
        "never-joined-accepted",
        "Offsets in a broker transaction with metadata taken before joining are accepted",
        _FACTS + ", Consumer groups and transactions",
        _V,
    ),
    Behaviour(
        "ownership-not-checked",
        "Offsets with the member's own current metadata are accepted for a partition of another member, "
        "plain and in a broker transaction",
        _FACTS + ", Consumer groups and transactions",
        _V,
    ),
    Behaviour(
        "commit-while-rebalancing",
        "While a rebalance waits for members the generation stands, and offsets of it are accepted",
        "core: GroupCoordinator.validateOffsetCommit, PreparingRebalance (classic)",
        _S,
    ),
    Behaviour(
        "plain-commit-of-no-member",
        "A plain commit of no member is accepted by a group without members only (25)",
        "core: GroupCoordinator.doCommitOffsets (classic)",
        _S,
    ),
    Behaviour(
        "positions-with-the-commit",
        "Offsets of a broker transaction count from its commit on, and not at all after an abort",
        "KIP-98; " + _FACTS + ", Consumer groups and transactions",
        _V,
    ),
    Behaviour(
        "pending-blocks-committed",
        "While offsets of an open broker transaction are pending, committed() of those partitions blocks",
        _FACTS + ", Consumer groups and transactions",
        _V,
    ),
    Behaviour(
        "note-beside-a-position",
        "A string of at most 4095 characters is stored beside a position; a longer one is refused (12)",
        _FACTS + ", Reading",
        _V,
    ),
    Behaviour(
        "rebalance-on-demand",
        "The fault `rebalance` deals the partitions anew, one member further, as a member that came and went would",
        "ours: what makes a group rebalance is outside of the model",
        _A,
    ),
)

BEHAVIOURS: Final[tuple[Behaviour, ...]] = (*PARTITIONS, *TRANSACTIONS, *SKIPPED_MARKERS, *GROUPS)
"""Every behaviour of the model; each is named by a test in tests/simulation/test_kafka_*.py."""
