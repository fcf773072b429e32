"""Question vectors: what a compressor is told of the question, and the store of those of a frozen language model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from vlmkit.models.attention import plain_attention

MAX_BYTES = 64 * 2**20
"""Question states kept at most: 4096 at a width of 4096 in float32."""

Ids = tuple[int, ...]


@torch.no_grad()
def last_states(llm: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The last hidden state (after the final norm) at the last token of each question: [B, H].

    The questions stand alone, right-padded, each of at least one token (arXiv 2411.03312, Figure 5); no vocabulary
    logits are computed. The language model runs in evaluation mode: dropout would make a state of chance.
    """
    lengths = attention_mask.sum(dim=1)
    decoder = llm.get_decoder()
    with _evaluation_mode(decoder), plain_attention(llm):
        states = decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    return states[torch.arange(len(lengths), device=lengths.device), lengths - 1]


@torch.no_grad()
def mean_embeddings(llm: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The mean of the input embeddings of each question's tokens: [B, H]."""
    embeddings, mask = llm.get_input_embeddings()(input_ids), attention_mask.unsqueeze(-1)
    return (embeddings * mask).sum(dim=1) / mask.sum(dim=1)


class QuestionStates:
    """The :func:`last_states` of a language model, each computed once for as long as its weights stay as they are.

    The store is in memory, holds the most recently used questions, and serves only a language model that is frozen or
    in evaluation mode, and not sharded. It is emptied when a model that trains is seen, or one with other weights than
    before.
    """

    def __init__(self) -> None:
        self._states: OrderedDict[tuple[bool, Ids], torch.Tensor] = OrderedDict()
        self._weights: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self._states)

    def __call__(self, llm: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The states of right-padded questions: [B, H], without gradients."""
        parameters = [*llm.parameters()]
        trains = llm.training and any(parameter.requires_grad for parameter in parameters)
        # Ranks that share a sharded model have to run it equally often, whatever each of them has stored.
        if trains or any(isinstance(parameter, DTensor) for parameter in parameters):
            self._states.clear()
            return last_states(llm, input_ids, attention_mask)
        if (weights := _identity(parameters)) != self._weights:
            self._states.clear()
            self._weights = weights
        # A training run must go on bit for bit after a resume, so what it reads cannot depend on the questions that
        # shared a batch: there, each is computed alone. Elsewhere new questions are computed together.
        alone = torch.is_grad_enabled()
        lengths = attention_mask.sum(dim=1).tolist()
        asked = [tuple(row[:length]) for row, length in zip(input_ids.tolist(), lengths, strict=True)]
        new = {ids: row for row, ids in enumerate(asked) if (alone, ids) not in self._states}
        found = {ids: self._states[alone, ids] for ids in asked if ids not in new}
        batches = [[row] for row in new.values()] if alone else [[*new.values()]]
        for rows in filter(None, batches):
            longest = max(lengths[row] for row in rows)
            states = last_states(llm, input_ids[rows, :longest], attention_mask[rows, :longest])
            found |= {asked[row]: state for row, state in zip(rows, states, strict=True)}
        for ids in asked:
            self._states[alone, ids] = found[ids]
            self._states.move_to_end((alone, ids))
        result = torch.stack([found[ids] for ids in asked])
        while len(self._states) > MAX_BYTES // result[0].nbytes:
            self._states.popitem(last=False)
        return result


def _identity(parameters: Sequence[nn.Parameter]) -> tuple[tuple[int, int], ...]:
    """Where each parameter lies and how often it was written: equal as long as the weights are untouched."""
    # A tensor made in inference mode counts no writes, and cannot be trained either.
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters)


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


QuestionEncoder = Callable[[PreTrainedModel, torch.Tensor, torch.Tensor], torch.Tensor]
"""(language model, ids [B, Q], mask [B, Q]) -> question vectors [B, H]."""


def question_encoder(name: str) -> QuestionEncoder | None:
    """The encoder of a recipe's ``compressor.query``: llm, embed_mean or none."""
    if name == "llm":
        return QuestionStates()
    return {"embed_mean": mean_embeddings, "none": None}[name]
