"""Training steps of a VLM at its true size on one device, with random weights: time, MFU, and memory against the plan.

    python benchmarks/vlm_step.py --device cuda --bf16

The cases: ``align`` (compressor and projector train beside a frozen language model), ``lora`` (its adapters too) and
``full`` (all of it, with checkpointed layers). A step is forward, backward, clipping and fused AdamW on a packed batch
in memory, with the tower in it; loading is left out. Samples are one image and a dialogue of three turns, like those of
LLaVA's mix. MFU is the model's FLOPs as the plan counts them, for the tokens there are, to those of products of large
random matrices, timed in turn with the steps; what checkpointing computes again is not counted. To see that it works:

    python benchmarks/vlm_step.py --llm micro --tower ViT-mini-8-64 --tokens 4 --batch 4 --cases align full --repeats 2
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import kernel_table, matrix_product, write_results
from PIL import Image

from vlmkit.config import VLMRecipe
from vlmkit.contracts import Batch
from vlmkit.data.sources.opener import open_conversations
from vlmkit.pipelines.plans.plan_flops import MeanSample, flops_per_sample
from vlmkit.pipelines.plans.plan_vlm import plan, planned_task
from vlmkit.pipelines.timing import interleaved_seconds
from vlmkit.pipelines.vlm_feed import VLMFeed
from vlmkit.pipelines.vlm_models import Stage, build_vlm, stage_settings
from vlmkit.recipe import load_recipe
from vlmkit.tasks.vlm import VLMTask
from vlmkit.training import distributed
from vlmkit.training.optim import Optimizer, clip_gradients

CASES = ["align", "lora", "full"]
QUESTION_WORDS, ANSWER_WORDS, TURNS = 10, 40, 3
MATRICES = "matrices"

Row = dict[str, Any]


def write_dialogues(folder: Path, count: int, side: int) -> str:
    """Dialogues of random words about images of noise, in LLaVA's form; returns the name of the source."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    words = ["red", "circle", "left", "three", "above", "what", "color", "sign", "the", "of", "square", "small"]
    records = []
    for number in range(count):
        Image.fromarray(noise.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        turns = []
        for speaker, length in [("human", QUESTION_WORDS), ("gpt", ANSWER_WORDS)] * TURNS:
            turns.append({"from": speaker, "value": " ".join(rng.choices(words, k=length))})
        records.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "dialogues.json").write_text(json.dumps(records))
    return f"llava:{folder / 'dialogues.json'}"


def recipe_of(case: str, data: str, args: argparse.Namespace) -> tuple[VLMRecipe, Stage]:
    """The recipe of a case, and its stage."""
    stage: Stage = "align" if case == "align" else "finetune"
    overrides: dict[str, Any] = {
        "stage": stage,
        "llm.name": args.llm,
        "llm.weights": "random",
        "llm.attention": args.attention,
        "llm.kernels": args.kernels,
        "llm.gradient_checkpointing": case == "full" or args.checkpointing,
        "vision_tower.name": args.tower,
        "compressor.name": args.compressor,
        "compressor.num_visual_tokens": args.tokens,
        "data.train": data,
        "data.val": None,
        "feature_cache": False,
        "max_length": args.max_length,
        f"{stage}.steps": 1,
        f"{stage}.epochs": None,
        f"{stage}.global_batch_size": args.batch,
        f"{stage}.device": args.device.type,
        f"{stage}.precision": "bf16" if args.bf16 else "fp32",
    }
    if case == "lora":
        overrides |= {"lora.r": 128, "lora.alpha": 256}
    recipe = load_recipe("train-vlm", None, overrides)
    assert isinstance(recipe, VLMRecipe)
    return recipe, stage


def mean_sample(batches: list[Batch], recipe: VLMRecipe) -> MeanSample:
    """The average sample of a step, by what its batches hold."""
    size = stage_settings(recipe, recipe.stage)[0].global_batch_size  # type: ignore[arg-type]
    blocks = sum(len(batch["image_index"]) for batch in batches)
    tokens = sum(int((batch["sequence_ids"] > 0).sum()) for batch in batches)
    asked = [int(batch["query_attention_mask"].sum()) for batch in batches if "query_attention_mask" in batch]
    count = max(recipe.compressor.counts)
    return MeanSample(
        images=sum(len(batch["pixel_values"]) for batch in batches) / size,
        blocks=blocks / size,
        sequences=sum(int(batch["sequence_ids"].amax(1).sum()) for batch in batches) / size,
        question_tokens=sum(asked) / blocks,
        text_tokens=(tokens - blocks * count) / size,
        labels=sum(batch["num_targets"] for batch in batches) / size,
        num_visual_tokens=count,
    )


def measure(case: str, data: str, args: argparse.Namespace) -> tuple[Row, str | None]:
    """A line for a case, and with --profile where its step spends the time."""
    recipe, stage = recipe_of(case, data, args)
    train, _ = stage_settings(recipe, stage)
    planned = plan(recipe, Path("run")).figures["stages"][stage]["memory_per_device"]
    context = distributed.setup(train.device)
    task = VLMTask(*build_vlm(recipe, stage, None, context), stage)
    model = distributed.wrap(task, train, context).train()
    optimizer = Optimizer(task, train.optim, total_steps=10**6)
    source = open_conversations(data)
    batches = [
        {name: value.to(context.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        for batch in next(VLMFeed(recipe, train, task, context, None).stream(source).steps(0))
    ]

    def step() -> float:
        with distributed.autocast(train, context):
            num_targets = task.begin_step(batches)
        total = 0.0
        for batch in batches:
            with distributed.autocast(train, context):
                loss = model(batch).loss_sum / num_targets
            loss.backward()
            total += float(loss.detach())
        clip_gradients(optimizer.parameters, train.optim.clip_norm)
        optimizer.step(0)
        return total

    for _ in range(2):  # kernels are compiled, and the optimizer's state exists
        step()
    on_cuda = context.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
        step()
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_cuda else float("nan")
    multiply, products = matrix_product(context.device, torch.bfloat16 if args.bf16 else torch.float32)
    seconds = interleaved_seconds({case: step, MATRICES: multiply}, args.repeats, context.device)
    sample = mean_sample(batches, recipe)
    with torch.device("meta"):
        parts = flops_per_sample(planned_task(recipe, stage).model, sample, recompute=False, cached=False)
    flops = args.batch * sum(part.total for part in parts.values())
    median, matrix_rate = statistics.median(seconds[case]), products / statistics.median(seconds[MATRICES])
    row = {
        "case": case,
        "attention": task.model.language_model.config._attn_implementation,
        "samples": args.batch,
        "tokens": round(args.batch * sample.tokens),
        "rows": sum(len(batch["input_ids"]) for batch in batches),
        "seconds": seconds[case],
        "samples/s": args.batch / median,
        "tokens/s": args.batch * sample.tokens / median,
        "TFLOP a step": flops / 1e12,
        "of it the llm's": parts["llm"].total * args.batch / flops,
        "matrix TFLOP/s": matrix_rate / 1e12,
        "MFU": flops / median / matrix_rate,
        "peak GB": peak,
        "planned GB": planned["total"] / 1e9,
    }
    return row, kernel_table(step, context.device) if args.profile else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--llm", default="7b")
    parser.add_argument("--tower", default="ViT-L-14-336")
    parser.add_argument("--compressor", default="quecc")
    parser.add_argument("--tokens", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32, help="samples of a step")
    parser.add_argument("--max-length", type=int, default=2048, help="tokens of a packed row")
    parser.add_argument("--attention", default="auto", choices=["auto", "sdpa", "flex"])
    parser.add_argument("--kernels", choices=["liger"])
    parser.add_argument("--checkpointing", action="store_true", help="checkpoint the layers in every case")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (default) or cuda")
    parser.add_argument("--bf16", action="store_true", help="bf16 instead of float32")
    parser.add_argument("--profile", action="store_true", help="write down where each step spends its time")
    parser.add_argument("--name", default="vlm_step", help="what the result files are called")
    args = parser.parse_args()
    rows, profiles = [], {}
    with tempfile.TemporaryDirectory() as folder:
        data = write_dialogues(Path(folder), args.batch, 336)
        for case in args.cases:
            row, profile = measure(case, data, args)
            print(row, flush=True)
            rows.append(row)
            if profile is not None:
                profiles[f"profile-{case}"] = profile
            gc.collect()
            if args.device.type == "cuda":
                torch.cuda.empty_cache()
    about = vars(args) | {"device": str(args.device)}
    files = write_results(args.name, args.device, about, rows, profiles)
    print(files[1].read_text() + "\nwritten: " + ", ".join(map(str, files)))


if __name__ == "__main__":
    main()
