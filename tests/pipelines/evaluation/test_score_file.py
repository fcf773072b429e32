"""``vlmkit eval --score-file``: scores in the order of the file, and files that are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlmkit.cli.app import app
from vlmkit.errors import UserError
from vlmkit.evals import scoring
from vlmkit.evals.records import RecordsFile, SampleRecord
from vlmkit.pipelines.evaluation.score_file import score_file

CASES = [
    {"prediction": "Red.", "references": ["red"]},
    {"prediction": "blau ü", "references": ["green", "blau ü"], "question_id": 7},
    {"prediction": "", "references": ["x"], "choices": ["x"], "category": "letters"},
]


def write(path: Path, cases: Any) -> Path:
    path.write_text(json.dumps(cases), encoding="utf-8")
    return path


def printed(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> Any:
    app(["eval", *map(str, arguments)], standalone_mode=False)
    return json.loads(capsys.readouterr().out)


def test_scores_stand_in_the_order_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "cases.json", CASES)
    asked = ["--score-file", path, "--benchmark", "miniworld"]
    assert printed(asked, capsys) == [
        {"score": 1.0, "answer": "red"},
        {"score": 1.0, "answer": "blau ü"},
        {"score": 0.0, "answer": ""},
    ]
    assert printed([*asked, "--summary"], capsys) == {"exact_match": pytest.approx(2 / 3)}


def test_the_form_of_an_answer_reaches_the_rule(tmp_path: Path) -> None:
    case = {"prediction": "1.234", "references": ["1.2"], "answer_type": "float"}
    path = write(tmp_path / "cases.json", [case, {**case, "precision": 2}, {**case, "answer_type": "text"}])
    assert [result["score"] for result in score_file(path, "mathvista").results()] == [1.0, 0.0, 0.0]
    with pytest.raises(UserError, match=r"precision of case 1 .* is a string; write a number"):
        score_file(write(path, [{**case, "precision": "two"}]), "mathvista")


def test_lines_are_read_and_ids_are_given_back(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text("\ufeff" + "\n\n".join(json.dumps({**case, "id": i}) for i, case in enumerate(CASES)) + "\n")
    assert [(result["id"], result["score"]) for result in score_file(path, "llava").results()] == [
        (0, 1.0),
        (1, 1.0),
        (2, 0.0),
    ]


def test_the_records_of_an_evaluation_are_such_a_file(tmp_path: Path) -> None:
    records = [
        SampleRecord("a", "ocr", "read", "Seven", "seven", ("seven",), 0.25),
        SampleRecord("b", "ocr", "read", "", "", ("", "no"), 0.25, error="the image file is empty"),
    ]
    RecordsFile(tmp_path / "llava.jsonl").write(records, {})
    results = score_file(tmp_path / "llava.jsonl", "llava").results()
    assert [result["score"] for result in results] == [1.0, 0.0], "what was not shown is wrong"


CASE = CASES[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"prediction": ', "is not JSON"),
        (b'{"prediction": "a"}', "not a JSON list but an object"),
        (b"[]", "holds no case"),
        (b"", "holds no case"),
        (b'["a"]', "Case 1 of .* is a string"),
        ([CASE, {"prediction": "a"}], "Case 2 of .* has no 'references'"),
        ([CASE, CASE, {"references": ["a"]}], "Case 3 of .* has no 'prediction'"),
        ([{**CASE, "references": "red"}], "references of case 1 .* no list of strings"),
        ([{**CASE, "choices": [1, 2]}], "choices of case 1 .* no list of strings"),
        ([{**CASE, "references": []}], "Case 1 of .* no reference"),
        ([{**CASE, "prediction": 7}], "prediction of case 1 .* is a number"),
        ([{**CASE, "category": None}], "category of case 1 .* is null"),
        ([{**CASE, "id": "a"}, {**CASE, "id": "b"}, {**CASE, "id": "a"}], "Cases 1 and 3 of .* both have the id 'a'"),
        ([{**CASE, "id": 1}, CASE], "Case 2 of .* has no id"),
        ('[{"prediction": "ü"}]'.encode("latin-1"), "is not UTF-8"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "cases.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UserError, match=message) as refusal:
        score_file(path, "miniworld")
    assert str(path) in str(refusal.value)


def test_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(f"{json.dumps(CASE)}\n\n[\n")
    with pytest.raises(UserError, match="line 3 is not JSON"):
        score_file(path, "miniworld")
    with pytest.raises(UserError, match=r"absent\.json cannot be read"):
        score_file(tmp_path / "absent.json", "miniworld")


def test_unknown_rules_and_variants_are_refused() -> None:
    with pytest.raises(UserError, match="no scoring rule for 'docvq'; did you mean docvqa"):
        scoring.rule("docvq")
    with pytest.raises(UserError, match="not scored by the rule 'lmms-eval', only by official"):
        scoring.rule("miniworld", "lmms-eval")


@pytest.mark.parametrize("name", sorted(scoring.RULES))
def test_every_rule_is_found_by_name(name: str) -> None:
    rule = scoring.rule(name)
    assert rule.VARIANTS[0] == "official" and rule.METRIC and callable(rule.score)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--score-file", "c.json"], "--benchmark NAME"),
        (["run", "--score-file", "c.json", "--benchmark", "pope"], "a file and no run"),
        (["run", "--benchmark", "pope"], "belong to --score-file"),
        (["run", "--summary"], "belong to --score-file"),
        ([], "Nothing to evaluate"),
        (["--compare"], "Nothing to evaluate"),
        (["run", "--compare"], "two runs or more"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        app(["eval", *arguments], standalone_mode=False)


def test_scoring_a_file_needs_no_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "cases.json", CASES)
    code = (
        "import sys; from vlmkit.cli.app import app; "
        f"app(['eval', '--score-file', {str(path)!r}, '--benchmark', 'miniworld'], standalone_mode=False); "
        "assert not {'torch', 'transformers', 'datasets', 'scipy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
