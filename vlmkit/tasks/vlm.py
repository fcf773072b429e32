"""VLM training in two stages: align trains compressor and projector, finetune also the language model or the tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from vlmkit.config import OptimConfig
from vlmkit.contracts import Batch, LossOutput
from vlmkit.data.conversations.conversations import stop_tokens
from vlmkit.models.adapters import adapter_parameters, is_adapted, save_adapted
from vlmkit.models.processor import VLMProcessor
from vlmkit.models.vlm import VLM, VLMOutput
from vlmkit.tasks.parameter_groups import parameter_groups

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INPUTS = (
    "input_ids",
    "labels",
    "position_ids",
    "sequence_ids",
    "branch_ids",
    "pixel_values",
    "image_features",
    "image_index",
    "token_counts",
    "query_input_ids",
    "query_attention_mask",
)


class VLMTask(nn.Module):
    """The VLM with its loss over packed batches (``data.packing.PackingCollate``). A target is a labelled token.

    Stage "align" trains compressor and projector; "finetune" also the language model, or its adapters where it has
    some, and with ``train_tower`` what the features depend on of the vision tower. Frozen parts stay in evaluation
    mode.
    """

    frozen_in_bf16 = True

    def __init__(
        self,
        model: VLM,
        tokenizer: PreTrainedTokenizerBase,
        stage: Literal["align", "finetune"],
        train_tower: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.stage = stage
        self.train_tower = train_tower and stage == "finetune"
        model.requires_grad_(False)
        for parameters in self._trained().values():
            for parameter in parameters:
                parameter.requires_grad_(True)
        self.train(self.training)

    def _trained(self) -> dict[str, list[nn.Parameter]]:
        """What the stage trains, by the names that ``optim.lr_multipliers`` uses."""
        model = self.model
        trained = {
            "compressor": list(model.compressor.parameters()),
            "projector": list(model.projector.parameters()),
        }
        if self.stage == "finetune":
            llm = model.language_model
            trained["llm"] = adapter_parameters(llm) if is_adapted(llm) else list(llm.parameters())
        if self.train_tower:
            trained["tower"] = self._tower_parameters_in_use()
        return trained

    def _tower_parameters_in_use(self) -> list[nn.Parameter]:
        """Those that the features depend on: the blocks past the last one read would wait for gradients in vain."""
        tower = self.model.vision_tower.eval()
        parameters = list(tower.requires_grad_(True).parameters())
        image = torch.zeros(1, 3, tower.image_size, tower.image_size, dtype=torch.uint8, device=self.model.device)
        features = self.model.encode_images(image)
        gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
        tower.requires_grad_(False)
        return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None]

    def train(self, mode: bool = True) -> VLMTask:
        """Training mode for the trained parts only."""
        super().train(mode)
        if not self.train_tower:
            self.model.vision_tower.eval()
        if self.stage == "align":
            self.model.language_model.eval()
            for layer in self._layers():  # a layer recomputes itself only in training mode; its parts stay out of it
                layer.training = mode and getattr(layer, "gradient_checkpointing", False)
        return self

    def _layers(self) -> list[nn.Module]:
        """The layers of the language model, by whatever name its family has for them."""
        decoder = self.model.language_model.get_decoder()
        return list(next(part for part in decoder.children() if isinstance(part, nn.ModuleList)))

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
        """Groups of what the stage trains of the parts compressor, projector, llm and tower."""
        model = self.model
        parts = {
            "compressor": model.compressor,
            "projector": model.projector,
            "llm": model.language_model,
            "tower": model.vision_tower,
        }
        return parameter_groups({name: part.parameters() for name, part in parts.items()}, optim, owner="a VLM")

    def shard_units(self) -> list[nn.Module]:
        """The layers of the language model, and the blocks of the tower that train.

        A block that is never run could be no unit: FSDP2 looks for the whole weights that running it would have made.
        """
        blocks = self.model.vision_tower.blocks() if self.train_tower else []
        return [*self._layers(), *(b for b in blocks if any(p.requires_grad for p in b.parameters()))]

    def export(self, directory: str) -> None:
        """Write what ``AutoModelForImageTextToText``, ``AutoProcessor`` and ``AutoTokenizer`` read.

        Adapters are merged into the model, and written beside it as well (``models.adapters``). Wherever the model is
        read, its answers end where those it was trained on do.
        """
        self.model.end_answers_at(stop_tokens(self.tokenizer))
        if is_adapted(self.model.language_model):
            save_adapted(self.model, directory)
        else:
            self.model.save_pretrained(directory)
        VLMProcessor.of(self.model, self.tokenizer).save_pretrained(directory)


def _num_correct(output: VLMOutput) -> torch.Tensor:
    assert output.logits is not None and output.targets is not None
    return (output.logits.detach().argmax(dim=-1) == output.targets).sum()
