"""Reading measurements: the published tables, runs, CSV, JSONL, and what is refused."""

from __future__ import annotations

import csv
import json
from itertools import pairwise

import pytest

from vlmkit import registry
from vlmkit.errors import UserError
from vlmkit.runs import ResultRow
from vlmkit.scaling.frontier import find_frontier
from vlmkit.scaling.measurements import PUBLISHED, load_measurements, load_published

REASONING = registry.BENCHMARK_SETS["reasoning"].benchmarks
ROW = {
    "benchmark": "miniworld",
    "family": "reasoning",
    "metric": "exact_match",
    "value": 0.75,
    "num_samples": 100,
    "stderr": 0.04,
    "data_revision": "abc",
    "scoring": "exact",
    "llm": "tiny",
    "llm_params": 500_000,
    "llm_params_non_embedding": 300_000,
    "visual_tokens": 4,
    "compressor": "avgpool",
    "seed": 0,
}


def write_run(path, *rows):
    path.mkdir(parents=True)
    lines = [json.dumps(vars(ResultRow(**{**ROW, **row}))) for row in rows]
    (path / "results.jsonl").write_text("\n".join(lines) + "\n")
    return path


def write_csv(path, *rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({column for row in rows for column in row}))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_published_tables_are_whole_and_flagged():
    published = load_published()
    assert published.families == ["reasoning", "ocr"] and published.basis == "nominal"
    assert len(published.of("reasoning")) == 28
    ocr = {(row.llm.billions, row.visual_tokens): 1 - row.error for row in published.of("ocr")}
    assert len(ocr) == 27 and (7, 576) not in ocr
    assert ocr[4, 4] == pytest.approx(0.155895545)
    suspect, excluded = published.notes["ocr"]
    assert "qwen1.5-4b with 4 tokens" in suspect and "0.135895545" in suspect
    assert "qwen1.5-7b with 576 tokens" in excluded and "left out" in excluded
    assert "reasoning" not in published.notes


def test_published_rows_agree_with_the_registry_and_rise_with_size_and_tokens():
    for family in ("reasoning", "ocr"):
        with (PUBLISHED / f"{family}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 28
        score = {(float(row["llm_params_billions"]), int(row["visual_tokens"])): float(row["score"]) for row in rows}
        for row in rows:
            assert registry.llm(row["llm"]).nominal_billions == float(row["llm_params_billions"])
        sizes, tokens = sorted({n for n, _ in score}), sorted({v for _, v in score})
        assert all(score[n, a] < score[n, b] for n in sizes for a, b in pairwise(tokens))
        # The OCR table ties at 576 tokens (the copied cell) and dips from 4B to 7B by 0.0002 at 144.
        assert all(score[a, v] <= score[b, v] + 2e-4 for v in tokens for a, b in pairwise(sizes))


def test_runs_are_read_with_their_non_embedding_sizes(tmp_path):
    write_run(tmp_path / "sweep" / "a", {}, {"family": "ocr", "value": 0.5})
    write_run(tmp_path / "sweep" / "b", {"visual_tokens": 16, "value": 0.875})
    write_run(tmp_path / "tower", {"llm": None, "llm_params": None, "llm_params_non_embedding": None})
    found = load_measurements([tmp_path])
    assert found.basis == "non-embedding" and found.families == ["reasoning", "ocr"]
    assert [(row.visual_tokens, row.error) for row in found.of("reasoning")] == [(4, 0.25), (16, 0.125)]
    llm = found.llms[0]
    assert (llm.name, llm.billions, llm.num_params) == ("tiny", pytest.approx(3e-4), 500_000)
    assert load_measurements([tmp_path / "sweep" / "a", tmp_path / "sweep" / "b"]).rows == found.rows
    alone = load_measurements([tmp_path / "sweep" / "b" / "results.jsonl"])
    assert list(alone.rows) == found.of("reasoning")[1:]


def test_benchmarks_are_never_averaged_and_the_mean_of_a_set_bears_its_name(tmp_path):
    run = write_run(tmp_path / "a", {"value": 0.5}, {"benchmark": "own", "value": 0.25})
    found = load_measurements([run])
    assert found.families == ["reasoning (miniworld)", "reasoning (own)"]
    assert [row.error for row in found.rows] == [0.5, 0.75]
    mean = {"benchmark": "reasoning", "metric": "mean", "benchmarks": ",".join(REASONING), "value": 0.125}
    found = load_measurements([write_run(tmp_path / "b", {}, mean)])
    assert [(row.family, row.error) for row in found.rows] == [("reasoning (miniworld)", 0.25), ("reasoning", 0.875)]


def test_runs_with_the_mean_of_a_set_and_runs_without_are_no_measurements_together(tmp_path):
    members = [{"benchmark": name, "family": name} for name in REASONING]
    mean = {"benchmark": "reasoning", "metric": "mean", "benchmarks": ",".join(REASONING)}
    whole = write_run(tmp_path / "whole", *members, mean)
    part = write_run(tmp_path / "part", *({**member, "visual_tokens": 16} for member in members[2:]))
    limits = [{**member, "visual_tokens": 1, "limit": number} for number, member in enumerate(members, 1)]
    with pytest.raises(UserError) as refusal:
        load_measurements([whole, part, write_run(tmp_path / "limits", *limits)])
    assert f"{part} at 16 visual tokens lacks mme, gqa" in str(refusal.value)
    assert f"{tmp_path / 'limits'} at 1 visual tokens has them with different scoring or --limit" in str(refusal.value)
    assert "whole" not in str(refusal.value)
    found = load_measurements([part])
    assert "reasoning" not in found.families and "lacks mme, gqa." in found.missing["reasoning"]
    assert load_measurements([whole]).missing == {}
    with pytest.raises(UserError, match="mean is over 9 benchmarks"):
        find_frontier(found)


def test_of_two_scorings_of_a_run_the_official_one_counts(tmp_path):
    rows = [{"scoring": "lmms-eval", "value": 0.1}, {"scoring": "official", "value": 0.5}]
    for name, given in (("a", rows), ("b", rows[::-1])):
        assert [row.error for row in load_measurements([write_run(tmp_path / name, *given)]).rows] == [0.5]


def test_the_larger_of_two_evaluations_counts(tmp_path):
    rows = [{"value": 0.1, "limit": 10, "num_samples": 10}, {"value": 0.5, "num_samples": 1000}]
    assert load_measurements([write_run(tmp_path / "a", *rows)]).rows[0].error == 0.5
    assert load_measurements([write_run(tmp_path / "b", *rows[::-1])]).rows[0].error == 0.5


def test_tables_need_three_columns_and_know_the_registry(tmp_path):
    rows = [{"llm": "7b", "visual_tokens": 4, "score": 0.5}, {"llm": "mine", "visual_tokens": 4, "score": 0.25}]
    path = write_csv(tmp_path / "t.csv", rows[0])
    row = load_measurements([path]).rows[0]
    assert (row.family, row.llm.name, row.llm.billions, row.error) == ("all", "qwen1.5-7b", 7, 0.5)
    assert row.llm.num_params == registry.llm("7b").num_params
    lines = tmp_path / "t.jsonl"
    lines.write_text("\n".join(json.dumps({**row, "llm_params_billions": 2}) for row in rows))
    assert [row.llm.billions for row in load_measurements([lines]).rows] == [2, 2]
    with pytest.raises(UserError, match="no llm_params_billions"):
        load_measurements([write_csv(tmp_path / "u.csv", rows[1])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": 43.2}, "fractions in 0..1; it looks like a percentage: divide all by 100"),
        ({"score": -0.1}, "fractions in 0..1; correct it"),
        ({"score": 430}, "fractions in 0..1; correct it"),
        ({"stderr": -0.1}, "cannot be negative"),
        ({"stderr": "?"}, "stderr .* not a number"),
        ({"compressor": "quecc", "query": "all"}, "one of llm, embed_mean, none"),
        ({"score": "nan"}, "not a number"),
        ({"score": "n/a"}, "not a number"),
        ({"score": ""}, "no score"),
        ({"llm": ""}, "no llm"),
        ({"visual_tokens": 0}, "at least 1"),
        ({"visual_tokens": 1.5}, "whole number"),
        ({"llm_params_billions": -1}, "must be positive"),
        ({"flag": "odd"}, "excluded or suspect"),
    ],
)
def test_bad_cells_are_refused(tmp_path, change, message):
    path = write_csv(tmp_path / "t.csv", {"llm": "7b", "visual_tokens": 4, "score": 0.5, **change})
    with pytest.raises(UserError, match=message):
        load_measurements([path])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_revision": "other"}, "come from different data: evaluate all runs in the same way"),
        ({"limit": 10}, "come from different --limit"),
        ({"scoring": "lmms-eval"}, "come from different scoring"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, change, message):
    runs = [write_run(tmp_path / "a", {}), write_run(tmp_path / "b", {"visual_tokens": 16, **change})]
    with pytest.raises(UserError, match=message):
        load_measurements(runs)


def test_compressors_are_series_of_their_own(tmp_path):
    changes = [{}, {"compressor": "quecc", "query": "llm"}, {"compressor": "quecc", "query": "none"}]
    runs = [write_run(tmp_path / str(i), change, {**change, "family": "ocr"}) for i, change in enumerate(changes)]
    found = load_measurements(runs)
    labels = ["avgpool", "quecc, query llm", "quecc, query none"]
    assert found.families == [f"{family} ({label})" for label in labels for family in ("reasoning", "ocr")]
    assert [row.compressor_label for row in found.rows] == [label for label in labels for _ in range(2)]
    assert load_measurements(runs[:1]).families == ["reasoning", "ocr"]


def test_a_row_twice_is_refused_unless_seeds_differ(tmp_path):
    row = {"llm": "7b", "visual_tokens": 4, "score": 0.5}
    with pytest.raises(UserError, match=r"qwen1\.5-7b with 4 visual tokens more than once"):
        load_measurements([write_csv(tmp_path / "t.csv", row, {**row, "score": 0.6})])
    found = load_measurements([write_csv(tmp_path / "u.csv", {**row, "seed": 0}, {**row, "score": 0.75, "seed": 1})])
    assert [row.error for row in found.rows] == [0.5, 0.25]
    run = write_run(tmp_path / "a", {})
    with pytest.raises(UserError, match="more than once"):
        load_measurements([run, run])


def test_columns_by_other_names(tmp_path):
    path = write_csv(tmp_path / "t.csv", {"model": "7b", "visual_tokens": 4, "acc": 0.5, "se": 0.01})
    row = load_measurements([path], {"llm": "model", "score": "acc", "stderr": "se"}).rows[0]
    assert (row.llm.name, row.error, row.stderr) == ("qwen1.5-7b", 0.5, 0.01)
    with pytest.raises(UserError, match=r"no llm.*it has acc, model, se, visual_tokens; --columns llm=COLUMN"):
        load_measurements([path])
    with pytest.raises(UserError, match="no column accuracy; it has acc"):
        load_measurements([path], {"score": "accuracy"})


def test_runs_and_tables_by_name_do_not_mix(tmp_path):
    with pytest.raises(UserError, match="separately"):
        load_measurements([write_run(tmp_path / "a", {}), PUBLISHED / "ocr.csv"])


def test_unreadable_paths_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"llm": "7b"\n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "latin.csv").write_bytes(b"llm,score\n\xff\xfe,1\n")
    (tmp_path / "only-header.csv").write_text("llm,visual_tokens,score\n")
    for name, message in {
        "empty": "vlmkit eval",
        "bad.jsonl": "line 1 is not JSON",
        "list.jsonl": "not a JSON object",
        "latin.csv": "cannot be read",
        "absent.csv": "cannot be read",
        "notes.txt": "no run directory",
        "only-header.csv": "No measurements",
    }.items():
        with pytest.raises(UserError, match=message):
            load_measurements([tmp_path / name])


def test_llms_are_found_by_alias_and_sized_on_the_tables_basis(tmp_path):
    assert load_published().find_llm("14b").billions == 14
    own = load_measurements([write_run(tmp_path / "a", {})])
    assert own.find_llm("tiny").num_params == 500_000
    facts = registry.llm("7b")
    assert own.find_llm("7b").billions == facts.num_params_non_embedding / 1e9
    with pytest.raises(UserError, match="did you mean"):
        own.find_llm("qwen1.5-6b")
