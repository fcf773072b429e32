"""From a pretraining recipe to its task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import nn

from vlmkit.config import ObjectiveConfig, PretrainRecipe
from vlmkit.errors import UserError
from vlmkit.losses.token_frequency import TokenFrequency
from vlmkit.models.contrastive import ContrastiveHead, published_text, text_config
from vlmkit.models.open_clip_layout import check_embed_dim
from vlmkit.models.superclass import SuperClassHead
from vlmkit.models.vision_tower import VisionTower, build_tower, tower_config, weights_directory
from vlmkit.tasks.classification import ClassificationObjective
from vlmkit.tasks.contrastive import ContrastiveObjective
from vlmkit.tasks.pretraining import PretrainingTask

if TYPE_CHECKING:
    from vlmkit.data.caption_tokenizers import LabelTokenizer
    from vlmkit.data.corpus import CorpusCounts

_CLASSIFIES = ("superclass", "superclip")
_MATCHES = ("clip", "siglip", "superclip", "lit")


def needs(objective: ObjectiveConfig) -> frozenset[str]:
    """What an objective reads of the captions: which of ``label_ids`` and ``text_ids`` its batches hold."""
    keys = {"label_ids": objective.name in _CLASSIFIES, "text_ids": objective.name in _MATCHES}
    return frozenset(key for key, needed in keys.items() if needed)


def build_task(
    recipe: PretrainRecipe, labels: LabelTokenizer | None, corpus: CorpusCounts | None = None
) -> PretrainingTask:
    """The task of ``recipe``, its fresh weights a function of the seed alone; float32, on the CPU.

    ``labels`` are needed where the objective classifies, ``corpus`` where ``labels.idf`` is "corpus".

    A superclip ViT pools its class token unless told otherwise (SuperCLIP, arXiv 2512.14480). Raises UserError for what
    ``build_tower`` refuses (another pooling than that of given weights, for one), for a lit tower without trained
    weights, and for shapes of a text tower that do not fit.
    """
    objective = recipe.objective
    tower = _tower(recipe)
    classification = contrastive = None
    if objective.name in _CLASSIFIES:
        assert labels is not None
        classification = _classification(recipe, tower, labels, corpus)
    if objective.name in _MATCHES:
        contrastive = _contrastive(recipe, tower)
    weights = {"classification": objective.class_weight, "contrastive": objective.contrastive_weight}
    return PretrainingTask(
        tower,
        classification=classification,
        contrastive=contrastive,
        weights=weights if objective.name == "superclip" else None,
        freeze_tower=objective.name == "lit",
    )


def parts_of(recipe: PretrainRecipe, num_labels: int) -> dict[str, nn.Module]:
    """The modules of ``build_task`` by name, in their shapes with fresh weights: to be counted, on the meta device.

    ``num_labels`` is the size of the label vocabulary. Raises UserError as ``build_task`` does.
    """
    settings, objective = recipe.tower, recipe.objective.name
    tower = VisionTower(tower_config(settings.name, settings.image_size, _pooling(recipe)))
    parts: dict[str, nn.Module] = {"vision tower": tower}
    if objective in _CLASSIFIES:
        parts["classification head"] = SuperClassHead(tower.width, num_labels)
    if objective in _MATCHES:
        parts["text tower"] = _contrastive_head(recipe, tower)
    return parts


def _tower(recipe: PretrainRecipe) -> VisionTower:
    settings = recipe.tower
    tower = build_tower(settings.name, settings.image_size, recipe.seed, _pooling(recipe))
    tower.set_gradient_checkpointing(settings.gradient_checkpointing)
    return tower


def _pooling(recipe: PretrainRecipe) -> Literal["avg", "tok", "map"] | None:
    settings, objective = recipe.tower, recipe.objective.name
    fresh = weights_directory(settings.name) is None
    if objective == "lit" and fresh:
        raise UserError(
            f"The objective lit freezes a trained tower, but {settings.name} would start from fresh weights; "
            "give --tower a run of the objective superclass."
        )
    if objective == "superclip" and fresh and settings.pooling is None:
        return _class_token(settings.name)
    return settings.pooling


def _class_token(name: str) -> Literal["tok"] | None:
    """The pooling tok for a plain ViT; None, the tower's own, for others."""
    vision = tower_config(name)["model_cfg"]["vision_cfg"]
    return None if "timm_model_name" in vision or vision.get("attentional_pool") else "tok"


def _classification(
    recipe: PretrainRecipe, tower: VisionTower, labels: LabelTokenizer, corpus: CorpusCounts | None
) -> ClassificationObjective:
    settings = recipe.labels
    assert (corpus is not None) == (settings.idf == "corpus")
    frequency = TokenFrequency(labels.vocab_size, settings.idf_formula, settings.idf_frozen_after, corpus)
    head = SuperClassHead(tower.width, labels.vocab_size, recipe.seed)
    return ClassificationObjective(head, frequency, labels, recipe.objective.loss, settings.idf != "none")


def _contrastive(recipe: PretrainRecipe, tower: VisionTower) -> ContrastiveObjective:
    return ContrastiveObjective(_contrastive_head(recipe, tower), _kind(recipe))


def _kind(recipe: PretrainRecipe) -> Literal["clip", "siglip"]:
    return "siglip" if recipe.objective.name == "siglip" else "clip"


def _contrastive_head(recipe: PretrainRecipe, tower: VisionTower) -> ContrastiveHead:
    published = published_text(tower, recipe.tower.name)
    text_cfg, embed_dim = text_config(tower.width, recipe.objective.text, published)
    check_embed_dim(tower.config, embed_dim)
    quick_gelu = tower.config["model_cfg"]["quick_gelu"]
    head = ContrastiveHead(tower.width, text_cfg, embed_dim, _kind(recipe), quick_gelu=quick_gelu, seed=recipe.seed)
    head.text.set_grad_checkpointing(recipe.tower.gradient_checkpointing)
    return head
