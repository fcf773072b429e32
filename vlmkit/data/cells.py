"""Cells of a table that hold an image or captions, in the forms that tables of captioned images have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeGuard

from vlmkit.data.samples import BadSample
from vlmkit.data.sources.image_folder import ImageFolder
from vlmkit.errors import UserError

IMAGE_NAMES = ("image", "jpg", "png", "img", "image_path", "filepath", "file_path", "file_name", "filename", "path")
CAPTION_NAMES = ("caption", "captions", "text", "texts", "title", "sentence", "sentences", "description", "alt_text")
"""What such columns are called, the commonest name first."""


def find_column(columns: Sequence[str], given: str | None, names: Sequence[str], option: str, where: str) -> str:
    """The column called ``given``, or the one with the first of the usual ``names``, in any case.

    Raises UserError, naming the columns there are (of ``where``) and the ``option`` that chooses one.
    """
    there = ", ".join(columns) or "none"
    if given is not None:
        if given not in columns:
            raise UserError(f"{where} has no column {given!r}; its columns are: {there}.")
        return given
    lowered = {column.lower(): column for column in reversed(columns)}
    for name in names:
        if name in lowered:
            return lowered[name]
    raise UserError(
        f"{where} has no column that is called like one of {option}s; choose one with ?{option}=, of: {there}."
    )


def check_captions(value: Any) -> tuple[str, ...]:
    """The captions that a text or a list of texts stands for, without those that are null or blank.

    Raises BadSample if none is left, or it is anything else.
    """
    listed = value if isinstance(value, list) else [value]
    captions = tuple(caption for caption in listed if caption and caption.strip()) if is_list_of_texts(listed) else ()
    if not captions:
        raise BadSample("the caption is empty or not a text")
    return captions


def is_list_of_texts(value: Any) -> TypeGuard[list[str | None]]:
    """Whether it is a list of texts, of which some may be null."""
    return isinstance(value, list) and all(text is None or isinstance(text, str) for text in value)


def read_captions(cell: Any) -> tuple[str, ...]:
    """As ``check_captions``; a text that is a list of texts written as JSON counts as that list."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            listed = json.loads(cell)
        except ValueError:
            listed = None  # a caption that happens to begin with a bracket
        if listed and is_list_of_texts(listed):
            cell = listed
    return check_captions(cell)


def read_image(cell: Any, images: ImageFolder) -> bytes:
    """The bytes of an image file: those in the cell, or of the file in ``images`` that it names.

    Raises BadSample if there is neither.
    """
    encoded = cell.get("bytes") if isinstance(cell, dict) else cell
    if isinstance(encoded, bytes):
        return encoded
    name = image_path(cell)
    if name is None:
        raise BadSample("there is no image")
    return images.read(name)


def image_path(cell: Any) -> str | None:
    """The path in an image cell, if that is where its image is."""
    if isinstance(cell, dict):
        cell = cell.get("path") if cell.get("bytes") is None else None
    return cell if isinstance(cell, str) and cell else None
