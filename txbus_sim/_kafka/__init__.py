"""A Kafka cluster for simulated processes: `KafkaServer` in a world, and the backend of `sim+kafka://`."""

from txbus_sim._kafka.backend import SimKafkaBackend
from txbus_sim._kafka.server import CAPABILITIES, KafkaServer

__all__ = ["CAPABILITIES", "KafkaServer", "SimKafkaBackend"]
