"""The engine: torch's own DDP, FSDP2 and distributed checkpoints around one loop."""

from vlmkit.training.trainer import FitResult, Trainer

__all__ = ["FitResult", "Trainer"]
