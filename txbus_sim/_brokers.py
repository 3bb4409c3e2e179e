"""Which brokers a run can have."""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["Broker"]

Broker: TypeAlias = Literal["kafka", "rocketmq", "embedded"]
