"""LoRA and QLoRA on a VLM's language model, by peft: putting adapters in, saving them, merging them, reading them back.

MODEL/                    the merged model, which every reader of a VLM understands
  adapter/
    adapter_config.json, adapter_model.safetensors   peft's own layout, for the base language model
    connector.safetensors                            compressor and projector, trained in full beside the adapter
    config.json                                      the VLM's configuration, to join the parts again
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from vlmkit.config import LoRAConfig
from vlmkit.errors import UserError
from vlmkit.models.seeding import seeded
from vlmkit.models.vision_tower import VisionTower
from vlmkit.models.vlm import VLM
from vlmkit.models.vlm_config import VLMConfig

DIRECTORY_NAME = "adapter"
CONNECTOR_NAME = "connector.safetensors"
_WEIGHTS_NAME = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
"""Before the names of weights in peft's files: those of the model inside its two wrappers."""


def add_adapters(language_model: PreTrainedModel, lora: LoRAConfig, seed: int) -> None:
    """Put fresh adapters, a function of ``seed`` alone, around every linear layer but the output head, in place.

    Only they train from then on, and the model computes what it did before (the second matrix of each starts at zero).
    With ``lora.quantize`` the layers beneath are moved to the GPU and held there in four bits. Raises UserError where
    peft, bitsandbytes or a GPU that it needs is missing.
    """
    peft = _require_peft()
    if lora.quantize is not None:
        _hold_in_four_bits(language_model)
    config = peft.LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with seeded(seed):
        peft.inject_adapter_in_model(config, language_model)


def is_adapted(language_model: nn.Module) -> bool:
    """Whether :func:`add_adapters` was here."""
    return hasattr(language_model, "peft_config")


def adapter_parameters(language_model: nn.Module) -> list[nn.Parameter]:
    """The weights of the adapters."""
    return [p for name, p in language_model.named_parameters() if ".lora_A." in name or ".lora_B." in name]


def save_adapted(vlm: VLM, directory: str | Path) -> None:
    """Write the merged model to ``directory`` and the adapter with its connector to ``directory/adapter``.

    Merged weights are float32: rounding them would lose what the adapter adds.
    """
    peft = _require_peft()
    vlm.save_pretrained(directory, state_dict=_merged_state(vlm))
    adapter = Path(directory) / DIRECTORY_NAME
    adapter.mkdir()
    llm: Any = vlm.language_model
    llm.peft_config["default"].save_pretrained(adapter)
    weights = peft.get_peft_model_state_dict(llm, save_embedding_layers=False)
    save_file({_PEFT_PREFIX + name: _portable(value) for name, value in weights.items()}, adapter / _WEIGHTS_NAME)
    save_file({name: _portable(value) for name, value in _connector(vlm).items()}, adapter / CONNECTOR_NAME)
    vlm.config.save_pretrained(adapter)


def is_merged(model: str | Path) -> bool:
    """Whether the ``model/`` directory of a VLM run holds a model that adapters were merged into."""
    return (Path(model) / DIRECTORY_NAME).is_dir()


def load_adapted(directory: str | Path, language_model: PreTrainedModel, vision_tower: VisionTower) -> VLM:
    """The VLM of an ``adapter/`` directory on its base language model and its tower, which are used as they are.

    The adapter stays an adapter. Raises UserError if a file is missing or does not fit the base.
    """
    peft, directory = _require_peft(), Path(directory)
    missing = [name for name in ("config.json", _WEIGHTS_NAME, CONNECTOR_NAME) if not (directory / name).is_file()]
    if missing:
        raise UserError(
            f"{directory} is no adapter of a VLM: it has no {' and no '.join(missing)}; "
            "give the model/adapter directory of a LoRA run."
        )
    vlm = VLM(VLMConfig.from_pretrained(directory, local_files_only=True), vision_tower, language_model)
    connector, weights = load_file(directory / CONNECTOR_NAME), load_file(directory / _WEIGHTS_NAME)
    weights = {name.removeprefix(_PEFT_PREFIX): value for name, value in weights.items()}
    try:
        peft.inject_adapter_in_model(peft.LoraConfig.from_pretrained(str(directory)), vlm.language_model)
        found = peft.set_peft_model_state_dict(vlm.language_model, weights)
        vlm.load_state_dict(connector, strict=False)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"The adapter {directory} does not fit the base given ({reason}); give its own base."
        ) from error
    if strange := [*found.unexpected_keys, *(connector.keys() ^ _connector(vlm).keys())]:
        raise UserError(f"The adapter {directory} does not fit the base given ({strange[0]}, ...); give its own base.")
    return vlm.eval()


def _connector(vlm: VLM) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vlm.state_dict().items() if name.startswith(("compressor.", "projector."))}


def _merged_state(vlm: VLM) -> dict[str, torch.Tensor]:
    """The state of the model without adapters that computes what ``vlm`` does."""
    prefix = "language_model."
    layers = {prefix + name: layer for name, layer in _adapted_layers(vlm.language_model)}
    state = {}
    for name, value in vlm.state_dict().items():
        owner = name.partition(".base_layer.")[0]
        if owner not in layers and not any(part in name for part in (".lora_A.", ".lora_B.")):
            state[name] = value
    for owner, layer in layers.items():
        base: Any = layer.get_base_layer()
        state[f"{owner}.weight"] = _dense(base.weight) + layer.get_delta_weight("default").float()
        if base.bias is not None:
            state[f"{owner}.bias"] = base.bias
    return {name: _portable(value) for name, value in state.items()}


def _adapted_layers(language_model: nn.Module) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in language_model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _dense(weight: torch.Tensor) -> torch.Tensor:
    """A frozen weight in float32, also one that is held in four bits."""
    quantized = getattr(weight, "quant_state", None)
    if quantized is None:
        return weight.detach().float()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, quantized).float()


def _portable(value: torch.Tensor) -> torch.Tensor:
    return value.detach().cpu().contiguous()


def _hold_in_four_bits(language_model: PreTrainedModel) -> None:
    """Put bitsandbytes' layers in place of all linear ones but the output head, quantizing one by one."""
    if not torch.cuda.is_available():
        raise UserError(
            "lora.quantize nf4 needs an NVIDIA GPU, and torch sees none here; leave lora.quantize out (LoRA alone)."
        )
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            f"lora.quantize nf4 needs bitsandbytes ({error}); pip install 'vlmkit[lora]', or leave it out."
        ) from error
    head = language_model.get_output_embeddings()
    for module in list(language_model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.Linear) and layer is not head:
                held = bitsandbytes.nn.Linear4bit(
                    layer.in_features,
                    layer.out_features,
                    layer.bias is not None,
                    compute_dtype=torch.bfloat16,
                    quant_type="nf4",
                    device="meta",
                )
                weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
                held.weight = weight.to("cuda")  # quantizes
                held.bias = layer.bias
                setattr(module, name, held)


def _require_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError(f"LoRA needs peft ({error}); pip install 'vlmkit[lora]', or leave lora out.") from error
    return peft
