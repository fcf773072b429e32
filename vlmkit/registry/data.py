"""Data sources, benchmarks, and the sets of benchmarks that stand for a family."""

from __future__ import annotations

from vlmkit.registry.facts import BenchmarkFacts, BenchmarkSet, DatasetFacts

DATASETS = [
    DatasetFacts(
        "miniworld", "miniworld:train?scenes=16000", ("captions", "conversations", "labels"), "the embedded drawn world"
    ),
    DatasetFacts("wds", "wds:shards/train-*.tar", ("captions",), "WebDataset tar shards: local, s3://, https://, ..."),
    DatasetFacts("csv", "csv:captions.tsv?root=images", ("captions",), "CSV or TSV with paths of images and captions"),
    DatasetFacts("parquet", "parquet:data/train-*.parquet", ("captions",), "Parquet with images or their paths"),
    DatasetFacts("jsonl", "jsonl:train.jsonl?images=DIR", ("captions", "conversations"), "JSON lines beside images"),
    DatasetFacts(
        "hf",
        "hf:OWNER/NAME?split=train",
        ("captions", "conversations"),
        "a Hugging Face data set, from the hub or local",
    ),
    DatasetFacts("llava", "llava:data/train.json", ("conversations",), "LLaVA conversation JSON with an image folder"),
    DatasetFacts("folder", "folder:photos/train", ("labels",), "one folder a class"),
]

BENCHMARKS = [
    BenchmarkFacts("linear_probe", "tower", (), "accuracy", "logistic regression on frozen pooled features"),
    BenchmarkFacts("linear_probe_mae", "tower", (), "accuracy", "linear layer by LARS, MAE's protocol, many rates"),
    BenchmarkFacts("few_shot", "tower", (), "accuracy", "ridge regression from 1, 5 and 10 images a class"),
    BenchmarkFacts("knn", "tower", (), "accuracy", "20 nearest neighbours by cosine"),
    BenchmarkFacts("zero_shot", "tower", (), "accuracy", "class names in sentences (runs with a text tower)"),
    BenchmarkFacts("finetune", "tower", (), "accuracy", "the whole tower and a linear head, a short training"),
    BenchmarkFacts("caption", "tower", (), "cider", "a small language model on the frozen tower, captions scored"),
    BenchmarkFacts("label_report", "tower", (), "", "the labels of a classification run: counts, coverage, weights"),
    BenchmarkFacts(
        "miniworld", "vlm", ("reasoning", "ocr", "attribute", "count"), "exact_match", "questions on unseen scenes"
    ),
    BenchmarkFacts("llava", "vlm", (), "exact_match", "any LLaVA-format JSON: llava:FILE"),
    BenchmarkFacts("gqa", "vlm", ("reasoning",), "exact_match", "questions made from scene graphs; test-dev balanced"),
    BenchmarkFacts("vqav2", "vlm", (), "vqa_accuracy", "open questions, ten answers each; val"),
    BenchmarkFacts("vizwiz_vqa", "vlm", (), "vqa_accuracy", "what blind people photographed and asked; val"),
    BenchmarkFacts("textvqa", "vlm", ("ocr",), "vqa_accuracy", "questions about text, with and without OCR words; val"),
    BenchmarkFacts("scienceqa_img", "vlm", ("reasoning",), "accuracy", "school science with an image; test"),
    BenchmarkFacts("pope", "vlm", ("reasoning",), "f1", "is it there? random, popular and adversarial objects"),
    BenchmarkFacts("mme", "vlm", ("reasoning",), "total", "yes or no, in pairs: perception and cognition"),
    BenchmarkFacts("mmbench_en_dev", "vlm", ("reasoning",), "circular_accuracy", "choices in every rotation; dev"),
    BenchmarkFacts("seedbench", "vlm", (), "accuracy", "choices about images and videos"),
    BenchmarkFacts("mmmu", "vlm", ("reasoning",), "accuracy", "college exams in 30 subjects; val"),
    BenchmarkFacts("ai2d", "vlm", ("reasoning",), "accuracy", "school diagrams; test"),
    BenchmarkFacts("mathvista", "vlm", ("reasoning",), "accuracy", "mathematics in pictures; testmini, read by rule"),
    BenchmarkFacts("chartqa", "vlm", ("reasoning",), "relaxed_accuracy", "charts, numbers within 5 %; test"),
    BenchmarkFacts("docvqa", "vlm", ("ocr",), "anls", "scanned documents; val"),
    BenchmarkFacts("infovqa", "vlm", ("ocr",), "anls", "infographics; val"),
    BenchmarkFacts("ocrbench", "vlm", ("ocr",), "accuracy", "a thousand questions on text in images"),
    BenchmarkFacts("coco_captions", "vlm", (), "cider", "COCO captions, Karpathy's test split"),
]

BENCHMARK_SETS = [
    BenchmarkSet(
        "reasoning",
        ("mme", "gqa", "ai2d", "mmbench_en_dev", "mmmu", "scienceqa_img", "mathvista", "pope", "chartqa"),
        "the nine of arXiv 2411.03312",
    ),
    # arXiv 2411.03312 averages OCR-like benchmarks too, but does not list them in full.
    BenchmarkSet("ocr", ("textvqa", "docvqa", "infovqa", "ocrbench"), "a choice of this project"),
]
