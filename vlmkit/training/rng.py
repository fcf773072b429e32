"""The random-number state of a process: seeding, capture and restoration of every generator training may draw from."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor


def seed_everything(seed: int, rank: int, step: int) -> None:
    """Seed torch, numpy and Python from (seed, rank, step): different streams on different ranks."""
    words = np.random.SeedSequence([seed % 2**64, rank, step]).generate_state(2, np.uint32)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[0])
    random.seed(int(words[1]))


def capture(device: torch.device) -> bytes:
    """The state of all generators as safetensors: tensors, and the few plain numbers as JSON bytes."""
    _, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    version, internal, gauss_next = random.getstate()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "python": torch.tensor(internal, dtype=torch.int64),
    }
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    plain = {"numpy": [position, has_gauss, cached], "python": [version, gauss_next]}
    tensors["plain"] = torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8)
    return save(tensors)


def restore(state: bytes, device: torch.device) -> None:
    """Put every generator where ``capture`` found it."""
    tensors: dict[str, Tensor] = load(state)
    plain = json.loads(tensors["plain"].numpy().tobytes())
    torch.set_rng_state(tensors["torch"])
    np.random.set_state(("MT19937", tensors["numpy"].numpy().astype(np.uint32), *plain["numpy"]))
    version, gauss_next = plain["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss_next))
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Whatever the block draws, training goes on as if it had not run."""
    state = capture(device)
    try:
        yield
    finally:
        restore(state, device)
