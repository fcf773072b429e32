"""Timing models, from the command line to a cost in milliseconds; how long things take is not tested."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from vlmkit.cli.app import main
from vlmkit.errors import UserError
from vlmkit.pipelines.bench import BenchSettings, _captured, bench
from vlmkit.pipelines.timing import Replay, interleaved_seconds
from vlmkit.scaling.cost import FullCost, LatencyCost, VisionSide
from vlmkit.scaling.latency import LatencyTable
from vlmkit.scaling.measurements import SizedLLM
from vlmkit.scaling.workload import Workload

WORK = Workload(text_tokens=5, new_tokens=3)
MICRO = SizedLLM("micro", 0.0001, 1)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here")


def settings(*models: str, workload: Workload = WORK, **changes: object) -> BenchSettings:
    return BenchSettings(models or ("micro",), workload, **{"tower": "ViT-mini-8-64", "repeats": 1, **changes})  # type: ignore[arg-type]


def test_a_round_to_warm_up_then_rounds_through_all_candidates() -> None:
    seen: list[str] = []
    runs = {name: lambda name=name: seen.append(name) for name in "ab"}
    seconds = interleaved_seconds(runs, 2, torch.device("cpu"), before=lambda name: seen.append(f"before {name}"))
    assert seen == ["before a", "a", "before b", "b"] * 3
    assert [len(times) for times in seconds.values()] == [2, 2]


def test_the_command_writes_a_table_that_gives_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "latency.json"
    arguments = (
        f"bench micro nano --tower ViT-mini-8-64 --tokens 1,64 --text-tokens 5 --new-tokens 3 --repeats 2 -o {out}"
    )
    monkeypatch.setattr(sys, "argv", ["vlmkit", *arguments.split(), "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    table = LatencyTable.load(out)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(table.to_json()))
    assert [(row.llm, row.visual_tokens) for row in table.rows] == [
        ("micro", 1),
        ("micro", 64),
        ("nano", 1),
        ("nano", 64),
    ]
    assert (table.workload, table.dtype, table.device) == (WORK, "fp32", "cpu")
    assert table.hardware and table.versions["torch"]
    for row in table.rows:
        assert {part: len(times) for part, times in row.runs.items()} == dict.fromkeys(
            ["tower", "compressor", "prefill", "decode"], 2
        )
    full = FullCost(WORK, VisionSide.of("ViT-mini-8-64"))
    assert [row.prefill_flops for row in table.of("micro")] == [
        full.parts(MICRO, count)["prefill"] for count in (1, 64)
    ]
    cost, rows = LatencyCost(table, WORK), table.of("micro")
    low, high = (row.answer(3) for row in rows)
    assert cost.cost(MICRO, 1) == pytest.approx(low) and cost.cost(MICRO, 22) == pytest.approx(low + (high - low) / 3)


@pytest.mark.parametrize("cached", [False, True])
def test_a_conditioned_compressor_asks_unless_the_text_is_cached(cached: bool, tmp_path: Path) -> None:
    work = Workload(5, 2, cached_text=cached, batch_size=2)
    table = bench(settings(compressor="quecc", tokens=[4], workload=work, dtype="bf16"), tmp_path / "t.json")
    (row,) = table.rows
    assert ("query pass" in row.runs) is not cached
    full = FullCost(work, VisionSide.of("ViT-mini-8-64", "quecc"))
    assert row.prefill_flops == full.parts(MICRO, 4)["prefill"]


def test_downsample_times_a_tower_for_each_count(tmp_path: Path) -> None:
    table = bench(settings(compressor="downsample", tokens=[1, 16]), tmp_path / "t.json")
    assert [row.image_size for row in table.rows] == [8, 32]
    assert table.rows[0].runs["tower"] != table.rows[1].runs["tower"]


def test_a_run_is_timed_as_it_stands(vlm_run: Path, tmp_path: Path) -> None:
    table = bench(settings(str(vlm_run)), tmp_path / "t.json")
    assert [(row.llm, row.visual_tokens, row.compressor) for row in table.rows] == [("nano", 4, "avgpool")]
    with pytest.raises(UserError, match="does not serve 16"):
        bench(settings(str(vlm_run), tokens=[16]), tmp_path / "none.json")
    with pytest.raises(UserError, match="are nano, nano; name each of them once"):
        settings(str(vlm_run), "nano")
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize(
    ("models", "changes", "reason"),
    [
        (["micro"], {"workload": Workload(5, 1)}, "ask for 2 or more"),
        (["micro"], {"compressor": "quecc", "workload": Workload(0, 2)}, "at least one text token"),
        (["micro"], {"repeats": 0}, "at least 1"),
        (["micro"], {"compressor": "avgpol"}, "did you mean avgpool"),
        (["micro"], {"tokens": [5]}, "do not tile"),
        (["qwen1.5-72b"], {}, "needs 289.* GB for its weights in fp32"),
        (["qwen1.5-6b"], {}, "did you mean qwen1.5-0.5b|did you mean qwen"),
    ],
)
def test_what_cannot_be_timed_is_refused_and_nothing_written(
    models: list[str], changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        bench(settings(*models, **changes), tmp_path / "t.json")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_table_is_a_json_file(tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "latency.csv"):
        with pytest.raises(UserError, match=r"ends in \.json"):
            bench(settings(), out)


@pytest.mark.gpu
@needs_gpu
def test_a_replay_does_again_what_was_captured() -> None:
    source, doubled = torch.ones(4, device="cuda"), torch.zeros(4, device="cuda")
    prepared: list[int] = []
    replay = Replay(lambda: doubled.copy_(2 * source), lambda: prepared.append(1), torch.cuda.graph_pool_handle())
    source.fill_(3)
    replay()
    assert doubled.tolist() == [6] * 4 and len(prepared) == 2


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("compressor", ["avgpool", "quecc", "downsample"])
def test_every_part_becomes_a_cuda_graph(compressor: str, cached: bool, tmp_path: Path) -> None:
    work = Workload(5, 3, cached_text=cached, batch_size=2)
    tables = {
        graphs: bench(
            settings(compressor=compressor, tokens=[1, 16], workload=work, cuda_graphs=graphs), tmp_path / "t.json"
        )
        for graphs in (None, False)
    }
    assert [table.cuda_graphs for table in tables.values()] == [True, False]
    plain, replayed = (
        [(row.visual_tokens, [*row.runs], row.prefill_flops) for row in table.rows] for table in tables.values()
    )
    assert plain == replayed


def test_too_little_memory_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("vlmkit.pipelines.bench.interleaved_seconds", fail)
    with pytest.raises(UserError, match=r"micro with 5 text tokens, .* needs more memory than the GPU has"):
        bench(settings(tokens=[4]), tmp_path / "t.json")
    assert not list(tmp_path.iterdir())


def test_cuda_graphs_are_no_matter_of_cpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NVIDIA GPUs alone"):
        bench(settings(device="cpu", cuda_graphs=True), tmp_path / "t.json")


@pytest.mark.gpu
@needs_gpu
def test_what_waits_for_the_gpu_cannot_be_captured() -> None:
    with pytest.raises(UserError, match=r"it cannot be captured as CUDA graphs .*--no-cuda-graphs"):
        _captured("it", {("tower", 1): lambda: torch.ones(1, device="cuda").item()})
