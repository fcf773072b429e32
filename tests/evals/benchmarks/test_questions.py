"""What every published benchmark asks of its rows, written out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up_tables import TABLES, png, write_fixture

from vlmkit import registry
from vlmkit.evals.benchmarks import TABLE_BENCHMARKS, Question, open_benchmark
from vlmkit.evals.benchmarks.table import AskedSample

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


def samples(name: str, directory: Path) -> list[AskedSample]:
    write_fixture(name, directory)
    benchmark = open_benchmark(name, directory)
    return [benchmark.samples[index] for index in range(len(benchmark.samples))]


def asked(name: str, directory: Path) -> list[Question]:
    return [question for sample in samples(name, directory) for question in sample.questions]


FIRST_QUESTIONS = {
    "gqa": Question("201", f"Is it blue?\n{SHORT}", ("yes",), "gqa"),
    "vqav2": Question("7000", f"What is this?\n{SHORT}", ("cat",) * 7 + ("kitten",) * 3, "vqav2", category="other"),
    "vizwiz_vqa": Question(
        "VizWiz_val_00000000.jpg",
        "Can you tell me what this is?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
        + SHORT,
        ("unanswerable",) * 6 + ("soup",) * 4,
        "vizwiz_vqa",
        category="unanswerable",
    ),
    "textvqa": Question("34602", f"what brand is it?\n{SHORT}", ("dakota",) * 9 + ("none",), "textvqa"),
    "scienceqa_img": Question(
        "0",
        f"Context: Solids keep their shape.\nWhich one is a solid?\nA. water\nB. rock\nC. air\n{LETTER}",
        ("B",),
        "scienceqa_img",
        ("water", "rock", "air"),
    ),
    "pope": Question("0", f"Is there a dog in the image?\n{SHORT}", ("yes",), "pope", category="adversarial"),
    "mme": Question(
        "0",
        f"Is it Python?\n{SHORT}",
        ("Yes",),
        "mme",
        category="code_reasoning",
        question_id="code_reasoning/0020.png",
    ),
    "mmbench_en_dev": Question(
        "241/0",
        f"It is round.\nWhich is it?\nA. a box\nB. a ball\nC. a road\n{LETTER}",
        ("B",),
        "mmbench_en_dev",
        ("a box", "a ball", "a road"),
        "identity_reasoning",
        "241",
    ),
    "seedbench": Question(
        "1",
        f"How many are there?\nA. One\nB. Two\nC. Three\nD. Four\n{LETTER}",
        ("A",),
        "seedbench",
        ("One", "Two", "Three", "Four"),
        "image",
    ),
    "mmmu": Question(
        "validation_Accounting_1",
        f"<image> Cost?\nA. $6\nB. <image>\n{LETTER}",
        ("B",),
        "mmmu",
        ("$6", "<image 2>"),
        "Accounting",
    ),
    "ai2d": Question(
        "0", f"Which eats grass?\nA. fox\nB. hare\nC. owl\n{LETTER}", ("B",), "ai2d", ("fox", "hare", "owl")
    ),
    "mathvista": Question(
        "1", "Hint: Please answer with one decimal place.\nQuestion: What is the sum?", ("1.2",), "mathvista"
    ),
    "chartqa": Question(
        "0", "What is the maximum?\nAnswer the question with a single word.", ("14",), "chartqa", category="human"
    ),
    "docvqa": Question("49153", f"What is the date?\n{SHORT}", ("1 May 1999", "1/5/99"), "docvqa"),
    "infovqa": Question("98313", f"How many users?\n{SHORT}", ("1,200",), "infovqa"),
    "ocrbench": Question(
        "0", "what is written in the image?", ("CENTRE",), "ocrbench", category="Regular Text Recognition"
    ),
    "coco_captions": Question(
        "1",
        "Provide a one-sentence caption for the provided image.",
        ("a cat on a table", "one cat inside"),
        "coco_captions",
    ),
}


def test_there_is_a_fixture_and_a_fact_for_every_benchmark() -> None:
    assert set(FIRST_QUESTIONS) == set(TABLES) == set(TABLE_BENCHMARKS)
    for name, benchmark in TABLE_BENCHMARKS.items():
        assert registry.benchmark(name).metric == benchmark.rule.METRIC
        assert benchmark.rule.__name__ == f"vlmkit.evals.scoring.{name}"


@pytest.mark.parametrize("name", FIRST_QUESTIONS)
def test_the_first_question_is_asked_and_answered_as_published(name: str, tmp_path: Path) -> None:
    every = asked(name, tmp_path)
    assert every[0] == FIRST_QUESTIONS[name]
    assert len({question.id for question in every}) == len(every)
    rule = TABLE_BENCHMARKS[name].rule
    if not hasattr(rule, "score_corpus"):
        for question in every:
            assert rule.score(question.case(max(question.references, key=question.references.count))) > 0.89


def test_gqa_joins_questions_and_images_by_the_id_of_the_image(tmp_path: Path) -> None:
    blue, box = samples("gqa", tmp_path)
    assert (blue.read_images(), box.read_images()) == ([png(200)], [png(10)])


def test_textvqa_is_asked_with_and_without_ocr_words_and_reported_apart(tmp_path: Path) -> None:
    without, with_words = asked("textvqa", tmp_path)
    assert with_words.prompt == f"what brand is it?\nReference OCR token: DAKOTA, DIGITAL\n{SHORT}"
    assert (without.family, with_words.family) == ("textvqa", "textvqa_ocr_words")
    assert without.references == with_words.references


def test_mmbench_asks_every_rotation_of_the_options_that_are_there(tmp_path: Path) -> None:
    turns = asked("mmbench_en_dev", tmp_path)
    assert [turn.choices for turn in turns] == [
        ("a box", "a ball", "a road"),
        ("a ball", "a road", "a box"),
        ("a road", "a box", "a ball"),
    ]
    assert [turn.references for turn in turns] == [("B",), ("A",), ("C",)]
    assert {turn.question_id for turn in turns} == {"241"}
    assert turns[2].prompt == f"It is round.\nWhich is it?\nA. a road\nB. a box\nC. a ball\n{LETTER}"


def test_mme_pairs_share_the_image_and_lose_the_instruction_of_the_published_question(tmp_path: Path) -> None:
    questions = asked("mme", tmp_path)
    assert [question.question_id for question in questions] == ["code_reasoning/0020.png"] * 2 + ["count/01.jpg"] * 2
    assert not any("yes or no" in question.prompt for question in questions)


def test_mmmu_shows_an_image_for_every_place_in_order(tmp_path: Path) -> None:
    choice, open_question = samples("mmmu", tmp_path)
    assert choice.read_images() == [png(20), png(40)]
    (question,) = open_question.questions
    assert question.prompt == f"Name the style. <image>\n{SHORT}"
    assert (question.references, question.choices, question.category) == (("cubism", "cubist"), (), "Art_Theory")


def test_seedbench_shows_the_frames_of_a_video(tmp_path: Path) -> None:
    image, video = samples("seedbench", tmp_path)
    assert (image.read_images(), video.read_images()) == ([png(8)], [png(9), png(10)])
    assert [sample.questions[0].category for sample in (image, video)] == ["image", "video"]


def test_mathvista_choices_are_texts_and_so_is_the_reference(tmp_path: Path) -> None:
    _, choice = asked("mathvista", tmp_path)
    assert (choice.choices, choice.references) == (("red", "blue"), ("blue",))


def test_coco_images_lie_beside_the_captions_as_in_its_archives(tmp_path: Path) -> None:
    assert [sample.read_images() for sample in samples("coco_captions", tmp_path)] == [[png(1)], [png(2)]]
