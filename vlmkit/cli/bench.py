"""``vlmkit bench``: what an answer takes on this machine, for costs in milliseconds."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmkit.cli.options import Device, DeviceOption, JsonOption, parse_counts
from vlmkit.cli.output import print_json, print_note, print_table

if TYPE_CHECKING:
    from vlmkit.scaling.latency import LatencyTable, Timing


class Dtype(str, Enum):
    """The type of weights and activations."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Language models: registry names (random weights of their shape), directories, hub ids, or VLM runs. "
            "Default: 0.5b."
        ),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Visual tokens: 1,16,64. Default: all that tile the grid, or that a run serves.")
    ] = None,
    tower: Annotated[str, typer.Option(help="Vision tower of what is no run.")] = "ViT-L-14-336",
    compressor: Annotated[str, typer.Option(help="Compressor of what is no run.")] = "avgpool",
    image_size: Annotated[int | None, typer.Option(help="Image side in pixels. Default: the tower's.")] = None,
    text_tokens: Annotated[int, typer.Option(help="Text tokens beside the image.")] = 50,
    new_tokens: Annotated[int, typer.Option(help="Tokens of an answer; all but the first are timed as decoding.")] = 16,
    cached_text: Annotated[bool, typer.Option("--cached-text", help="The text was read before the image.")] = False,
    batch_size: Annotated[int, typer.Option(help="Answers at a time.")] = 1,
    dtype: Annotated[Dtype | None, typer.Option(help="Default: bf16 on a GPU, fp32 on a CPU.")] = None,
    device: DeviceOption = Device.auto,
    cuda_graphs: Annotated[
        bool | None,
        typer.Option(
            "--cuda-graphs/--no-cuda-graphs",
            help="Replay every part as a CUDA graph, as serving engines do: without what Python takes to launch it. "
            "Default: on GPUs.",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Runs of every part, after one to warm up.")] = 5,
    out: Annotated[Path, typer.Option("--out", "-o", help="The table to write.")] = Path("latency.json"),
    as_json: JsonOption = False,
) -> None:
    """Time tower, compressor, prefill and decoding on this machine, and write a table that costs can be read from.

    Times are medians of runs in turn. Run it on a machine that does nothing else.
    """
    counts = parse_counts(tokens) if tokens else None
    from vlmkit.cli.progress import RichProgress
    from vlmkit.pipelines import bench as pipeline
    from vlmkit.scaling.workload import Workload

    settings = pipeline.BenchSettings(
        models=models or ["0.5b"],
        tokens=counts,
        tower=tower,
        compressor=compressor,
        image_size=image_size,
        workload=Workload(text_tokens, new_tokens, cached_text, batch_size),
        dtype=dtype.value if dtype else None,
        device=device.value,
        cuda_graphs=cuda_graphs,
        repeats=repeats,
    )
    table = pipeline.bench(settings, out, RichProgress())
    if as_json:
        print_json(table.to_json())
    else:
        _print(table)
    print_note(f"Table: {out}")


def _print(table: LatencyTable) -> None:
    print_table(
        f"Milliseconds on {table.conditions}: {table.workload}",
        ["LLM", "visual tokens", "tower", "compressor", "query pass", "prefill", "one token", "answer", "GFLOP/s"],
        [_line(row, table) for row in table.rows],
        ["Medians. answer: all parts, with all new tokens; GFLOP/s: of the prefill, by its analytic FLOPs."],
    )


def _line(row: Timing, table: LatencyTable) -> list[str | int | None]:
    from vlmkit.scaling.latency import PARTS

    medians = [row.median(part) for part in PARTS]
    answer = row.answer(table.workload.new_tokens)
    rate = table.workload.batch_size * row.prefill_flops / (row.median("prefill") / 1e3) / 1e9
    cells = [f"{value:.4g}" if value else None for value in [*medians, answer, rate]]
    return [row.llm, row.visual_tokens, *cells]
