"""The simulated RocketMQ: its server in a world (`server`), and the backend that processes open on it (`backend`)."""
