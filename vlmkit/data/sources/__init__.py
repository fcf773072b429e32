"""Samples by integer from every kind of source but tar shards."""
