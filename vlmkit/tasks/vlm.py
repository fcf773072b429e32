"""VLM training in two stages: align trains compressor and projector, finetune also the language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from vlmkit.config import OptimConfig
from vlmkit.contracts import Batch, LossOutput
from vlmkit.models.vlm import VLM, VLMOutput
from vlmkit.tasks.parameter_groups import parameter_groups

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INPUTS = (
    "input_ids",
    "labels",
    "position_ids",
    "attention_mask",
    "pixel_values",
    "image_features",
    "image_index",
    "query_input_ids",
    "query_attention_mask",
)


class VLMTask(nn.Module):
    """The VLM with its loss over packed batches (``data.packing.PackingCollate``). A target is a labelled token.

    The vision tower is always frozen; stage "align" freezes the language model too. Frozen parts stay in evaluation
    mode. Without a tokenizer a task can be planned, not exported. Raises UserError if nothing is left to train.
    """

    def __init__(
        self, model: VLM, tokenizer: PreTrainedTokenizerBase | None, stage: Literal["align", "finetune"]
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.stage = stage
        model.requires_grad_(False)
        for module in self._parts().values():
            module.requires_grad_(True)
        self.train(self.training)

    def _parts(self) -> dict[str, nn.Module]:
        """The trained parts, by the names that ``optim.lr_multipliers`` uses."""
        parts = {"compressor": self.model.compressor, "projector": self.model.projector}
        return parts if self.stage == "align" else {**parts, "llm": self.model.language_model}

    def train(self, mode: bool = True) -> VLMTask:
        """Training mode for the trained parts only."""
        super().train(mode)
        self.model.vision_tower.eval()
        if self.stage == "align":
            self.model.language_model.eval()
        return self

    def begin_step(self, micro_batches: Sequence[Batch]) -> int:
        """The number of labelled tokens of the step over all ranks."""
        total = torch.tensor(sum(batch["num_targets"] for batch in micro_batches), device=self.model.device)
        if dist.is_initialized():
            dist.all_reduce(total)
        return int(total)

    def forward(self, batch: Batch) -> LossOutput:
        """Summed cross entropy of the labelled tokens of one micro-batch."""
        output = self._run(batch)
        assert output.loss_sum is not None
        count = batch["num_targets"]
        return LossOutput(output.loss_sum, count, {"train/token_accuracy": (_num_correct(output), count)})

    def _run(self, batch: Batch) -> VLMOutput:
        return self.model(**{name: batch[name] for name in _INPUTS if name in batch})

    @torch.no_grad()
    def validation_metrics(self, batch: Batch) -> Mapping[str, tuple[float, float]]:
        """``val/loss`` and ``val/token_accuracy`` over labelled tokens, each predicted from the true ones before it."""
        output = self._run(batch)
        count = float(batch["num_targets"])
        assert output.loss_sum is not None
        return {
            "val/loss": (float(output.loss_sum), count),
            "val/token_accuracy": (float(_num_correct(output)), count),
        }

    def parameter_groups(self, optim: OptimConfig) -> list[dict[str, Any]]:
        """Groups of what the stage trains of the parts compressor, projector and llm."""
        model = self.model
        parts = {"compressor": model.compressor, "projector": model.projector, "llm": model.language_model}
        return parameter_groups({name: part.parameters() for name, part in parts.items()}, optim, owner="a VLM")

    def shard_units(self) -> list[nn.Module]:
        """The layers of the language model."""
        return list(self.model.language_model.get_decoder().layers)

    def export(self, directory: str) -> None:
        """Write model and tokenizer so that ``AutoModelForImageTextToText.from_pretrained(directory)`` reads them."""
        assert self.tokenizer is not None
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)


def _num_correct(output: VLMOutput) -> torch.Tensor:
    assert output.logits is not None and output.targets is not None
    return (output.logits.detach().argmax(dim=-1) == output.targets).sum()
