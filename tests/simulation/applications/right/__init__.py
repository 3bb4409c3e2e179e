"""Applications without a mistake, each in another way."""
