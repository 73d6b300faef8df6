"""Durable state: one contract (base), SQLite for one host; etcd for a cluster comes later."""
