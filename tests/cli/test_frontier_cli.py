"""``vlmkit frontier`` from the outside."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from vlmkit.cli.frontier import frontier
from vlmkit.errors import UserError
from vlmkit.scaling.latency import LatencyTable, Timing
from vlmkit.scaling.measurements import PUBLISHED
from vlmkit.scaling.workload import Workload

pytestmark = pytest.mark.usefixtures("laws_fitted_once")
app = typer.Typer()
app.command()(frontier)


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_json_on_stdout_is_one_object():
    found = json.loads(run("--budget", "5TFLOPs", "--json", "--top", 2).stdout)
    assert found["budgets"] == {"FLOPs": 5e12} and found["workload"]["text_tokens"] == 50
    best = found["answers"]["reasoning"]["best"]
    assert (best["llm"], best["visual_tokens"]) == ("qwen1.5-14b", 64)
    assert len(found["answers"]["ocr"]["choices"]) == 2


def test_options_reach_the_answer(tmp_path):
    found = json.loads(
        run(
            *("--llms", "4b, 32b", "--tokens", "16,64", "--text-tokens", 20, "--cached-text", "--new-tokens", 3),
            *("--batch-size", 2, "--budget", "1e15", "--budget", "200GB", "--cost", "full", "--tower", "ViT-B-16"),
            *("--image-size", 256, "--compressor", "quecc", "--mix", "reasoning=1,ocr=3", "--law", "additive"),
            *("--loss", "huber", "--json"),
        ).stdout
    )
    assert found["workload"] == {"text_tokens": 20, "new_tokens": 3, "cached_text": True, "batch_size": 2}
    assert found["cost"] == "full" and found["budgets"] == {"FLOPs": 1e15, "bytes": 2e11}
    mix = found["answers"]["mix"]
    assert {c["llm"] for c in mix["choices"]} == {"qwen1.5-4b", "qwen1.5-32b"}
    assert {c["visual_tokens"] for c in mix["choices"]} == {16, 64}
    assert set(mix["best"]["costs"]) == {"full", "memory"}
    law = found["answers"]["ocr"]["law"]
    assert law["form"] == "additive" and set(law["huber_parameters"]) == {"A", "alpha", "B", "beta", "D"}


def test_measurements_may_be_given_as_option_and_as_arguments():
    both = run(
        "--measurements", PUBLISHED / "ocr.csv", PUBLISHED / "reasoning.csv", "--json", "--budget", "5e12"
    ).stdout
    assert list(json.loads(both)["answers"]) == ["ocr", "reasoning"]
    # Without the default candidates of the published tables only measured sizes are offered.
    assert json.loads(both)["answers"]["reasoning"]["best"]["llm"] == "qwen1.5-7b"


def test_tables_show_choice_law_and_caveats():
    text = " ".join(run("--budget", "5e12", "--mix", "reasoning=0.7,ocr=0.3").stdout.split())
    assert "reasoning within 5 TFLOPs: qwen1.5-14b with 64 visual tokens" in text
    assert "mix within 5 TFLOPs: qwen1.5-14b with 64 visual tokens" in text
    assert "0.591 N^-0.0709 V^-0.0151" in text and "13.5 visual tokens (95%: " in text
    assert "left out of the fit" in text and "* Extrapolated in size: qwen1.5-14b" in text
    assert text.count("Cost llm: 2N(Q + V) FLOPs of the LLM's prefill; 50 text tokens, 1 new token.") == 1


def test_a_choice_of_any_table_fits_in_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("--budget", "5e12", "--budget", "40GB", "--cost", "full").stdout.splitlines()
    assert any(line.startswith("qwen1.5-14b*") and line.rstrip().endswith("GB") for line in lines)


def test_the_question_turned_round_and_choices_side_by_side():
    found = run("--target-error", "0.5", "--top", 1)
    assert "cheapest for an error of 0.5: qwen1.5-7b with 16" in found.stdout.replace("\n", " ")
    assert "No answer for ocr" in found.stderr
    text = run("--compare", "7b:576,14b:64", "--budget", "5e12").stdout
    assert "reasoning, choices compared: qwen1.5-14b with 64 visual tokens" in text and "over" in text


def test_csv_has_a_line_for_every_choice():
    rows = list(csv.DictReader(run("--budget", "5e12", "--format", "csv").stdout.splitlines()))
    assert {row["answer"] for row in rows} == {"reasoning", "ocr"} and len(rows) > 50
    assert rows[0]["llm"] == "qwen1.5-14b" and float(rows[0]["cost_llm"]) == 3.192e12
    assert "| LLM |" in run("--budget", "5e12", "--format", "markdown").stdout


def test_milliseconds_of_a_table_and_its_workload(tmp_path, monkeypatch):
    timings = tuple(
        Timing(f"qwen1.5-{size}", count, "ViT-L-14-336", 336, "avgpool", 1.0, {"prefill": [ms * count], "decode": [1]})
        for size, ms in (("0.5b", 1.0), ("7b", 2.0))
        for count in (1, 64)
    )
    path = tmp_path / "latency.json"
    path.write_text(LatencyTable("a machine", "2026-01-01", {}, "bf16", "cuda", 1, Workload(20), timings).dumps())
    found = run("--budget", "70ms", "--latency-table", path)
    text = " ".join(found.stdout.split())
    assert "reasoning within 70 ms: qwen1.5-7b with 16 visual tokens" in text
    assert "measured on a machine" in text and "20 text tokens" in text and "candidates are left out" in text
    monkeypatch.chdir(tmp_path)
    assert "reasoning within 70 ms: qwen1.5-7b with 16 visual tokens" in run("--budget", "70ms").stdout
    shipped = " ".join(run("--budget", "100ms", "--latency-table", "nvidia-h200").stdout.split())
    assert "ms measured on NVIDIA H200 in bf16, CUDA graphs" in shipped


def test_own_columns_by_name(tmp_path):
    lines = ["model,visual_tokens,acc"]
    lines += [
        f"{llm},{v},{0.3 + 0.05 * i + 0.02 * j}"
        for i, llm in enumerate(("0.5b", "1.8b", "4b"))
        for j, v in enumerate((1, 4, 16))
    ]
    path = tmp_path / "own.csv"
    path.write_text("\n".join(lines))
    assert "all within 1 PFLOPs" in run(path, "--columns", "score=acc,llm=model", "--budget", "1PFLOPs").stdout


def test_without_a_budget_one_table_over_budgets():
    text = run().stdout
    assert "What to deploy as the budget grows" in text and "51 GFLOPs" in text and "18 TFLOPs" in text


def test_plot_is_written_and_named(tmp_path):
    path = tmp_path / "frontier.png"
    assert str(path) in run("--budget", "5e12", "--plot", path).stderr.replace("\n", "")
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "50ms"], "latency table latency.json cannot be read"),
        (["--budget", "5 parsecs"], "no number with a known unit"),
        (["--budget", "5e12", "--budget", "1e12"], "Two budgets are in FLOPs"),
        (["--budget", "0"], "positive"),
        (["--budget", "1e9"], "costs 51 GFLOPs"),
        (["--tokens", "1,x"], "whole numbers"),
        (["--compare", "7b"], "without ':'; write it like 7b:576"),
        (["--compare", "7b:many"], "where a number of visual tokens belongs"),
        (["--mix", "reasoning=much"], "where a number belongs; write it like reasoning=0.7"),
        (["--target-error", "low"], "where a number belongs; write it like 0.5"),
        (["--columns", "score=acc"], "give these too"),
        (["--plot", "frontier.gif"], "must end in one of"),
        (["--image-size", 100], "divide into the patches"),
        (["--llms", "qwen1.5-6b"], "did you mean"),
        (["absent.csv"], "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message):
    with pytest.raises(UserError, match=message):
        run(*arguments)


def test_no_heavy_import_on_the_published_path():
    code = (
        "import sys, typer\n"
        "from vlmkit.cli.frontier import frontier\n"
        "frontier(budget=['5e12'])\n"
        "heavy = {'torch', 'scipy', 'matplotlib', 'transformers', 'sklearn', 'datasets', 'pydantic', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "qwen1.5-14b" in done.stdout
