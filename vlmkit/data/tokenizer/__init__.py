"""The embedded language models' tokenizer, in the layout that ``AutoTokenizer.from_pretrained(DIRECTORY)`` reads."""

from pathlib import Path

DIRECTORY = Path(__file__).parent
"""Holds ``tokenizer.json`` and ``tokenizer_config.json`` (written by build.py) and ``chat_template.jinja``."""
