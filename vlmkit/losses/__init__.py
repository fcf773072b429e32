"""Losses as plain functions of tensors, and the counters they are weighted with."""
