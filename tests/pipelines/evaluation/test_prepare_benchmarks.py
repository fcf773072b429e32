"""Fetching benchmarks from a hub, here a small server that answers as the Hugging Face hub does."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import datasets
import huggingface_hub
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "evals" / "benchmarks"))
from made_up_tables import png, write_fixture

from vlmkit.cli.app import main
from vlmkit.errors import UserError
from vlmkit.evals.benchmarks import open_benchmark
from vlmkit.evals.benchmarks.lock import LOCK_FILE
from vlmkit.pipelines.evaluation.prepare_benchmarks import download, plan_downloads

COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


class Hub(ThreadingHTTPServer):
    """Serves folders as data sets: the list of files with their sizes, and the files."""

    def __init__(self, sets: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.sets = sets
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *args: object) -> None: ...

    def _answer(self, with_body: bool) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "image":
            self._send(png(int(parts[1])), with_body)
        elif parts[0] == "api" and (folder := self.server.sets.get("/".join(parts[2:4]))):
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            siblings = [{"rfilename": p.relative_to(folder).as_posix(), "size": p.stat().st_size} for p in files]
            self._send(
                json.dumps({"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": siblings}).encode(), with_body
            )
        elif parts[0] == "datasets" and (folder := self.server.sets.get("/".join(parts[1:3]))):
            assert parts[3:5] == ["resolve", COMMIT]
            name = "/".join(parts[5:])
            if not (folder / name).is_file():
                self._refuse("EntryNotFound")
                return
            self.server.fetched += [name] if with_body else []
            self._send((folder / name).read_bytes(), with_body)
        else:
            self._refuse("RepoNotFound")

    def _refuse(self, reason: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has POPE under its old name, and COCO's captions."""
    sets = {"lmms-lab/POPE": "pope", "yerevann/coco-karpathy": "coco_captions"}
    server = Hub({hub_id: write_fixture(name, tmp_path / "published") for hub_id, name in sets.items()})
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_a_benchmark_is_fetched_once_sizes_first_and_locked_to_its_commit(hub: Hub, tmp_path: Path) -> None:
    (unread := hub.sets["lmms-lab/POPE"] / "Full" / "popular-00000-of-00001.parquet").parent.mkdir()
    unread.write_bytes(b"another split")
    (planned,) = plan_downloads(["pope"], tmp_path / "data")
    published = hub.sets["lmms-lab/POPE"] / "data/test-00000-of-00001.parquet"
    assert (planned.hub_id, planned.revision, planned.num_bytes) == ("lmms-lab/POPE", COMMIT, published.stat().st_size)
    assert not hub.fetched and not planned.folder.exists()
    locks = [download(planned), download(planned)]
    assert locks[0] == locks[1] and hub.fetched == ["data/test-00000-of-00001.parquet"]
    assert json.loads((tmp_path / "data/pope" / LOCK_FILE).read_text()) == vars(locks[0])
    assert (locks[0].num_rows, locks[0].revision, locks[0].split) == (3, COMMIT, "test")
    benchmark = open_benchmark("pope", tmp_path / "data")
    assert (benchmark.samples.fingerprint, len(benchmark.samples)) == (COMMIT, 3)


def test_images_that_the_data_set_only_names_are_fetched_too(hub: Hub, tmp_path: Path) -> None:
    table = hub.sets["yerevann/coco-karpathy"] / "data/test-00000-of-00001.parquet"
    rows = datasets.Dataset.from_parquet(str(table)).to_list()
    moved = [{**row, "url": f"{hub.url}/image/{row['cocoid']}"} for row in rows]
    datasets.Dataset.from_list(moved).to_parquet(str(table))
    (planned,) = plan_downloads(["coco_captions"], tmp_path / "data")
    download(planned)
    samples = open_benchmark("coco_captions", tmp_path / "data").samples
    assert [samples[index].read_images() for index in range(2)] == [[png(1)], [png(2)]]


def test_what_cannot_be_fetched_is_one_sentence(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'popes' is not a benchmark for VLMs; did you mean pope"):
        plan_downloads(["popes"])
    with pytest.raises(UserError, match="no data set lmms-lab-encoder/MME or lmms-lab/MME that you may read"):
        plan_downloads(["mme"])
    table = hub.sets["lmms-lab/POPE"] / "data/test-00000-of-00001.parquet"
    (planned,) = plan_downloads(["pope"], tmp_path / "data")
    table.rename(table.with_name("train-00000-of-00001.parquet"))
    with pytest.raises(UserError, match="has no tables of the split test"):
        plan_downloads(["pope"])
    with pytest.raises(UserError, match=r"test-00000-of-00001\.parquet of lmms-lab/POPE cannot be fetched"):
        download(planned)
    assert not (tmp_path / "data/pope" / LOCK_FILE).exists()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"The hub does not answer about lmms-lab-encoder/POPE .*--data-dir"):
        plan_downloads(["pope"])


def test_the_command_says_what_it_will_fetch_and_what_is_there(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --data-dir it goes to the cache, where evaluation looks."""
    monkeypatch.setattr(sys, "argv", ["vlmkit", "eval", "--prepare", "pope"])
    with pytest.raises(SystemExit) as stop:
        main()
    printed = " ".join(capsys.readouterr().out.split())
    assert not stop.value.code
    assert "To be fetched" in printed and "lmms-lab/POPE" in printed and COMMIT[:12] in printed
    assert printed.index("KB") < printed.index("pope: 3 rows at revision")
    assert open_benchmark("pope").samples.fingerprint == COMMIT
