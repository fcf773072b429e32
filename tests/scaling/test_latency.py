"""Latency tables: what is read from them, between rows, and what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vlmkit.errors import UserError
from vlmkit.scaling.cost import LatencyCost
from vlmkit.scaling.latency import LatencyTable, Timing
from vlmkit.scaling.measurements import SizedLLM, load_published
from vlmkit.scaling.workload import Workload

QWEN = load_published().find_llm("7b")


def row(tokens: int, prefill: list[float], llm: str = "qwen1.5-7b") -> Timing:
    runs = {"tower": [8.0, 9.0, 30.0], "compressor": [1.0], "prefill": prefill, "decode": [2.0]}
    return Timing(llm, tokens, "ViT-L-14-336", 336, "avgpool", 1e12, runs)


TABLE = LatencyTable(
    hardware="a machine",
    date="2026-11-27",
    versions={"torch": "2.14.1"},
    dtype="bf16",
    device="cuda",
    threads=1,
    workload=Workload(50, 16),
    rows=(row(64, [40.0]), row(1, [10.0, 12.0, 11.0]), row(16, [20.0], "qwen1.5-4b")),
)


def test_parts_are_medians_and_straight_lines_between_measured_counts():
    cost = LatencyCost(TABLE, Workload(50, 16))
    assert cost.parts(QWEN, 1) == {"tower": 9, "compressor": 1, "query pass": 0, "prefill": 11, "decode": 30}
    assert cost.cost(QWEN, 1) == TABLE.rows[1].answer(16) == 51
    # A third of the way from 1 to 64.
    assert cost.cost(QWEN, 22) == pytest.approx(51 + 29 / 3)
    assert cost.cost(QWEN, 64) == 80
    assert LatencyCost(TABLE, Workload(50, 1)).cost(QWEN, 64) == 50


def test_what_was_not_measured_is_refused_with_the_way_to_measure_it():
    cost = LatencyCost(TABLE, Workload(50, 16))
    with pytest.raises(
        UserError, match=r"no times of qwen1.5-14b, only of qwen1.5-7b, qwen1.5-4b; .*bench qwen1.5-14b"
    ):
        cost.cost(load_published().find_llm("14b"), 16)
    with pytest.raises(UserError, match=r"1 to 64 visual tokens .*, and 144 beside 50 lie outside; .*--tokens 144"):
        cost.cost(QWEN, 144)
    with pytest.raises(UserError, match="16 to 16 visual tokens"):
        cost.cost(load_published().find_llm("4b"), 17)
    assert cost.cost(SizedLLM("qwen1.5-4b", 4, 1), 16) == 60


def test_with_other_text_the_prompt_of_as_many_tokens_counts():
    longer, measured = LatencyCost(TABLE, Workload(60, 16)), LatencyCost(TABLE, Workload(50, 16))
    for count in (1, 22, 54):
        ours, theirs = longer.parts(QWEN, count), measured.parts(QWEN, count + 10)
        assert (ours["prefill"], ours["decode"]) == (theirs["prefill"], theirs["decode"])
        assert ours["tower"] == measured.parts(QWEN, count)["tower"]
    with pytest.raises(UserError, match=r"55 beside 60 lie outside; .*--tokens 55 --text-tokens 60"):
        longer.cost(QWEN, 55)
    with pytest.raises(UserError, match="1 beside 40 lie outside"):
        LatencyCost(TABLE, Workload(40, 16)).cost(QWEN, 1)


@pytest.mark.parametrize("work", [Workload(50, 16, cached_text=True), Workload(50, 16, batch_size=2)])
def test_another_workload_than_the_measured_one_is_refused(work):
    with pytest.raises(UserError, match="measured with 50 text tokens, 16 new tokens, not with"):
        LatencyCost(TABLE, work)


@pytest.mark.parametrize("cached", [False, True])
def test_text_that_is_read_apart_keeps_its_length(cached):
    """Cached text, and a question that the compressor is told."""
    rows = (
        tuple(replace(row, runs={**row.runs, "query pass": [5.0]}) for row in TABLE.rows) if not cached else TABLE.rows
    )
    table = replace(TABLE, workload=Workload(50, 16, cached_text=cached), rows=rows)
    LatencyCost(table, Workload(50, 3, cached_text=cached))
    with pytest.raises(UserError, match="not with 51 text tokens"):
        LatencyCost(table, Workload(51, 16, cached_text=cached))


def test_a_table_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "latency.json"
    path.write_text(TABLE.dumps())
    assert replace(LatencyTable.load(path), origin=TABLE.origin) == TABLE
    assert LatencyTable.load(path).llms == ["qwen1.5-7b", "qwen1.5-4b"]


def damaged(**changes):
    return json.dumps({**TABLE.to_json(), **changes})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read.*comes with nvidia-h200"),
        ("{", "is not JSON"),
        ("[]", "is not a latency table"),
        ('{"rows": []}', "is not a latency table"),
        (damaged(rows=[]), "has no rows"),
        (damaged(rows=[{"llm": "a"}]), "is damaged"),
        (damaged(rows=3), "is damaged"),
        (damaged(threads=None, cores=2), "is damaged"),
        (damaged(rows=TABLE.to_json()["rows"] * 2), "qwen1.5-7b with 64 visual tokens twice"),
        (damaged(rows=[{**TABLE.to_json()["rows"][0], "runs": {"prefill": [-1.0], "decode": [1.0]}}]), "not positive"),
        (damaged(rows=[{**TABLE.to_json()["rows"][0], "runs": {"tower": [1.0]}}]), "lacks its prefill"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path, content, reason):
    path = tmp_path / "latency.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=reason):
        LatencyTable.load(path)


def test_the_shipped_table_is_known_by_name_and_prices_the_published_sizes():
    table = LatencyTable.load("nvidia-h200")
    assert table.conditions == "NVIDIA H200 in bf16, CUDA graphs (2026-11-27)"
    counts = {llm: [timing.visual_tokens for timing in table.of(llm)] for llm in table.llms}
    assert {*counts} >= {llm.name for llm in load_published().llms} | {"qwen1.5-14b"}
    assert all(found[0] == 1 and found[-1] == 576 for found in counts.values())
    for llm in table.llms:  # a prefill of 626 tokens is never over in the time of one of 51
        first, last = table.of(llm)[0], table.of(llm)[-1]
        assert last.prefill_flops > 5 * first.prefill_flops and min(last.runs["prefill"]) > max(first.runs["prefill"])
