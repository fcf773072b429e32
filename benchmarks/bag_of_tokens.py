"""Linear head and loss, forward and backward: vlmkit's losses against the SuperClass formula written down densely.

    python benchmarks/bag_of_tokens.py

Goal on a CPU, at the default size: the softmax loss in at most 0.85 of the dense form's time and 0.12 of its memory.
A round of that size takes over a minute on one core, and there are nine; --losses softmax takes a third of that, and
--batch 600 --vocab 5000 --width 128 shows that it works.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from measuring import peak_bytes, write_results

from vlmkit.losses.classification import classification_loss
from vlmkit.losses.token_frequency import normalise_rows
from vlmkit.pipelines.timing import interleaved_seconds

LOSSES = ["softmax", "bce", "asl", "soft_margin", "two_way"]
DENSE = "dense softmax"


def dense_softmax(head: list[torch.Tensor], ids: torch.Tensor, idf: torch.Tensor) -> torch.Tensor:
    """SuperClass eq. 1-2 over the whole vocabulary: multi-hot labels, weighted, normalised, times log softmax."""
    features, weight, bias = head
    labels = torch.zeros(len(ids), len(weight), device=ids.device)
    labels.scatter_add_(1, ids.clamp(min=0), (ids >= 0).float())
    weighted = labels.mul_(idf)
    targets = weighted.div_(weighted.sum(1, keepdim=True))
    return -(targets * torch.nn.functional.linear(features, weight, bias).log_softmax(1)).sum()


def vlmkit_loss(name: str, head: list[torch.Tensor], ids: torch.Tensor, idf: torch.Tensor) -> torch.Tensor:
    """The library's loss from the same ids and weights."""
    features, weight, bias = head
    weights = idf[ids.clamp(min=0)].masked_fill(ids < 0, 0)
    targets = normalise_rows(weights) if name == "softmax" else weights
    return classification_loss(name)(features, weight, bias, ids, targets)


def draw_problem(args: argparse.Namespace) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Features, weight and bias of a head; captions of distinct labels, padded with -1; weights of the classes."""
    generator = torch.Generator(args.device).manual_seed(0)
    draw = partial(torch.randn, generator=generator, device=args.device)
    head = [draw(args.batch, args.width), draw(args.vocab, args.width) / args.width**0.5, draw(args.vocab) * 0]
    ids = torch.randint(args.vocab, (args.batch, args.labels), generator=generator, device=args.device).sort(1).values
    ids[:, 1:] = ids[:, 1:].masked_fill(ids[:, 1:] == ids[:, :-1], -1)
    idf = torch.rand(args.vocab, generator=generator, device=args.device) * 10
    return [tensor.requires_grad_() for tensor in head], ids, idf


def forward_backward(loss: Callable[[], torch.Tensor], head: list[torch.Tensor], args: argparse.Namespace) -> float:
    """Mean loss of the batch, whose gradients are made and dropped."""
    with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
        mean = loss() / args.batch
    mean.backward()
    for tensor in head:
        tensor.grad = None  # here, so that no measurement of memory starts with what another left behind
    return mean.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, size in {"batch": 4096, "vocab": 49408, "width": 768, "labels": 20, "repeats": 7, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"default {size}")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES, help="default: all")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (default) or cuda")
    parser.add_argument("--bf16", action="store_true", help="autocast to bf16 instead of float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    head, ids, idf = draw_problem(args)
    losses = {DENSE: partial(dense_softmax, head, ids, idf)}
    losses |= {f"vlmkit {name}": partial(vlmkit_loss, name, head, ids, idf) for name in args.losses}
    runs = {name: partial(forward_backward, loss, head, args) for name, loss in losses.items()}

    values = {name: run() for name, run in runs.items()}
    difference = abs(values.get("vlmkit softmax", values[DENSE]) / values[DENSE] - 1)
    assert difference < (1e-2 if args.bf16 else 1e-5), f"vlmkit's loss is off by {difference:.1e} of the dense one"
    megabytes = {name: peak_bytes(run, args.device) / 1e6 for name, run in runs.items()}
    seconds = interleaved_seconds(runs, args.repeats, args.device)

    median = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [
        {
            "loss": name,
            "seconds": seconds[name],
            "of dense time": median[name] / median[DENSE],
            "peak MB": megabytes[name],
            "of dense memory": megabytes[name] / megabytes[DENSE],
            "mean loss": values[name],
        }
        for name in runs
    ]
    files = write_results("bag_of_tokens", args.device, vars(args) | {"device": str(args.device)}, rows)
    print(files[-1].read_text() + "\nwritten: " + ", ".join(map(str, files)))


if __name__ == "__main__":
    main()
