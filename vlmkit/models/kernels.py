"""Fused GPU kernels in place of a language model's own layers (``llm.kernels``)."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from vlmkit.errors import UserError


def use_liger(llm: PreTrainedModel, device: torch.device) -> None:
    """Let norms, gated MLPs and rotary embeddings of this model run on Liger's Triton kernels; in place.

    Its fused cross entropy stays off: logits are computed at labelled tokens only. Rotary embeddings are replaced for
    all models of this architecture in the process, norms and MLPs also in those made later. Raises UserError where
    there is no NVIDIA GPU, the package is missing, or it has no kernels for this architecture.
    """
    if device.type != "cuda":
        raise UserError("llm.kernels liger runs on NVIDIA GPUs only; leave llm.kernels at null on other devices.")
    try:
        from liger_kernel.transformers import monkey_patch as liger
    except ImportError as error:
        raise UserError(
            f'llm.kernels liger needs the package liger-kernel ({error}); pip install "vlmkit[gpu]", or set it to null.'
        ) from error
    architecture = llm.config.model_type
    if architecture not in liger.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise UserError(f"Liger has no kernels for {architecture} models; leave llm.kernels at null.")
    liger._apply_liger_kernel_to_instance(llm, cross_entropy=False, fused_linear_cross_entropy=False)
