"""``vlmkit frontier`` from the outside."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from vlmkit.cli.frontier import frontier
from vlmkit.errors import UserError
from vlmkit.scaling.measurements import PUBLISHED

app = typer.Typer()
app.command()(frontier)


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def test_json_on_stdout_is_one_object():
    answer = json.loads(run("--budget", "5TFLOPs", "--json", "--top", 2).stdout)
    assert answer["budget"] == 5e12 and answer["text_tokens"] == 50
    best = answer["families"]["reasoning"]["best"]
    assert (best["llm"], best["visual_tokens"]) == ("qwen1.5-14b", 64)
    assert len(answer["families"]["ocr"]["candidates"]) == 2


def test_options_reach_the_answer():
    answer = json.loads(
        run("--llms", "4b, 32b", "--tokens", "16,64", "--text-tokens", 0, "--budget", 1e15, "--json").stdout
    )
    reasoning = answer["families"]["reasoning"]
    assert {c["llm"] for c in reasoning["candidates"]} == {"qwen1.5-4b", "qwen1.5-32b"}
    assert {c["visual_tokens"] for c in reasoning["candidates"]} == {16, 64}
    assert reasoning["optimal_visual_tokens"] == 16


def test_measurements_may_be_given_as_option_and_as_arguments():
    both = run(
        "--measurements", PUBLISHED / "ocr.csv", PUBLISHED / "reasoning.csv", "--json", "--budget", "5e12"
    ).stdout
    assert list(json.loads(both)["families"]) == ["ocr", "reasoning"]
    # Without the default candidates of the published tables only measured sizes are offered.
    assert json.loads(both)["families"]["reasoning"]["best"]["llm"] == "qwen1.5-7b"


def test_tables_show_choice_law_and_caveats():
    text = " ".join(run("--budget", "5e12").stdout.split())
    assert "reasoning within 5 TFLOPs: qwen1.5-14b with 64 visual tokens" in text
    assert "0.591 N^-0.0709 V^-0.0151" in text and "13.5 visual tokens" in text
    assert "left out of the fit" in text and "Extrapolated in size: qwen1.5-14b" in text


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
        (["--budget", "50ms"], "is in ms, .* write FLOPs"),
        (["--budget", "0"], "positive"),
        (["--budget", "1e9"], "costs 51 GFLOPs"),
        (["--tokens", "1,x"], "whole numbers"),
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
        "frontier(budget='5e12')\n"
        "heavy = {'torch', 'scipy', 'matplotlib', 'transformers', 'open_clip', 'sklearn', 'datasets'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "qwen1.5-14b" in done.stdout
