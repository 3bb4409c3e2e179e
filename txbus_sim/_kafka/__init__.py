"""A Kafka cluster for simulated processes: `server.KafkaServer` in a world, the backend of `sim+kafka://`."""
