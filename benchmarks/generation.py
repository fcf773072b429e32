"""Greedy answers to questions about images: vlmkit in batches, vlmkit one by one, and the loop of the papers' scripts.

    python benchmarks/generation.py

``loop`` is LLaVA's evaluation (``model_vqa_loader.py``, which the papers' scripts are copies of) on the same model: for
every question the image is padded, resized and run through the tower, and the whole prompt is read and answered alone.
``one by one`` is the runner's answerer at batch 1, which shares the tower and the prompt's beginning between the
questions of an image; ``batched`` is the same at ``--batch``. Images and questions are those of the embedded world's
test split; weights are random, so every answer is made to have ``--new-tokens`` tokens. Decoding image files is left
out. Answers must be equal, or the script stops.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from measuring import write_results

from vlmkit.config import CompressorConfig, LLMConfig
from vlmkit.data.conversations.conversations import ConversationEncoder
from vlmkit.data.images import decode_image
from vlmkit.evals.benchmarks import open_benchmark
from vlmkit.evals.generation import GreedyAnswerer, ImagePrompts
from vlmkit.evals.runner import WINDOW_BATCHES
from vlmkit.models.llm import load_llm
from vlmkit.models.towers import find_tower
from vlmkit.models.vlm import VLM
from vlmkit.pipelines.timing import interleaved_seconds

Answers = list[str]


def build(args: argparse.Namespace) -> tuple[VLM, ConversationEncoder]:
    """A VLM with random weights, and its encoder."""
    llm, tokenizer = load_llm(LLMConfig(name=args.llm), seed=0)
    choice = CompressorConfig(name=args.compressor, num_visual_tokens=args.tokens)
    vlm = VLM.join(find_tower(args.tower).eval(), llm, choice, tokenizer.get_vocab()["<image>"], seed=0).eval()
    # No answer ends early: the candidates generate equally many tokens.
    vlm.language_model.generation_config.min_new_tokens = args.new_tokens
    return vlm.to(args.device), ConversationEncoder(tokenizer, args.tokens, 2048, vlm.compressor.conditioned)


def in_windows(
    vlm: VLM, encoder: ConversationEncoder, decoded: list[ImagePrompts], batch_size: int, new_tokens: int
) -> Answers:
    """As the runner does."""
    answerer = GreedyAnswerer(vlm, encoder, batch_size=batch_size, max_new_tokens=new_tokens)
    answers: Answers = []
    size = WINDOW_BATCHES * batch_size
    for start in range(0, len(decoded), size):
        window = [
            ImagePrompts(item.id, [answerer.transform(image) for image in item.images], item.prompts)
            for item in decoded[start : start + size]
        ]
        answers += [text for texts in answerer.answer(window) for text in texts]
    return answers


@torch.inference_mode()
def in_a_loop(vlm: VLM, encoder: ConversationEncoder, decoded: list[ImagePrompts], new_tokens: int) -> Answers:
    """As the papers' scripts do: one question after another, each from its pixels on."""
    transform = GreedyAnswerer(vlm, encoder, batch_size=1).transform
    answers: Answers = []
    for item in decoded:
        for question in item.prompts:
            pixels = torch.stack([transform(image) for image in item.images])
            prompt = encoder.prompt(question, len(item.images))
            ids = torch.tensor([prompt.ids], device=vlm.device)
            query = torch.tensor([prompt.query or [0]], device=vlm.device)
            new = vlm.generate(
                ids,
                torch.ones_like(ids),
                pixel_values=pixels.to(vlm.device),
                query_input_ids=query,
                query_attention_mask=torch.ones_like(query),
                max_new_tokens=new_tokens,
                pad_token_id=encoder.tokenizer.pad_token_id,
            )
            answers.append(encoder.tokenizer.decode(new[0], skip_special_tokens=True).strip())
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="tiny")
    parser.add_argument("--tower", default="ViT-mini-8-64")
    parser.add_argument("--compressor", default="avgpool")
    parser.add_argument("--tokens", type=int, default=4, help="visual tokens of an image")
    parser.add_argument("--scenes", type=int, default=16, help="images; each has several questions")
    parser.add_argument("--new-tokens", type=int, default=8, help="tokens of an answer")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (default) or cuda")
    parser.add_argument("--name", default="generation", help="what the result files are called")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    vlm, encoder = build(args)
    benchmark = open_benchmark(f"miniworld:test?scenes={args.scenes}")
    decoded = []
    for sample in benchmark.samples:  # type: ignore[attr-defined]
        images = [decode_image(image) for image in sample.read_images()]
        decoded.append(ImagePrompts(sample.id, images, [question.prompt for question in benchmark.questions(sample)]))
    candidates: dict[str, Callable[[], Answers]] = {
        "loop": lambda: in_a_loop(vlm, encoder, decoded, args.new_tokens),
        "one by one": lambda: in_windows(vlm, encoder, decoded, 1, args.new_tokens),
        "batched": lambda: in_windows(vlm, encoder, decoded, args.batch, args.new_tokens),
    }
    answers = {name: run() for name, run in candidates.items()}
    equal = {name: sum(map(str.__eq__, given, answers["loop"])) for name, given in answers.items()}
    questions = len(answers["loop"])
    if min(equal.values()) < questions:
        raise SystemExit(f"Of {questions} answers, so many are those of the loop: {equal}.")
    seconds = interleaved_seconds(candidates, args.repeats, args.device)
    base, single = (statistics.median(seconds[name]) for name in ("loop", "one by one"))
    rows: list[dict[str, Any]] = [
        {
            "candidate": name,
            "batch": args.batch if name == "batched" else 1,
            "seconds": times,
            "answers/s": questions / statistics.median(times),
            "speed of the loop": base / statistics.median(times),
            "speed of one by one": single / statistics.median(times),
        }
        for name, times in seconds.items()
    ]
    about = vars(args) | {"device": str(args.device), "questions": questions, "equal answers": questions}
    files = write_results(args.name, args.device, about, rows)
    print(files[1].read_text() + "\nwritten: " + ", ".join(map(str, files)))


if __name__ == "__main__":
    main()
