"""Measures how fast a corpus becomes token files, and in how much memory.

It makes a corpus of JSON lines, compressed by zstd, from the sources of Python's standard library,
and trains a vocabulary on some of it. Then it measures `tokenizers` alone, on texts that are in
memory already, in as many processes as the preparation gets, and the preparation itself: MB/s of
text, the ratio of both, and the largest memory of all its processes together (resident, and
proportional, which counts pages that processes share once). With `--kills N`, another preparation
is killed (SIGKILL) at N random times and resumed, and its token files are compared with the first.

    python scripts/measure_preparation.py --mb 50 --workers 2 --kills 5
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xftrain.data.tokens.pool import usable_cpus  # noqa: E402
from xftrain.data.tokens.tokenizer import Bpe  # noqa: E402

_TRAINED_BYTES = 8 << 20
_ALONE_BYTES = 24_000_000  # tokenized by each process of `tokenizers` alone
_AT_ONCE = 64


def texts(num_bytes: int, seed: int = 0) -> Iterator[str]:
    """Documents of 0.2 to 20 kB, which begin and end at random places of sources of Python."""
    draw = random.Random(seed)
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("**/*.py"))
    sources: list[str] = []
    for path in draw.sample(paths, min(len(paths), 1500)):
        try:
            sources.append(path.read_text("utf-8"))
        except ValueError:
            continue
    made = 0
    while made < num_bytes:
        source = draw.choice(sources)
        length = int(200 * 100 ** draw.random())
        begin = draw.randrange(max(1, len(source) - length))
        if text := source[begin : begin + length].strip():
            made += len(text.encode())
            yield text


def write_corpus(path: Path, num_bytes: int) -> int:
    """Writes a corpus; returns the bytes of its text."""
    made = 0
    compressor = zstandard.ZstdCompressor(level=3)
    with path.open("wb") as content, compressor.stream_writer(content) as file:
        for number, text in enumerate(texts(num_bytes)):
            file.write((json.dumps({"id": number, "text": text}) + "\n").encode())
            made += len(text.encode())
    return made


def _tokenize_alone(tokenizer: str, seed: int, barrier: Any, seconds: Any) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers

    model = tokenizers.Tokenizer.from_file(tokenizer)
    documents = list(texts(_ALONE_BYTES, seed))
    model.encode_batch_fast(documents[:_AT_ONCE])
    barrier.wait()
    start, cpu = time.perf_counter(), time.process_time()
    for begin in range(0, len(documents), _AT_ONCE):
        for encoding in model.encode_batch_fast(documents[begin : begin + _AT_ONCE]):
            _ = encoding.ids
    seconds.put((time.perf_counter() - start, time.process_time() - cpu))


def measure_alone(tokenizer: Path, num_workers: int) -> tuple[float, float]:
    """MB/s of `tokenizers` in `num_workers` processes, and MB for each second of CPU time."""
    context = multiprocessing.get_context("spawn")
    barrier, seconds = context.Barrier(num_workers), context.Queue()
    arguments = [(str(tokenizer), seed, barrier, seconds) for seed in range(num_workers)]
    processes = [context.Process(target=_tokenize_alone, args=one) for one in arguments]
    for process in processes:
        process.start()
    taken = [seconds.get() for _ in processes]
    for process in processes:
        process.join()
    megabytes = _ALONE_BYTES / 1e6
    return sum(megabytes / wall for wall, _ in taken), sum(megabytes / cpu for _, cpu in taken) / (
        num_workers
    )


def start(corpus: Path, tokenizer: Path, cache: Path, num_workers: int) -> subprocess.Popen[bytes]:
    """Starts a preparation."""
    script = Path(__file__).with_name("prepare_text.py")
    command = [sys.executable, str(script), str(corpus), "--tokenizer", str(tokenizer)]
    command += ["--cache-dir", str(cache), "--num-workers", str(num_workers)]
    return subprocess.Popen(command, start_new_session=True)


def watch(process: subprocess.Popen[bytes]) -> tuple[float, float, float]:
    """Waits for a preparation; returns seconds, and peak resident and proportional MiB of all."""
    begin, peaks = time.perf_counter(), [0.0, 0.0]
    while process.poll() is None:
        for at, kind in enumerate(("Rss", "Pss")):
            found = sum(memory_mib(number, kind) for number in family(process.pid))
            peaks[at] = max(peaks[at], found)
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"the preparation failed with {process.returncode}")
    return time.perf_counter() - begin, peaks[0], peaks[1]


def cpu_seconds() -> float:
    """CPU time of all processes that this one has started and waited for, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def family(number: int) -> list[int]:
    """A process and its children, by their ids."""
    try:
        children = Path(f"/proc/{number}/task/{number}/children").read_text("ascii").split()
    except OSError:
        return []
    return [number, *map(int, children)]


def memory_mib(number: int, kind: str) -> float:
    """Memory of a process."""
    try:
        lines = Path(f"/proc/{number}/smaps_rollup").read_text("ascii").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1024


def contents(cache: Path) -> dict[str, bytes]:
    """The token files, without the times in meta.json."""
    import hashlib

    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return {
        path.name: hashlib.sha256(path.read_bytes()).digest()
        for path in folder.iterdir()
        if path.name != "meta.json"
    }


def measure_kills(
    args: tuple[Path, Path, Path, int], num_kills: int, seconds: float, seed: int
) -> float:
    """Kills and resumes a preparation; returns the seconds of all parts together."""
    draw, begin = random.Random(seed), time.perf_counter()
    for number in range(num_kills):
        process = start(*args)
        wait_s = draw.uniform(0.3, 1.0) * seconds / num_kills
        time.sleep(wait_s)
        is_running = process.poll() is None
        os.killpg(process.pid, signal.SIGKILL) if is_running else None
        process.wait()
        shards = sum(1 for _ in args[2].glob(".*.shards/*.shard"))
        said = f"killed after {wait_s:.1f} s" if is_running else "was done before it was killed"
        print(f"preparation {number + 1} {said}, with {shards} shards")
    watch(start(*args))
    return time.perf_counter() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mb", type=float, default=50, help="size of the text in MB")
    parser.add_argument("--workers", type=int, default=usable_cpus())
    parser.add_argument("--kills", type=int, default=0, help="times a preparation is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    parser.add_argument("--folder", type=Path, help="where files are made, and then deleted")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="preparation-", dir=options.folder))
    try:
        return measure(folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, options: argparse.Namespace) -> int:
    corpus, tokenizer, workers = (
        folder / "corpus.jsonl.zst",
        folder / "tokenizer.json",
        options.workers,
    )
    num_bytes = write_corpus(corpus, int(options.mb * 1e6))
    bpe = Bpe.train((text.encode() for text in texts(_TRAINED_BYTES)), 8192)
    tokenizer.write_text(bpe.to_json(), encoding="utf-8")
    print(f"corpus: {num_bytes / 1e6:.0f} MB of text, {corpus.stat().st_size / 1e6:.0f} MB of file")
    args = corpus, tokenizer, folder / "cache", workers
    before = measure_alone(tokenizer, workers)
    cpu = cpu_seconds()
    seconds, resident, proportional = watch(start(*args))
    cpu = cpu_seconds() - cpu
    after = measure_alone(tokenizer, workers)  # on a machine with other work, they differ
    alone = (before[0] + after[0]) / 2
    speed, per_cpu = num_bytes / 1e6 / seconds, num_bytes / 1e6 / cpu
    print(
        f"tokenizers alone in {workers} processes: {before[0]:.2f} MB/s before and {after[0]:.2f} "
        f"after; {before[1]:.2f} and {after[1]:.2f} MB for each second of CPU time"
    )
    print(
        f"preparation with {workers} processes, start included: {speed:.2f} MB/s, "
        f"{speed / alone:.3f} of tokenizers alone; {per_cpu:.2f} MB for each second of CPU time, "
        f"reading included; peak memory {resident:.0f} MiB resident, "
        f"{proportional:.0f} MiB proportional"
    )
    if not options.kills:
        return 0
    other = corpus, tokenizer, folder / "killed", workers
    seconds_killed = measure_kills(other, options.kills, seconds, options.seed)
    is_same = contents(args[2]) == contents(other[2])
    print(
        f"killed {options.kills} times and resumed: {seconds_killed:.1f} s in place of "
        f"{seconds:.1f} s; the token files are {'the same' if is_same else 'NOT the same'}"
    )
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
