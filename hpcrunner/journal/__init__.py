"""The durable record of everything taken from a queue: one SQLite file per install."""
