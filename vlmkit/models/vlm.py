"""The vision-language model: vision tower, compressor, projector, and any causal language model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from vlmkit.config import CompressorConfig
from vlmkit.contracts import IGNORE_INDEX
from vlmkit.errors import UserError
from vlmkit.models.attention import Segments, packed_masks
from vlmkit.models.compressors import CompressorShape, build_compressor, compress_blocks
from vlmkit.models.projector import build_projector
from vlmkit.models.questions import question_encoder
from vlmkit.models.seeding import seeded
from vlmkit.models.towers import tower_from_config
from vlmkit.models.vision_tower import VisionTower
from vlmkit.models.vlm_config import VLMConfig, transforms_logits


@dataclass
class VLMOutput(CausalLMOutputWithPast):
    """Output of :class:`VLM`.

    Without labels, ``logits`` is [B, T, V]. With labels, only the n labelled positions get logits: ``logits`` [n, V]
    and ``targets`` [n] in row-major order, ``loss_sum`` their summed cross entropy and ``loss`` its mean.
    """

    loss_sum: torch.Tensor | None = None
    targets: torch.Tensor | None = None


_OUTPUT_FIELDS = frozenset(field.name for field in fields(VLMOutput))


class VLM(PreTrainedModel):
    """Visual tokens take the places of ``<image>`` in the text; the language model reads both.

    ``VLM(config)`` has fresh weights; parts given are used as they are. Images given as features leave the tower out.
    Raises UserError if the compressor cannot make one of ``config.token_counts`` of the tower's patch grid, or reads
    features that the tower does not have.
    """

    config_class = VLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: VLMConfig,
        vision_tower: VisionTower | None = None,
        language_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        tower = vision_tower if vision_tower is not None else tower_from_config(config.vision_config)
        llm = language_model if language_model is not None else AutoModelForCausalLM.from_config(config.text_config)
        text_width = llm.get_input_embeddings().get_parameter("weight").shape[1]
        self.question_encoder = question_encoder(config.query)
        shape = CompressorShape(
            tower.width,
            tower.num_layers,
            tower.patch_size,
            tower.grid,
            None if self.question_encoder is None else text_width,
            tuple(config.token_counts),
        )
        self.vision_tower = tower
        self.compressor = build_compressor(config.compressor, shape)
        tower.check_gives(self.compressor.requires)
        self.projector = build_projector(tower.width, text_width)
        self.language_model = llm
        self.post_init()

    @classmethod
    def join(
        cls,
        vision_tower: VisionTower,
        language_model: PreTrainedModel,
        compressor: CompressorConfig,
        image_token_id: int,
        seed: int,
    ) -> VLM:
        """A new model from a tower and a language model, used as they are.

        Compressor and projector get fresh weights, a function of ``seed`` alone.
        """
        config = VLMConfig(
            vision_tower.config,
            language_model.config,
            compressor.name,
            compressor.counts,
            image_token_id,
            compressor.query,
        )
        with seeded(seed):
            return cls(config, vision_tower, language_model)

    def _init_weights(self, module: nn.Module) -> None:
        # Every part initialises itself on construction; the default would overwrite the tower's own scheme.
        return

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    @torch.no_grad()
    def cacheable_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What may be computed once for an image while the tower is frozen: [B, P, C], for ``image_features``."""
        return self.encode_images(pixel_values)

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features of the tower as the compressor reads them: [B, P, C], with a gradient where the tower trains.

        What it holds is the compressor's ``cached_content``, of its ``cached_shape``.
        """
        features = self.vision_tower(pixel_values, self.compressor.requires, self.compressor.levels)
        return self.compressor.to_cache(features)

    def question_vector(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """What the compressor is told of right-padded questions, by ``config.query``: [B, H], without gradients."""
        assert self.question_encoder is not None
        vectors = self.question_encoder(self.language_model, input_ids, attention_mask)
        return vectors.to(next(self.projector.parameters()).dtype)  # the language model may be of another one

    def visual_tokens(
        self,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        query_input_ids: torch.Tensor | None = None,
        query_attention_mask: torch.Tensor | None = None,
        token_counts: Sequence[int] | None = None,
    ) -> torch.Tensor | None:
        """Visual tokens in the language model's width: [N, H], those of one block of ``<image>`` after another.

        None without images. They are given as pixels (uint8 or normalised, [I, 3, S, S]) or as their
        ``cacheable_features`` [I, P, C]; ``image_index`` [M] says which image each block shows (default: M = I, in
        order). A conditioned compressor needs the question of each block, right-padded: [M, Q]. ``token_counts`` (M
        integers) gives the tokens of each block, by default the most that the model serves. Raises UserError for a
        count it does not serve.
        """
        if image_features is None:
            if pixel_values is None:
                return None
            image_features = self.encode_images(pixel_values)
        features = image_features.to(next(self.projector.parameters()).dtype)
        if image_index is not None:
            features = features[image_index]
        query = None
        if self.compressor.conditioned:
            if query_input_ids is None or query_attention_mask is None:
                raise UserError(
                    f"The compressor {self.config.compressor} forms visual tokens for a question: "
                    "give query_input_ids and query_attention_mask, one row for each image."
                )
            query = self.question_vector(query_input_ids, query_attention_mask)
        counts = [self.config.num_visual_tokens] * len(features) if token_counts is None else token_counts
        for count in sorted({*counts}):
            self.config.require_count(count)
        return self.projector(compress_blocks(self.compressor, features, query, counts))

    def get_image_features(self, pixel_values: torch.Tensor, **query: Any) -> BaseModelOutputWithPooling:
        """The visual tokens [I, num_visual_tokens, H] of images, as ``pooler_output``: transformers' name for them."""
        tokens = self.visual_tokens(pixel_values, **query)
        assert tokens is not None
        return BaseModelOutputWithPooling(pooler_output=tokens.view(len(pixel_values), -1, tokens.shape[-1]))

    def merge(self, input_ids: torch.Tensor, visual: torch.Tensor | None) -> torch.Tensor:
        """Token embeddings [B, T, H] with visual tokens in the places of ``<image>``, in row-major order.

        Raises UserError if places and visual tokens differ in number.
        """
        embeds = self.get_input_embeddings()(input_ids)
        places = input_ids == self.config.image_token_id
        have = 0 if visual is None else len(visual)
        if (wanted := int(places.sum())) != have:
            raise UserError(
                f"The text has places for {wanted} visual tokens but the images give {have}; "
                f"put {self.config.num_visual_tokens} <image> tokens in the text for every image."
            )
        if visual is None:
            return embeds
        return embeds.masked_scatter(places[..., None], visual.to(embeds.dtype))

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        query_input_ids: torch.Tensor | None = None,
        query_attention_mask: torch.Tensor | None = None,
        token_counts: Sequence[int] | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        sequence_ids: torch.Tensor | None = None,
        branch_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> VLMOutput:
        """Logits, or with ``labels`` [B, T] (IGNORE_INDEX elsewhere) the loss at the labelled positions only.

        Padded rows come with ``attention_mask`` [B, T]; packed ones with ``sequence_ids``, ``branch_ids`` and
        ``position_ids`` [B, T], as in :class:`vlmkit.models.attention.Segments`. The rest is as in
        :meth:`visual_tokens`.
        """
        visual = self.visual_tokens(
            pixel_values, image_features, image_index, query_input_ids, query_attention_mask, token_counts
        )
        embeds = self.merge(input_ids, visual)
        if visual is None and self.training:
            embeds = embeds + self._no_image_anchor(input_ids)
        mask: Any = attention_mask
        if sequence_ids is not None and branch_ids is not None and position_ids is not None:
            segments = Segments(sequence_ids, branch_ids, position_ids)
            mask = packed_masks(self.language_model.config, segments, embeds.dtype)
        inputs = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": position_ids, **kwargs}
        if labels is None:
            output = self.language_model(**inputs)
            # By whatever names this release of transformers has: its cache field was renamed in 5.24.
            return VLMOutput(**{name: value for name, value in output.items() if name in _OUTPUT_FIELDS})
        # Without use_cache=False, transformers takes packed rows for one long row (silently wrong).
        inputs["use_cache"] = False
        kept = labels[:, 1:] != IGNORE_INDEX
        targets = labels[:, 1:][kept]
        logits = self._logits_at(kept, inputs)
        loss_sum = F.cross_entropy(logits.float(), targets, reduction="sum")
        return VLMOutput(loss=loss_sum / max(1, len(targets)), loss_sum=loss_sum, logits=logits, targets=targets)

    def _logits_at(self, kept: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Logits [n, V] that predict the labels kept ([B, T - 1]); the vocabulary is not computed anywhere else."""
        if transforms_logits(self.config.text_config):
            return self.language_model(**inputs).logits[:, :-1][kept]
        hidden = self.language_model.get_decoder()(**inputs).last_hidden_state
        return self.get_output_embeddings()(hidden[:, :-1][kept])

    def _no_image_anchor(self, input_ids: torch.Tensor) -> torch.Tensor:
        """A zero that depends on all that reads images, so that all ranks reduce the same gradients on any batch."""
        tower, weight = self.vision_tower, next(self.projector.parameters())
        if any(parameter.requires_grad for parameter in tower.parameters()):
            black = torch.zeros(1, 3, tower.image_size, tower.image_size, dtype=torch.uint8, device=weight.device)
            encoded = self.encode_images(black).to(weight.dtype)
        else:
            encoded = weight.new_zeros(1, *self.compressor.cached_shape)
        features, query = self.compressor.from_cache(encoded), None
        if self.compressor.conditioned:
            # A question, too, is read on every rank: a sharded language model waits for all of them.
            token = input_ids[:1, :1]
            query = self.question_vector(token, torch.ones_like(token))
        return 0.0 * self.projector(self.compressor(features, query, self.config.num_visual_tokens)).sum()

    def end_answers_at(self, token_ids: Sequence[int]) -> None:
        """Let ``generate`` stop at any of these tokens unless told otherwise: from now on, and where it is saved."""
        for holder in (self.config.text_config, self.language_model.config, self.language_model.generation_config):
            holder.eos_token_id = [*token_ids]

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        query_input_ids: torch.Tensor | None = None,
        query_attention_mask: torch.Tensor | None = None,
        token_counts: Sequence[int] | None = None,
        **generation: Any,
    ) -> torch.Tensor:
        """New tokens only, [B, <= max_new_tokens]: prompts that end together in, greedy unless told otherwise.

        An answer ends at the tokens of :meth:`end_answers_at`, in a trained model those of its chat template.

        ``generation`` goes to the language model's ``generate`` (max_new_tokens, eos_token_id, pad_token_id, ...).
        """
        visual = self.visual_tokens(
            pixel_values, image_features, image_index, query_input_ids, query_attention_mask, token_counts
        )
        embeds = self.merge(input_ids, visual)
        return self.language_model.generate(  # type: ignore[operator]
            inputs_embeds=embeds, attention_mask=attention_mask, **{"do_sample": False, **generation}
        )


AutoConfig.register(VLMConfig.model_type, VLMConfig)
AutoModel.register(VLMConfig, VLM)
AutoModelForImageTextToText.register(VLMConfig, VLM)
