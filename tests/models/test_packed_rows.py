"""Packed rows through whole VLMs: losses and gradients of separate sequences, nothing seen across, images in place."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Sequence
from functools import cache

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from vlmkit import registry
from vlmkit.config import CompressorConfig
from vlmkit.contracts import IGNORE_INDEX, Batch
from vlmkit.data.conversations.conversations import Branch, EncodedSequence
from vlmkit.data.conversations.packing import ConversationItem, PackingCollate
from vlmkit.errors import UserError
from vlmkit.models.attention import FLEX, Segments, packed_masks, set_attention
from vlmkit.models.kernels import use_liger
from vlmkit.models.open_clip_layout import config_from_facts
from vlmkit.models.vision_tower import VisionTower
from vlmkit.models.vlm import VLM

TOWER = config_from_facts(registry.VisionTowerFacts("t", width=16, layers=2, heads=2, patch_size=8, image_size=32))
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,  # large, so that what a token sees shows in its loss
    "pad_token_id": 0,
}
WINDOW = 6
LLMS: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(**SHAPE),
    "qwen2 windowed": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "llama": LlamaConfig(**SHAPE),
    "phi": PhiConfig(**SHAPE),
    "phi3": Phi3Config(**SHAPE),
    "phi3 windowed": Phi3Config(**SHAPE, sliding_window=WINDOW),
    "mistral windowed": MistralConfig(**SHAPE, sliding_window=WINDOW),
    "gemma2 windowed": Gemma2Config(**SHAPE, head_dim=16, query_pre_attn_scalar=16, sliding_window=WINDOW),
}
IMAGE, TOKENS = 5, 4


@cache
def make(llm: str, attention: str = "eager") -> VLM:
    torch.manual_seed(0)
    language_model = AutoModelForCausalLM.from_config(LLMS[llm], attn_implementation=attention)
    compressor = CompressorConfig(name="avgpool", num_visual_tokens=TOKENS)
    return VLM.join(VisionTower(TOWER), language_model, compressor, IMAGE, 0).train()


def tokens(generator: torch.Generator, count: int) -> list[int]:
    return torch.randint(6, 64, (count,), generator=generator).tolist()


def item(seed: int, prefix: int, branches: Sequence[int], images: int = 0) -> ConversationItem:
    """A sample with ``images`` blocks of places at the end of its prefix and about half of each branch labelled."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in branches:
        ids = tokens(generator, length)
        made.append(Branch(ids, [IGNORE_INDEX] * (length // 2 + 1) + ids[length // 2 + 1 :]))
    before = tokens(generator, prefix) + [IMAGE] * (TOKENS * images)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator) if images else None
    return ConversationItem([EncodedSequence(before, made, list(range(images)), [], TOKENS)], pixels)


def items() -> list[ConversationItem]:
    """Text alone, one image with three branches, two images, a dialogue without prefix, one image."""
    shapes = [(0, [9], 0), (3, [5, 7, 4], 1), (2, [6, 12], 2), (0, [14], 0), (4, [8], 1)]
    return [item(seed, *shape) for seed, shape in enumerate(shapes)]


def pack(given: Sequence[ConversationItem], max_length: int = 40) -> Batch:
    return PackingCollate(max_length, pad_token_id=0)(given)


def run(model: VLM, batch: Batch) -> torch.Tensor:
    """The summed loss of a batch of the collate."""
    return model(**{name: value for name, value in batch.items() if name != "num_targets"}).loss_sum


def one_by_one(model: VLM, given: Sequence[ConversationItem]) -> torch.Tensor:
    """Every branch behind its own copy of the prefix, alone in its row, with no mask and no positions."""
    total = torch.zeros(())
    for one in given:
        (sequence,) = one.sequences
        for branch in sequence.branches:
            ids = torch.tensor([sequence.prefix + branch.ids])
            labels = torch.tensor([[IGNORE_INDEX] * len(sequence.prefix) + branch.labels])
            total = total + model(input_ids=ids, labels=labels, pixel_values=one.images).loss_sum
    return total


def padded(model: VLM, given: Sequence[ConversationItem]) -> torch.Tensor:
    """The same in one batch of padded rows under a plain mask."""
    rows = [
        (sequence.prefix + branch.ids, [IGNORE_INDEX] * len(sequence.prefix) + branch.labels, one.images)
        for one in given
        for sequence in one.sequences
        for branch in sequence.branches
    ]
    width = max(len(ids) for ids, _, _ in rows)
    return model(
        input_ids=torch.tensor([ids + [0] * (width - len(ids)) for ids, _, _ in rows]),
        labels=torch.tensor([labels + [IGNORE_INDEX] * (width - len(labels)) for _, labels, _ in rows]),
        attention_mask=torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _, _ in rows]),
        pixel_values=torch.cat([images for _, _, images in rows if images is not None]),
    ).loss_sum


def gradients(model: VLM, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("llm", "attention"), [(llm, "eager") for llm in LLMS] + [("qwen2 windowed", "sdpa"), ("llama", "sdpa")]
)
def test_packed_equals_padded_equals_one_by_one(llm: str, attention: str) -> None:
    model = make(llm, attention)
    batch = pack(items())
    assert 1 < batch["input_ids"].shape[0] < 5, "the test needs several rows of several sequences"
    losses = {"packed": run(model, batch), "padded": padded(model, items()), "one by one": one_by_one(model, items())}
    expected = losses["one by one"]
    grads = {name: gradients(model, loss) for name, loss in losses.items()}
    for name in ("packed", "padded"):
        torch.testing.assert_close(losses[name], expected, rtol=1e-5, atol=1e-5)
        assert grads[name].keys() == grads["one by one"].keys()
        for parameter, ours in grads[name].items():
            theirs = grads["one by one"][parameter]
            error = (ours - theirs).norm() / theirs.norm().clamp(min=1e-3)
            assert error < 1e-5, f"{name}: {parameter} is off by {error:.1e}"


def losses_by_place(model: VLM, batch: Batch) -> torch.Tensor:
    """The loss of every labelled place [R, T], 0 elsewhere."""
    with torch.no_grad():
        output = model(**{name: value for name, value in batch.items() if name != "num_targets"})
    losses = torch.zeros(batch["labels"].shape)
    losses[:, 1:][batch["labels"][:, 1:] != IGNORE_INDEX] = F.cross_entropy(
        output.logits, output.targets, reduction="none"
    )
    return losses


@pytest.mark.parametrize("llm", ["llama", "gemma2 windowed"])
@pytest.mark.parametrize("changed", range(5))
def test_no_sample_sees_another(llm: str, changed: int) -> None:
    """Other words and images in one sample leave the losses of all others as they are, to the last bit."""
    model, given = make(llm), items()
    before = pack(given)
    shape = [(0, [9], 0), (3, [5, 7, 4], 1), (2, [6, 12], 2), (0, [14], 0), (4, [8], 1)][changed]
    after = pack([*given[:changed], item(99, *shape), *given[changed + 1 :]])
    places = (before["input_ids"] != after["input_ids"]).nonzero()
    touched = {(row, int(before["sequence_ids"][row, place])) for row, place in places.tolist()}
    assert len(touched) == 1
    ((row, number),) = touched
    own = torch.zeros_like(before["sequence_ids"], dtype=torch.bool)
    own[row] = before["sequence_ids"][row] == number
    old, new = losses_by_place(model, before), losses_by_place(model, after)
    assert torch.equal(old[~own], new[~own]) and not torch.equal(old[own], new[own])


def test_no_branch_sees_another() -> None:
    model = make("llama")
    (one,) = [item(1, 3, [5, 7, 4], 1)]
    (sequence,) = one.sequences
    other = Branch(tokens(torch.Generator().manual_seed(9), 7), sequence.branches[1].labels)
    changed = EncodedSequence(sequence.prefix, [sequence.branches[0], other, sequence.branches[2]], [0], [], TOKENS)
    before, after = pack([one]), pack([ConversationItem([changed], one.images)])
    old, new = losses_by_place(model, before), losses_by_place(model, after)
    second = before["branch_ids"] == 2
    assert torch.equal(old[~second], new[~second]) and not torch.equal(old[second], new[second])


def test_swapped_images_change_exactly_the_answers_about_them() -> None:
    model = make("llama")
    given = items()
    first, second = given[1], given[4]
    assert first.images is not None and second.images is not None
    swapped = [
        given[0],
        ConversationItem(first.sequences, second.images),
        given[2],
        given[3],
        ConversationItem(second.sequences, first.images),
    ]
    batch = pack(given)
    old, new = losses_by_place(model, batch), losses_by_place(model, pack(swapped))
    about = torch.zeros_like(old, dtype=torch.bool)
    for one in (first, second):
        wanted = torch.tensor([*one.sequences[0].prefix, *one.sequences[0].branches[0].ids])
        for row, ids in enumerate(batch["input_ids"]):
            for start in range(len(ids) - len(wanted) + 1):
                if torch.equal(ids[start : start + len(wanted)], wanted):
                    about[row, start : start + len(one.sequences[0])] = True
    labelled = batch["labels"] != IGNORE_INDEX
    assert torch.equal((old != new) & labelled, about & labelled) and about.any()


def test_masks_of_all_implementations_say_the_same() -> None:
    """flex attention's rule, asked for every pair, against the mask that is added to the scores."""
    from torch.nn.attention.flex_attention import create_mask

    batch = pack(items())
    segments = Segments(batch["sequence_ids"], batch["branch_ids"], batch["position_ids"])
    rows, length = batch["input_ids"].shape
    config = LLMS["gemma2 windowed"]
    config._attn_implementation = "eager"
    masks = packed_masks(config, segments, torch.float32)
    assert isinstance(masks, dict)
    for kind, window in (("full_attention", None), ("sliding_attention", WINDOW)):
        mask = create_mask(segments.visibility(window), rows, None, length, length, device="cpu")
        assert torch.equal(masks[kind] == 0, mask)
        assert mask.any(-1).all(), "a token that sees none gives NaN"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="flex attention is compiled, and there is no C++ compiler")
@pytest.mark.parametrize(("precision", "rounding"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_flex_attention_goes_by_its_masks_in_every_layer(precision: str, rounding: float) -> None:
    """The loss alone: on a CPU flex attention has no gradients."""
    torch._dynamo.reset()  # on a CPU it does not compile for shapes that change
    reference, batch = make("gemma2 windowed"), pack(items())
    model = copy.deepcopy(reference)
    model.language_model.set_attn_implementation(FLEX)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        torch.testing.assert_close(run(model, batch), run(reference, batch), rtol=rounding, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("llm", ["llama", "phi", "qwen2 windowed", "phi3 windowed", "gemma2 windowed"])
def test_flex_attention_on_a_gpu_is_the_reference_on_the_cpu(llm: str, precision: str) -> None:
    device, batch = torch.device("cuda"), pack(items())
    expected = run(make(llm), batch)
    reference = gradients(make(llm), expected)
    model = copy.deepcopy(make(llm)).to(device)  # type: ignore[arg-type]
    set_attention(model.language_model, "flex", device)
    assert model.language_model.config._attn_implementation == FLEX
    moved = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        loss = run(model, moved)
    found = gradients(model, loss)
    # Eager attention in bf16 on a CPU is off by up to 2.4 % in the gradients of these models.
    rounding, of_gradients = (1e-4, 1e-4) if precision == "fp32" else (2e-2, 5e-2)
    torch.testing.assert_close(loss.cpu(), expected, rtol=rounding, atol=0)
    ours, theirs = (torch.cat([grads[name].flatten().cpu() for name in reference]) for grads in (found, reference))
    assert found.keys() == reference.keys() and (ours - theirs).norm() < of_gradients * theirs.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here")
@pytest.mark.parametrize("llm", ["llama", "qwen2", "phi3"])
def test_liger_kernels_change_neither_loss_nor_gradients(llm: str) -> None:
    pytest.importorskip("liger_kernel", reason="the extra gpu (liger-kernel) is not installed")
    device = torch.device("cuda")
    moved = {name: value.to(device) if torch.is_tensor(value) else value for name, value in pack(items()).items()}
    model = copy.deepcopy(make(llm)).to(device)  # type: ignore[arg-type]
    expected = run(model, moved)
    reference = gradients(model, expected)
    architecture = vars(sys.modules[type(model.language_model).__module__])
    before = dict(architecture)
    try:
        use_liger(model.language_model, device)
        assert any("liger" in module.forward.__module__ for module in model.language_model.modules())
        loss = run(model, moved)
        found = gradients(model, loss)
    finally:
        architecture.update(before)  # else later tests on the CPU would run Triton kernels
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    ours, theirs = (torch.cat([grads[name].flatten() for name in reference]) for grads in (found, reference))
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def test_a_window_longer_than_the_rows_is_none() -> None:
    batch = pack(items())
    segments = Segments(batch["sequence_ids"], batch["branch_ids"], batch["position_ids"])
    config = Gemma2Config(**SHAPE, sliding_window=4096, attn_implementation="eager")
    masks = packed_masks(config, segments, torch.float32)
    assert isinstance(masks, dict) and masks["full_attention"] is masks["sliding_attention"]


def test_what_cannot_be_packed_or_computed_is_refused() -> None:
    batch = pack(items())
    segments = Segments(batch["sequence_ids"], batch["branch_ids"], batch["position_ids"])
    mixed = Qwen2Config(**SHAPE, attn_implementation="sdpa")
    mixed.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(UserError, match="layers of the kind linear_attention, which cannot keep the sequences"):
        packed_masks(mixed, segments, torch.float32)
    cpu = torch.device("cpu")
    mamba = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=16, hidden_size=8, state_size=2, num_hidden_layers=1)
    )
    with pytest.raises(UserError, match="mamba models carry a state from token to token"):
        set_attention(mamba, "auto", cpu)
    with pytest.raises(UserError, match=r"llm\.attention flex cannot be had: .* NVIDIA GPUs only"):
        set_attention(make("llama").language_model, "flex", cpu)
    with pytest.raises(UserError, match=r"llm\.attention sdpa cannot be had: gemma2 models"):
        set_attention(make("gemma2 windowed").language_model, "sdpa", cpu)
    with pytest.raises(UserError, match=r"llm\.kernels liger runs on NVIDIA GPUs only"):
        use_liger(make("llama").language_model, cpu)
    set_attention(make("gemma2 windowed").language_model, "auto", cpu)
    assert make("gemma2 windowed").language_model.config._attn_implementation == "eager"
