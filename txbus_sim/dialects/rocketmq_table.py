"""What the RocketMQ dialect models, a row for each behaviour (docs/reference/sim-rocketmq.md).

The server is 5.3.3 with its proxy in local mode, the client rocketmq-python-client 5.1.2 over gRPC.
"Run" in a source: seen on that server with that client. "Noted": stated by whoever ran it, without a
record of how it was seen, hence assumed here until a case on the real broker shows it.
"""

from __future__ import annotations

from txbus_sim.dialects.behaviours import Behaviour, Status

__all__ = ["BEHAVIOURS"]

_RUN, _SRC, _ASSUMED = Status.VERIFIED, Status.FROM_SOURCE, Status.ASSUMED

SENDING = (
    Behaviour("durable-send", "An acknowledged message survives kill -9 of broker and proxy.", "run 5.3.3", _RUN),
    Behaviour(
        "topic-type",
        "A topic takes messages of its `message.type` only; others are refused with 40014.",
        "DefaultTopicMessageTypeValidator 5.3",
        _SRC,
    ),
    Behaviour(
        "mixed-type",
        "A topic of type MIXED takes every message; it can be made only with `enableMixedMessageType`.",
        "DefaultTopicMessageTypeValidator, AdminBrokerProcessor 5.3",
        _SRC,
    ),
    Behaviour(
        "exclusive-kinds",
        "Message group, delivery timestamp and transaction exclude each other.",
        "noted",
        _ASSUMED,
    ),
    Behaviour("missing-topic", "A topic that does not exist has no route (40402).", "noted", _ASSUMED),
    Behaviour("system-topics", "The system's topics cannot be read or made through gRPC (40002).", "noted", _ASSUMED),
    Behaviour(
        "proxy-selects-queue",
        "The proxy selects the queue: in turn, or by the consistent hash of the message group; a client "
        "cannot choose one and is not told which it was.",
        "SendMessageActivity.SendMessageQueueSelector 5.3; proto SendResultEntry",
        _SRC,
    ),
    Behaviour("body-limits", "A body has 1 to 4,194,304 bytes.", "noted", _ASSUMED),
    Behaviour("property-limits", "At most 128 properties of 16,384 bytes together.", "noted", _ASSUMED),
    Behaviour(
        "property-names", "Reserved names and control characters in properties are refused (40007).", "noted", _ASSUMED
    ),
    Behaviour("tag-characters", "A tag is not blank and has no `|`.", "unknown", _ASSUMED),
    Behaviour(
        "delay", "A message with a delivery timestamp is received at that time and not before.", "noted", _ASSUMED
    ),
    Behaviour("delay-limit", "A delay of more than 24 h is refused (40012).", "noted", _ASSUMED),
    Behaviour("overdue", "A delivery timestamp that is over means at once.", "unknown", _ASSUMED),
)

HALVES = (
    Behaviour("half-invisible", "A half message is durable and not received.", "run 5.3.3", _RUN),
    Behaviour("half-outcome", "commit() makes it visible, rollback() never.", "run 5.3.3", _RUN),
    Behaviour(
        "half-retry-doubles",
        "A half that its client sends again is a second half with another transaction id; only a check "
        "settles the orphan.",
        "rocketmq-python-client 5.1.2",
        _SRC,
    ),
    Behaviour(
        "one-way-end",
        "The proxy answers OK to an outcome and passes it on one-way: it may be lost, then the half is asked about.",
        "EndTransactionRequest is one-way behind the proxy, 5.3",
        _SRC,
    ),
    Behaviour(
        "first-check",
        "The first round after `transactionTimeOut` since the client-supplied born time asks.",
        "TransactionalMessageServiceImpl 5.3",
        _SRC,
    ),
    Behaviour(
        "rounds-reappend",
        "Each round re-appends the half with one check more, and asks with the number of the round.",
        "run 5.3.3; TransactionalMessageServiceImpl",
        _RUN,
    ),
    Behaviour(
        "round-stops-at-young",
        "A round ends at the first half that is too young; what stands behind it waits for the next round.",
        "TransactionalMessageServiceImpl.check 5.3",
        _SRC,
    ),
    Behaviour(
        "budget-burns",
        "The counter advances without any producer; after `transactionCheckMax` rounds the half is discarded.",
        "run 5.3.3; issue 8311",
        _RUN,
    ),
    Behaviour(
        "discard-topic",
        "A discarded half stands in TRANS_CHECK_MAX_TIME_TOPIC.",
        "run 5.3.3",
        _RUN,
    ),
    Behaviour(
        "rescue",
        "resumeCheckHalfMessage puts a discarded half back with a new budget; a second call puts it back again.",
        "noted",
        _ASSUMED,
    ),
    Behaviour(
        "answer-marks-asked",
        "An answer marks the record that the question was about; each question can be answered once, within 30 s.",
        "AbstractTransactionalMessageCheckListener, TransactionDataManager 5.3",
        _SRC,
    ),
    Behaviour(
        "checks-go-on",
        "commit() or rollback() after the first check round returns OK, marks the first record and does not "
        "stop the checks.",
        "run 5.3.3; issue 8158",
        _RUN,
    ),
    Behaviour(
        "answer-doubles",
        "A COMMIT answer then delivers a second time, or delivers what was rolled back.",
        "run 5.3.3",
        _RUN,
    ),
    Behaviour(
        "late-outcome",
        "A second outcome, or one after more than 30 s, is 50001: the proxy has forgotten the half.",
        "TransactionDataManager 5.3",
        _SRC,
    ),
    Behaviour(
        "op-marks-in-memory",
        "A killed broker forgets the outcomes of the last second, and asks about those halves again.",
        "run 5.3.3 (37 of 185)",
        _RUN,
    ),
    Behaviour(
        "asked-by-topic",
        "Whoever announced the topic is asked, in turn, whatever its group: strangers too.",
        "run 5.3.3; issue 9791",
        _RUN,
    ),
    Behaviour(
        "no-checker-burns", "A producer without a checker is asked too, and the round is lost.", "run 5.3.3", _RUN
    ),
    Behaviour("unannounced-topic", "Topics that were not announced get no check-back.", "run 5.3.3", _RUN),
    Behaviour(
        "dead-producer", "A producer whose connection broke is not asked; its successor is, at once.", "noted", _ASSUMED
    ),
)

RECEIVING = (
    Behaviour(
        "invisible-time",
        "A message that was handed over is invisible to its group for a time between 10 s (a setting) and 12 h.",
        "noted",
        _ASSUMED,
    ),
    Behaviour(
        "late-redelivery",
        "On normal topics a redelivery comes 3 to 4 s after the invisible time, and wakes no waiting poll.",
        "noted",
        _ASSUMED,
    ),
    Behaviour(
        "change-invisible",
        "change_invisible_duration gives a new receipt; with 0 the message is back after 3 to 4 s.",
        "noted",
        _ASSUMED,
    ),
    Behaviour(
        "expired-receipt",
        "The ack of an expired or old receipt is 40013; a second ack of a good one is no error.",
        "noted",
        _ASSUMED,
    ),
    Behaviour("attempts", "The attempt counts from 1 in each group, redelivery by redelivery.", "noted", _ASSUMED),
    Behaviour(
        "dead-letter",
        "After its retries a message stands in `%DLQ%` + group, which exists from the first dead letter on.",
        "noted",
        _ASSUMED,
    ),
    Behaviour(
        "dead-letter-when-asked",
        "The proxy looks at the attempts when a consumer asks, so nothing becomes a dead letter unless somebody does.",
        "PopMessageResultFilterImpl, ConsumerProcessor 5.3",
        _SRC,
    ),
    Behaviour("no-owner", "Members of a group share every queue; none owns one.", "unknown", _ASSUMED),
    Behaviour(
        "duplicate-attempt-1",
        "A message delivered twice by two outcomes arrives with attempt 1 twice.",
        "noted",
        _ASSUMED,
    ),
    Behaviour("groups-independent", "Each group gets every message.", "unknown", _ASSUMED),
    Behaviour("start-at-zero", "A new group starts at offset 0 while the topic's head is in memory.", "5.3", _SRC),
    Behaviour("reset-offset", "An administrator can move a group to the newest message.", "noted", _ASSUMED),
    Behaviour("tag-filter", "The broker filters by tag; what is left out is passed over.", "unknown", _ASSUMED),
    Behaviour("receive-max", "More than 32 messages at once are refused.", "PopMessageProcessor 5.3", _SRC),
    Behaviour(
        "fifo-blocks",
        "In a group made for order a message that is out holds its queue back; it comes again after exactly "
        "the invisible time.",
        "noted",
        _ASSUMED,
    ),
    Behaviour(
        "fifo-attempts",
        "There attempts are counted for the batch, and restart when the batch differs.",
        "noted",
        _ASSUMED,
    ),
    Behaviour(
        "redelivery-position",
        "A redelivered message keeps its queue and offset (the server moves it to a retry topic of the group).",
        "simplified",
        _ASSUMED,
    ),
    Behaviour(
        "group-position",
        "An administrator sees as a group's position the lowest offset of a queue that is not done.",
        "simplified from PopBufferMergeService",
        _ASSUMED,
    ),
    Behaviour("queue-turn", "Queues are asked in turn, new messages before redeliveries.", "simplified", _ASSUMED),
)

RESTARTS = (
    Behaviour(
        "proxy-restart-consumer",
        "After a restart of the proxy an old consumer gets 50001 for every receive until it is built anew.",
        "run 5.3.3",
        _RUN,
    ),
    Behaviour(
        "proxy-restart-producer",
        "After it an old producer sends again, and gets no check until it is built anew.",
        "run 5.3.3",
        _RUN,
    ),
    Behaviour(
        "proxy-restart-halves",
        "After it an outcome for an older half is 50001.",
        "proxy memory is per proxy, 5.3; issue 9431",
        _SRC,
    ),
    Behaviour("down-time", "A restart takes 4 to 7 s; calls fail meanwhile.", "run 5.3.3", _RUN),
    Behaviour("first-receive", "The first receive of a consumer may be 50001 once.", "noted", _ASSUMED),
)

BEHAVIOURS = (*SENDING, *HALVES, *RECEIVING, *RESTARTS)
