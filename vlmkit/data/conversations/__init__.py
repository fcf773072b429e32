"""Conversations as packed rows of token ids."""
