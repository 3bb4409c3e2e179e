"""An Apache Kafka 4.x cluster as confluent-kafka's clients see it, as a pure state machine.

`Cluster` is the brokers: no I/O, no clock, nothing random. What it models is listed in
`behaviours.BEHAVIOURS`, row by row with the source of each fact; `txbus_sim._kafka` is the shell that
lets simulated processes talk to it.

Not modelled; what of it could be asked for raises `NotModelled`:

- read_uncommitted readers, compaction, retention by age or size (segments of seven days are not
  rolled within a run), CreateTime timestamps, transactional ids and positions that expire;
- acks other than all, unclean leader election, brokers that are away for longer than an election,
  partitions that are added to or moved, deletion of topics and groups;
- transactions V2 (KIP-890) and KIP-939: the client speaks V1; exhaustion of the producer epoch;
- the consumer protocol of KIP-848, static membership, eager assignors, subscription by pattern,
  group.initial.rebalance.delay.ms, and the time between JoinGroup and SyncGroup;
- records that a client has fetched ahead of what it delivers; batches, compression, linger;
- quotas, authorisation, SASL and TLS, and sockets that break without a request being lost.
"""

from txbus_sim.dialects.kafka.cluster import Cluster, ClusterOptions, Topic
from txbus_sim.dialects.kafka.codes import Code, Refusal
from txbus_sim.dialects.kafka.groups import Assignment, Membership
from txbus_sim.dialects.kafka.partition import Entry, Message, Producer, State
from txbus_sim.dialects.kafka.transactions import Owner, TransactionState
from txbus_sim.dialects.kafka.watching import Silent, Watcher

__all__ = [
    "Assignment",
    "Cluster",
    "ClusterOptions",
    "Code",
    "Entry",
    "Membership",
    "Message",
    "Owner",
    "Producer",
    "Refusal",
    "Silent",
    "State",
    "Topic",
    "TransactionState",
    "Watcher",
]
