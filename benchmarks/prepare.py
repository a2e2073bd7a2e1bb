"""Compare encoding by Ray Data actors with `datasets.map(batched=True)`: same rows and tokenizer, one thread each.

    python -m benchmarks.prepare [--json]

The rows are those of BQD if the folder PFT_DATA holds it, else those of the embedded data, repeated under new ids.
`datasets` gets the finished texts of both sides and only writes token ids; ours renders the texts, finds the shared
prefix, and writes masks and lengths too. Rates without start-up are slopes: additional rows over additional seconds.

rows_per_s: pairs per second of one actor. vs_datasets_map: that rate divided by the rate of `datasets`.
vs_datasets_map_with_startup: the same ratio from a cold Ray to the finished layer. scaling_2_actors: the rate of two
actors divided by the rate of one. peak_rss_mb: the peak memory of an encoding actor and the driver together, by number
of rows.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness import at_least, finish, machine, say
from pft_core.data import RECORD_SCHEMA, SIDES, DatasetManifest, PairedExample, PreferenceSpace, Shard, read_records
from pft_core.encoding import EncodingSpec
from pft_core.files import file_sha256
from pft_core.prompts import PromptSettings, PromptStyle, render_answer, render_prompt, target_options

ROWS_PER_SHARD = 4_000
FEW, MANY, MOST = 20_000, 60_000, 200_000
VOCAB = 8_192
STYLE = PromptStyle()
# Split like the tokenizer of Qwen2.5: words with the space before them, single digits, runs of punctuation.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least(1), default=3, help="Number of rounds; variants take turns.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object as the last line of stdout.")
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory(prefix="pft-benchmark-") as folder:
        result = measure(Path(folder), rounds=arguments.rounds)
    finish({**result, **machine()}, as_json=arguments.json)


def measure(folder: Path, *, rounds: int) -> dict[str, Any]:
    start_s = start_ray()
    name, records, space = source_records(folder)
    tokenizer = train_tokenizer(records, folder / "tokenizer")
    data = {rows: write_data(records, space, folder / f"rows-{rows}", rows=rows) for rows in (FEW, MANY, MOST)}
    ready = {rows: write_texts(records, space, folder / f"texts-{rows}.parquet", rows=rows) for rows in (FEW, MANY)}
    variants: dict[str, Callable[[int], Any]] = {
        "datasets": lambda rows: datasets_map(ready[rows], tokenizer, folder / "cache"),
        "one": lambda rows: encode(data[rows], folder / "tokenizer", actors=1),
        "two": lambda rows: encode(data[rows], folder / "tokenizer", actors=2),
    }
    peaks = {str(rows): peak_rss_mb(lambda rows=rows: variants["one"](rows)) for rows in (FEW, MOST)}
    seconds: dict[tuple[str, int], list[float]] = {(v, rows): [] for v in variants for rows in (FEW, MANY)}
    for number in range(rounds):
        for variant, rows in seconds:
            seconds[variant, rows].append(timed(lambda v=variant, r=rows: variants[v](r)))
        say(f"round {number + 1} of {rounds}: " + str({f"{v} {r}": f"{s[-1]:.1f}" for (v, r), s in seconds.items()}))
    rates = {v: slopes(seconds[v, FEW], seconds[v, MANY]) for v in variants}
    return {
        "data": name,
        "rows": [FEW, MANY],
        "rows_per_s": round(statistics.median(rates["one"])),
        "datasets_rows_per_s": round(statistics.median(rates["datasets"])),
        "vs_datasets_map": round(ratio(rates["one"], rates["datasets"]), 3),
        "vs_datasets_map_with_startup": round(
            ratio(seconds["datasets", FEW], [start_s + s for s in seconds["one", FEW]]), 3
        ),
        "scaling_2_actors": round(ratio(rates["two"], rates["one"]), 3),
        "peak_rss_mb": peaks,
    }


def slopes(few_s: list[float], many_s: list[float]) -> list[float]:
    return [(MANY - FEW) / (many - few) for few, many in zip(few_s, many_s, strict=True)]


def ratio(numerators: list[float], denominators: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def start_ray() -> float:
    from pipelines.jobs import ensure_ray

    return timed(ensure_ray)


def source_records(folder: Path) -> tuple[str, list[PairedExample], PreferenceSpace]:
    """Return the name of the available data, its records and their space."""
    from pipelines.prepare.job import PrepareConfig, prepare

    files = [str(file) for file in sorted(Path(os.environ.get("PFT_DATA", "-")).glob("bqd/*/train.json"))]
    source = {"source": "bqd", "input": files} if files else {"source": "toyworld"}
    manifest = prepare(PrepareConfig(output=str(folder / "source"), num_workers=1, **source), folder / "source")
    return str(source["source"]), list(read_records(folder / "source", manifest)), manifest.space


def train_tokenizer(records: list[PairedExample], folder: Path) -> Any:
    """Train a byte-level BPE tokenizer on the records' text: the benchmark must run without a download."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = ("\n".join([r.scenario, *(o.text for o in r.options)]) for r in records)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.save_pretrained(folder)
    return fast


def numbered(records: list[PairedExample], rows: int) -> Iterator[PairedExample]:
    return (replace(records[n % len(records)], id=f"{n:08d}") for n in range(rows))


def write_data(records: list[PairedExample], space: PreferenceSpace, folder: Path, *, rows: int) -> Path:
    """Write a prepared data set with this number of rows, in shards of ROWS_PER_SHARD."""
    (folder / "records").mkdir(parents=True)
    stream, shards = numbered(records, rows), []
    for number in range(-(-rows // ROWS_PER_SHARD)):
        path = folder / "records" / f"part-{number:05d}.parquet"
        table = pa.Table.from_pylist([r.to_row() for r in islice(stream, ROWS_PER_SHARD)], schema=RECORD_SCHEMA)
        pq.write_table(table, path, compression="zstd")
        shards.append(Shard(str(path.relative_to(folder)), file_sha256(path), table.num_rows))
    counts = {"rows_in": rows, "rows_out": rows, "pairs_out": rows, "rejected": 0, "rejected_by_reason": {}}
    digests = {"length_quantiles": {}, "config_digest": str(rows), "data_digest": str(rows)}
    DatasetManifest("benchmark", ("one",), space, tuple(shards), **counts, **digests).save(folder)  # type: ignore[arg-type]  # of mixed types
    return folder


def write_texts(records: list[PairedExample], space: PreferenceSpace, path: Path, *, rows: int) -> Path:
    """Write the finished texts of both sides of every row, for `datasets`."""
    texts = [[full_text(record, side, space) for side in SIDES] for record in records]
    columns = {f"side_{side}": [texts[n % len(texts)][side] for n in range(rows)] for side in SIDES}
    pq.write_table(pa.table(columns), path)
    return path


def full_text(record: PairedExample, side: int, space: PreferenceSpace) -> str:
    prompt = render_prompt(record, side=side, form="one", style=STYLE, space=space)
    return prompt.text + render_answer(record, target_options(record, side=side, form="one"), form="one", style=STYLE)


def datasets_map(texts: Path, tokenizer: Any, cache: Path) -> None:
    """Tokenize as users of `datasets` do: batched, in one process as its maintainers recommend, written to Arrow."""
    import datasets

    datasets.disable_progress_bars()
    datasets.disable_caching()

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {f"ids_{s}": tokenizer(batch[f"side_{s}"], add_special_tokens=False)["input_ids"] for s in SIDES}

    rows = datasets.Dataset.from_parquet(str(texts), cache_dir=str(cache))
    mapped = rows.map(
        tokenize,
        batched=True,
        remove_columns=rows.column_names,
        cache_file_name=str(cache / "mapped.arrow"),
        load_from_cache_file=False,
    )
    assert mapped.num_rows == rows.num_rows


def encode(data: Path, tokenizer: Path, *, actors: int) -> None:
    """Encode a data set from scratch, as `prepare` and `train` do."""
    from pipelines.encode import ModelTokenizer
    from pipelines.encode.job import ensure_layer

    shutil.rmtree(data / "encoded", ignore_errors=True)
    model_tokenizer = ModelTokenizer(str(tokenizer))
    facts = model_tokenizer.facts(PromptSettings())
    ensure_layer(
        data,
        DatasetManifest.load(data),
        tokenizer=model_tokenizer,
        facts=facts,
        spec=EncodingSpec(facts.style),
        max_reject_fraction=0.5,
        concurrency=actors,
    )


def peak_rss_mb(run: Callable[[], Any]) -> int:
    """Run a function, and return the peak memory of this process plus the largest encoding actor, in MB."""
    peaks, done = [0.0], Event()

    def watch() -> None:
        while not done.wait(0.1):
            peaks.append(rss(psutil.Process()) + max(map(rss, encoding_processes()), default=0.0))

    watcher = Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return round(max(peaks) / 1e6)


def encoding_processes() -> list[psutil.Process]:
    # Ray names a worker process after the actor that it runs.
    workers = psutil.process_iter(["cmdline"])
    return [w for w in workers if "_ShardEncoder" in " ".join(w.info["cmdline"] or [])]


def rss(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0.0


if __name__ == "__main__":
    main()
