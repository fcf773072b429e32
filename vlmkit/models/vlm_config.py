"""The configuration of a VLM: everything that rebuilds it without its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from vlmkit.errors import UserError

# What configurations of language models call that which comes between hidden state and logits beside the output matrix.
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def transforms_logits(text_config: PreTrainedConfig) -> bool:
    """Whether logits are more than the output matrix times the hidden state."""
    return any(getattr(text_config, name, None) not in (None, 1, 1.0) for name in _LOGIT_TRANSFORMS)


def require_count(count: int, served: Sequence[int]) -> None:
    """Raise UserError, naming the numbers of visual tokens ``served``, unless ``count`` is one of them."""
    if count not in served:
        raise UserError(
            f"The model does not serve {count} visual tokens; it was trained for {', '.join(map(str, served))}: "
            "choose one of these."
        )


class VLMConfig(PreTrainedConfig):
    """Everything that rebuilds the model without its weights.

    ``vision_config`` is the tower's configuration (``models.towers``), ``text_config`` the language model's own;
    ``compressor`` and ``token_counts`` name what lies between: how, and into how many visual tokens (several where it
    is elastic); ``image_token_id`` marks their places; ``query`` says what a compressor is told of the question: llm,
    embed_mean or none (``models.questions``). ``prompt_order`` and ``condition_on`` say how the model was prompted in
    training: where images stand, and which question of a dialogue forms their tokens (``data.conversations``).
    """

    model_type = "vlmkit"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        vision_config: dict[str, Any] | None = None,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        compressor: str = "avgpool",
        token_counts: Sequence[int] = (16,),
        image_token_id: int | None = None,
        query: str = "llm",
        prompt_order: str = "image_first",
        condition_on: str = "first",
        **kwargs: Any,
    ) -> None:
        self.vision_config = vision_config or {}
        self.text_config = AutoConfig.for_model(**text_config) if isinstance(text_config, dict) else text_config
        self.compressor = compressor
        self.token_counts = sorted(token_counts)
        self.image_token_id = image_token_id
        self.query = query
        self.prompt_order = prompt_order
        self.condition_on = condition_on
        if isinstance(self.text_config, PreTrainedConfig):
            kwargs["tie_word_embeddings"] = self.text_config.tie_word_embeddings
            # The base class hands its own choice down: None would silently turn off the masks of a model in use.
            kwargs.setdefault("attn_implementation", self.text_config._attn_implementation)
        super().__init__(**kwargs)

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens of an image: the most that the model serves."""
        return self.token_counts[-1]

    def require_count(self, count: int) -> None:
        """Raise UserError, naming the counts that there are, unless the model serves this one."""
        require_count(count, self.token_counts)
