"""Data loading: decoding and augmentation against open_clip's, the whole loader against that, and a large shard set.

    python benchmarks/data_loading.py

Goals: twice open_clip's images per second and core; a loader that delivers at least 0.85 of bare decoding and
augmentation; under 3 % waiting for data at that rate; a million rows indexed in under 2 minutes, reopened in under 2
seconds, in the memory of a single shard. Needs 3 GB of disk for a while and takes about six minutes on two cores; to
see that it works, give --images 60 --repeats 2 --batches 10 --rows 20000.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import shutil
import statistics
import tarfile
import tempfile
import time
import warnings
from collections.abc import Iterator
from itertools import islice
from multiprocessing.connection import Connection
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import write_results
from open_clip.transform import image_transform
from PIL import Image

from vlmkit.config import AugmentConfig
from vlmkit.data.caption_tokenizers import ClipTokenizer, LabelTokenizer
from vlmkit.data.captions import CaptionCollate, CaptionLoader
from vlmkit.data.draws import Draws
from vlmkit.data.images import JPEG_DECODER, TrainTransform, decode_image
from vlmkit.data.loader import Stream
from vlmkit.data.sources.opener import open_captions
from vlmkit.pipelines.timing import interleaved_seconds

SIZE = 224
PRESETS = {
    "crop 0.9-1": AugmentConfig(crop_scale=(0.9, 1.0)),
    "crop 0.4-1, colour, grey": AugmentConfig(
        crop_scale=(0.4, 1.0), color_jitter=(0.32, 0.32, 0.32, 0.08), color_jitter_prob=0.8, grayscale_prob=0.2
    ),
}
"""The augmentations of the two published SuperClass schedules (configs/cls_schedule of its repository)."""
SHARD_ROWS = 10_000
BATCH = 64

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a caption source with JPEGs to use instead of made ones")
    parser.add_argument("--images", type=int, default=400, help="images of one measurement of decoding")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="loader processes; one a core")
    parser.add_argument("--batches", type=int, default=240, help=f"batches of {BATCH} of one measurement of the loader")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the shard set that is indexed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Unused augmentation cfg items")  # said of items that open_clip does use
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["VLMKIT_CACHE"] = f"{scratch}/cache"
        spec = args.data or f"wds:{make_photos(Path(scratch) / 'photos', args.images)}"
        source = open_captions(spec)
        jpegs = [bytes(source[index].image) for index in range(min(len(source), args.images))]
        rows = [*decoding(jpegs, args.repeats), *loading(spec, jpegs, args), *indexing(Path(scratch), args.rows)]
    sizes = statistics.mean(map(len, jpegs)) / 1e3
    about = vars(args) | {"jpegs": f"{len(jpegs)} of {sizes:.0f} KB on average", "jpeg_decoder": JPEG_DECODER}
    print(f"{'measurement':58}{'value':>12} {'unit':12}{'ratio':>8}  goal")
    for row in rows:
        value, ratio = statistics.median(row["value"]), row["ratio"]
        print(f"{row['measurement']:58}{value:>12,.3g} {row['unit']:12}{ratio or 0:>8.3g}  {row['goal']}")
    print("written:", *write_results("data_loading", torch.device("cpu"), about, rows))


def row(measurement: str, value: list[float], unit: str, ratio: float | None = None, goal: str = "") -> Row:
    """A line of the table: a value for each repeat, and how it compares with what its name or goal says."""
    return {"measurement": measurement, "value": value, "unit": unit, "ratio": ratio, "goal": goal}


def make_photos(folder: Path, count: int) -> Path:
    """Shards of JPEGs of 256 to 480 pixels a side, as smooth and as noisy as photos (about 45 KB), with captions."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number in range(count):
            width, height = rng.integers(256, 481, 2).tolist()
            coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
            smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
            pixels = (smooth + rng.normal(0, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
            photo = io.BytesIO()
            Image.fromarray(pixels).save(photo, "JPEG", quality=85)
            caption = " ".join(rng.choice(WORDS, 12))
            add(tar, f"{number:06d}.jpg", photo.getvalue())
            add(tar, f"{number:06d}.txt", caption.encode())
    return folder


WORDS = ["photo", "of", "two", "old", "dogs", "and", "their", "red", "ball", "under", "trees", "by", "the", "river"]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file to a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def decoding(jpegs: list[bytes], repeats: int) -> list[Row]:
    """Decode and augment on one core: vlmkit's uint8 tensors and open_clip's own training transform."""
    rows = []
    for name, augment in PRESETS.items():
        transform = TrainTransform(SIZE, augment)
        peer = image_transform(
            SIZE,
            is_train=True,
            aug_cfg={
                "scale": augment.crop_scale,
                "color_jitter": augment.color_jitter,
                "color_jitter_prob": augment.color_jitter_prob if augment.color_jitter else None,
                "gray_scale_prob": augment.grayscale_prob or None,
            },
        )
        draws = Draws("benchmark")
        seconds = interleaved_seconds(
            {
                "open_clip": lambda peer=peer: [peer(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in jpegs],
                "vlmkit": lambda transform=transform, draws=draws: [
                    transform(decode_image(jpeg), draws) for jpeg in jpegs
                ],
            },
            repeats,
            torch.device("cpu"),
        )
        rates = {who: [len(jpegs) / taken for taken in times] for who, times in seconds.items()}
        ratio = statistics.median(rates["vlmkit"]) / statistics.median(rates["open_clip"])
        rows.append(row(f"{name}: open_clip", rates["open_clip"], "images/s"))
        rows.append(row(f"{name}: vlmkit, to open_clip", rates["vlmkit"], "images/s", ratio, "2"))
    return rows


def loading(spec: str, jpegs: list[bytes], args: argparse.Namespace) -> list[Row]:
    """The whole loader, bare decoding in as many processes, and waiting at 0.85 of the bare rate, in turn."""
    augment = PRESETS["crop 0.9-1"]
    bare, whole, waits = [], [], []
    for _ in range(args.repeats):
        bare.append(bare_rate(jpegs, augment, args.workers))
        whole.append(loader_rate(batches(spec, augment, args.workers), args))
        # By the rate just measured: machines change their speed by more than the loader has to spare.
        waits.append(waiting(batches(spec, augment, args.workers), BATCH / (0.85 * bare[-1]), args))
    processes, step = f"{args.workers} processes", BATCH / (0.85 * statistics.median(bare))
    ratio = statistics.median(mine / theirs for mine, theirs in zip(whole, bare, strict=True))
    return [
        row(f"bare decode and augment in {processes}", bare, "images/s"),
        row(f"whole loader, {processes}, to bare", whole, "images/s", ratio, "0.85"),
        row(f"waiting for data, a step taking {step * 1e3:.0f} ms", waits, "of the time", None, "under 0.03"),
    ]


def batches(spec: str, augment: AugmentConfig, workers: int) -> Iterator[Any]:
    """Training batches as pretraining gets them."""
    source = open_captions(spec)
    load, collate = CaptionLoader(source, SIZE, augment=augment), CaptionCollate(LabelTokenizer(ClipTokenizer()))
    return map(itemgetter(0), Stream(load, source, collate, global_batch_size=BATCH, num_workers=workers).steps(0))


def loader_rate(stream: Iterator[Any], args: argparse.Namespace) -> float:
    """Images a second, once the loader's queues have been emptied."""
    for _ in islice(stream, 5 * args.workers):
        pass
    start = time.perf_counter()
    for _ in islice(stream, args.batches):
        pass
    return args.batches * BATCH / (time.perf_counter() - start)


def waiting(stream: Iterator[Any], step: float, args: argparse.Namespace) -> float:
    """The share of time that a consumer of fixed step time spends waiting for its next batch."""
    next(stream)
    waited, start = 0.0, time.perf_counter()
    for _ in range(args.batches):
        time.sleep(step)
        asked = time.perf_counter()
        next(stream)
        waited += time.perf_counter() - asked
    return waited / (time.perf_counter() - start)


def bare_rate(jpegs: list[bytes], augment: AugmentConfig, workers: int) -> float:
    """Images a second of all processes together that only decode and augment what is in their memory."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(workers)
    results = context.SimpleQueue()
    processes = [context.Process(target=_decode_all, args=(jpegs, augment, barrier, results)) for _ in range(workers)]
    for process in processes:
        process.start()
    rates = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(rates)


def _decode_all(jpegs: list[bytes], augment: AugmentConfig, barrier: Any, results: Any) -> None:
    transform, draws = TrainTransform(SIZE, augment), Draws("benchmark")
    for jpeg in jpegs[:10]:
        transform(decode_image(jpeg), draws)
    barrier.wait()
    start = time.perf_counter()
    for jpeg in jpegs:
        transform(decode_image(jpeg), draws)
    results.put(len(jpegs) / (time.perf_counter() - start))


def indexing(scratch: Path, num_rows: int) -> list[Row]:
    """First and second opening of a shard set and of a tenth of it, each in a process of its own."""
    folder = scratch / "large"
    folder.mkdir()
    shards = max(10, num_rows // SHARD_ROWS)
    per_shard = num_rows // shards
    with tarfile.open(folder / "00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(per_shard):
            add(tar, f"{number:06d}.jpg", b"no real image")
            add(tar, f"{number:06d}.txt", b"a caption")
    for number in range(1, shards):
        shutil.copyfile(folder / "00000.tar", folder / f"{number:05d}.tar")
    rows = []
    for count in (shards // 10, shards):
        spec = f"wds:{folder}/{{00000..{count - 1:05d}}}.tar"
        size = f"{count * per_shard:,} rows"
        for what, goal in (("first index", "under 120"), ("reopening", "under 2")):
            opened = in_fresh_process(spec)
            rows.append(row(f"{size}: {what}", [opened["seconds"]], "s", None, goal))
            rows.append(row(f"{size}: {what}, memory", [opened["megabytes"]], "MB"))
        rows.append(row(f"{size}: random captions", [opened["captions_per_second"]], "captions/s"))
    return rows


def in_fresh_process(spec: str) -> dict[str, float]:
    """Seconds and additional peak memory of opening a source, and the rate of reading captions at random."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_open, args=(spec, sender))
    process.start()
    result: dict[str, float] = json.loads(receiver.recv())
    process.join()
    return result


def peak_megabytes() -> float:
    """The most memory this process has had since it began (Linux; getrusage would count its parent's too)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1e3


def _open(spec: str, sender: Connection) -> None:
    before, start = peak_megabytes(), time.perf_counter()
    source = open_captions(spec)
    result = {"seconds": time.perf_counter() - start, "megabytes": peak_megabytes() - before}
    indices = np.random.default_rng(0).integers(len(source), size=5000).tolist()
    start = time.perf_counter()
    for index in indices:
        source.captions_only(index)
    result["captions_per_second"] = len(indices) / (time.perf_counter() - start)
    sender.send(json.dumps(result))


if __name__ == "__main__":
    main()
