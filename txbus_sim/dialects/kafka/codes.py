"""What a Kafka broker answers when it refuses a request."""

from __future__ import annotations

from enum import Enum

__all__ = ["Code", "Refusal"]


class Code(Enum):
    """The protocol's error codes that the model gives."""

    OFFSET_OUT_OF_RANGE = 1
    UNKNOWN_TOPIC_OR_PARTITION = 3
    NOT_LEADER_OR_FOLLOWER = 6
    MESSAGE_TOO_LARGE = 10
    OFFSET_METADATA_TOO_LARGE = 12
    ILLEGAL_GENERATION = 22
    UNKNOWN_MEMBER_ID = 25
    INVALID_SESSION_TIMEOUT = 26
    REBALANCE_IN_PROGRESS = 27
    TOPIC_ALREADY_EXISTS = 36
    INVALID_PARTITIONS = 37
    OUT_OF_ORDER_SEQUENCE_NUMBER = 45
    INVALID_PRODUCER_EPOCH = 47
    INVALID_TXN_STATE = 48
    INVALID_PRODUCER_ID_MAPPING = 49
    INVALID_TRANSACTION_TIMEOUT = 50
    CONCURRENT_TRANSACTIONS = 51
    UNSTABLE_OFFSET_COMMIT = 88
    PRODUCER_FENCED = 90


class Refusal(Exception):
    """A request was refused with a code; nothing of it was done."""

    def __init__(self, code: Code, about: str) -> None:
        super().__init__(f"{code.name} ({code.value}): {about}")
        self.code = code
