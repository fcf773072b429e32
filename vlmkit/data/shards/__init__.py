"""Captioned images in tar shards, on disk and remote: where each lies, and its bytes."""
