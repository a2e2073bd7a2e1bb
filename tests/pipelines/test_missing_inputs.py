"""Missing inputs are reported before anything starts, from a few files, without Ray or transformers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pft_core.data import SOURCES
from pft_core.errors import UserError
from pft_core.files import refuse_unwritable
from pft_core.policies import MODEL_REF_NAME, refuse_unusable_model
from pipelines.config import load_config
from pipelines.evaluate import EvaluateConfig
from pipelines.evaluate import refuse_missing_inputs as refuse_missing_of_evaluation
from pipelines.prepare import PrepareConfig
from pipelines.train import refuse_missing_inputs
from pipelines.train.inputs import warn_of_long_warmup
from pipelines.validated_yaml import build
from tests.builders import record, write_dataset

HEAVY = "ray|torch|transformers|pandas|mlflow|datasets"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "set", [record(0), record(1)])


MISSING = [
    ("train quickstart data=nosuch", "nosuch/manifest.json: no such file"),
    ("train quickstart data=ROWS", "is raw data: run `pft prepare --source json --input "),
    ("evaluate --data ROWS --model MODEL --output out", "and give DIR"),
    (
        "prepare --source csv --input ROWS --output out",
        "trl, vcd. (CSV is read by --source json)",
    ),
    ("train quickstart model=./nosuch", "model='./nosuch': no such folder"),
    ("train quickstart model=nosuch/model", "model='nosuch/model': no such folder here, nor in the cache"),
    ("train quickstart prompt.template=chat", "'toyworld' has no chat template"),
    ("train quickstart storage=/proc/nosuch", "/proc/nosuch: cannot be written"),
    ("quickstart storage=/proc/nosuch", "/proc/nosuch: cannot be written"),
    ("tune quickstart validation_data=nosuch", "nosuch/manifest.json: no such file"),
    ("tune quickstart data=DATA", "validation_data is not set, but the search picks the ratio on it"),
    ("prepare --source json --input ROWS --output out --model ./nosuch", "model='./nosuch': no such folder"),
    ("prepare --source json --input nosuch --output out", "nosuch: no such file or folder"),
    ("prepare --source toyworld --output /proc/nosuch", "/proc/nosuch: cannot be written"),
    ("prepare --source toyworld --output /", "output=/: is the root folder"),
    ("prepare --source toyworld --output out --plugin /", "plugin /: no such module on"),
    ("serve quickstart policy=", "policy: '' names nothing"),
    ("evaluate --data nosuch --model MODEL --output out", "nosuch/manifest.json: no such file"),
    ("evaluate --data DATA --model ./nosuch --output out", "model='./nosuch': no such folder"),
    ("evaluate --data DATA --model MODEL --output /proc/nosuch", "/proc/nosuch: cannot be written"),
    ("evaluate --data DATA --model MODEL --adapter nosuch --output out", "adapter=nosuch: no adapter_config.json"),
    ("prepare --source trl --input here/trian --output out", "here/trian: no such path here, nor in the cache"),
    ("evaluate --task capability --data DATA --model MODEL --output out", "manifest.json: the file is one object"),
    ("evaluate --task capability --data ROWS --model MODEL --output out", "none of its 1 rows is a question"),
    ("serve quickstart policy=/nosuch", "/nosuch: no such file or folder"),
    ("serve quickstart policy=MODEL adapters.one-sided=/nosuch", "/nosuch: no such file or folder"),
    ("serve quickstart policy=nosuch/model", "model='nosuch/model': no such folder here, nor in the cache"),
    ("serve quickstart policy=MODEL adapters={} store.root=/nosuch", "store.root=/nosuch: no such folder"),
    ("serve quickstart policy=MODEL adapters={} examples=/nosuch", "/nosuch/manifest.json: no such file"),
    ("export nosuch --to out", "nosuch: no such run"),
    ("export MODEL --to out", "not a finished run, because it has no model_ref.json"),
    ("export LOST --to out", "model='nosuch/base': no such folder here"),
    ("export LOST --to DATA", "the folder is not empty: choose another one, or empty it"),
    ("export LOST --to /proc/nosuch", "/proc/nosuch: cannot be written"),
    ("compare table2_vcd --storage /proc/nosuch", "/proc/nosuch: cannot be written"),
    ("compare --outcomes DATA --outcomes DATA --storage /proc/nosuch", "/proc/nosuch: cannot be written"),
    ("quickstart data=DATA", "`pft quickstart` evaluates on the embedded data only"),
    (
        "tune quickstart --mode soup search.num_trials=3",
        "search.num_trials=3 has no effect: only --mode optuna reads it",
    ),
    ("compare table2_vcd --size huge", "has no size 'huge'"),
]


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose base is neither here nor on the Hub."""
    folder = tmp_path_factory.mktemp("lost")
    stored = Path(__file__).parents[1] / "stored" / MODEL_REF_NAME
    ref = json.loads(stored.read_text(encoding="utf-8"))
    (folder / MODEL_REF_NAME).write_text(json.dumps(ref | {"base": "nosuch/base"}))
    return folder


@pytest.fixture(scope="module")
def answers(
    data: Path, lost: Path, tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, str, str]]:
    """Return exit code, message and heavy modules of every command, run in one process, since imports only add up."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "rows.jsonl").write_text("{}\n")
    places = {"DATA": str(data), "MODEL": str(tiny_qwen2), "ROWS": "rows.jsonl", "LOST": str(lost)}
    commands = [[re.sub("|".join(places), lambda m: places[m[0]], word) for word in c.split()] for c, _ in MISSING]
    code = f"""
import contextlib, io, json, re, sys
from pipelines import cli
cli.reserve_stdout = lambda: (1, print)
for command in {commands!r}:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            code = cli.app(args=command, prog_name="pft", standalone_mode=False)
        except BaseException as error:
            code = getattr(error, "exit_code", repr(error))
    heavy = sorted(n for n in sys.modules if re.fullmatch("{HEAVY}", n))
    print(json.dumps([code, said.getvalue(), heavy]))
"""
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=env, check=True)
    assert [path.name for path in folder.iterdir()] == ["rows.jsonl"]
    return {c: json.loads(line) for (c, _), line in zip(MISSING, done.stdout.splitlines(), strict=True)}


@pytest.mark.parametrize(("command", "message"), MISSING, ids=lambda text: text[:50])
def test_a_missing_input_is_one_line_before_heavy_imports(
    answers: dict[str, tuple[int, str, str]], command: str, message: str
) -> None:
    code, said, heavy = answers[command]
    assert (code, heavy) == (2, [])
    assert message in said
    assert said.count("\n") == 1


def test_a_model_folder_without_a_chat_template_is_recognized_from_its_files(tiny_qwen2: Path, tmp_path: Path) -> None:
    refuse_unusable_model(str(tiny_qwen2), wants_chat=False)
    with pytest.raises(UserError, match=r"prompt\.template=chat, but tokenizer .* has no chat template: use plain"):
        refuse_unusable_model(str(tiny_qwen2), wants_chat=True)
    (tmp_path / "m").mkdir()
    for file in tiny_qwen2.iterdir():
        (tmp_path / "m" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "m" / "chat_template.jinja").write_text(
        "{% for m in messages %}<user>{{ m.content }}{% endfor %}<model>"
    )
    refuse_unusable_model(str(tmp_path / "m"), wants_chat=True)


def test_a_similar_folder_is_suggested_and_an_adapter_gets_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "qwen2-tiny").mkdir(parents=True)
    with pytest.raises(UserError, match="Did you mean 'models/qwen2-tiny'"):
        refuse_unusable_model("models/qwen2-tini", wants_chat=False)
    with pytest.raises(UserError, match="not a valid name of a model on the Hub"):
        refuse_unusable_model("my model", wants_chat=False)
    adapter = tmp_path / "run" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    with pytest.raises(UserError, match=r"is an adapter without its base model: give its base model \(owner/"):
        refuse_unusable_model(str(adapter), wants_chat=False)
    (adapter.parent / "model_ref.json").write_text("{}")
    with pytest.raises(UserError, match=f"give its run, {adapter.parent}, or the base model"):
        refuse_unusable_model(str(adapter), wants_chat=False)


def test_an_unwritable_folder_is_reported_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place in ("file", "file/below", "loop", "loop/below", "x" * 300):
        with pytest.raises(UserError, match=r"cannot be written \(.*\): choose another folder"):
            refuse_unwritable(tmp_path / place)
    refuse_unwritable(tmp_path / "new" / "deep")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "loop"}


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        ("json", {"seed": 3}, "seed=3 has no effect: source=json reads files"),
        (
            "vcd",
            {"split": "test"},
            "split=test has no effect: source=vcd reads files, and none is a Hugging Face data set",
        ),
        ("json", {"num_per_axis": 4}, "num_per_axis=4 has no effect"),
        ("toyworld", {"axis": "Pace"}, "axis=Pace has no effect: source=toyworld has rows that name"),
        ("toyworld", {"split": "train_prefs"}, "split='train_prefs': source=toyworld has train, validation, test"),
        ("json", {"split": "a b"}, "split='a b': expected"),
        ("json", {"axis": ""}, "axis='': expected"),
        ("json", {"input": [""]}, r"input\.0: '' names nothing: give a path"),
        ("json", {"output": ""}, "output: '' names nothing"),
        ("json", {"model": " "}, "model: ' ' names nothing"),
    ],
)
def test_an_option_that_does_not_apply_is_refused(source: str, given: dict[str, Any], message: str) -> None:
    rows = {"input": ["rows.jsonl"]} if SOURCES[source].reads_files else {}
    with pytest.raises(UserError, match=f"^{message}"):
        build(PrepareConfig, {"source": source, "output": "out", **rows, **given})


def test_options_that_apply_are_accepted() -> None:
    for source in ("persona", "prefeval"):  # a hub data set has no file name that could name the axis
        with pytest.raises(
            UserError, match=f"axis is not set: source={source} .* owner/name is a Hugging Face data set"
        ):
            build(PrepareConfig, {"source": source, "output": "o", "input": ["owner/name"]})
        assert build(PrepareConfig, {"source": source, "output": "o", "input": ["owner/name"], "axis": "Risk"})
    hub = build(PrepareConfig, {"source": "trl", "output": "o", "input": ["owner/name:cfg"], "split": "train_prefs"})
    assert hub.split == "train_prefs"
    assert build(PrepareConfig, {"source": "toyworld", "output": "~/o", "seed": 3, "split": "test"}).seed == 3
    with pytest.raises(UserError, match="num_workers and endpoint"):
        build(EvaluateConfig, {"data": "d", "output": "o", "endpoint": "http://x", "num_workers": 2})


def test_a_warmup_longer_than_the_run_is_reported(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config("quickstart", [f"data={data}", "train.warmup_steps=7", "train.max_steps=7"])
    manifest = refuse_missing_inputs(config)[str(data.resolve())]
    warn_of_long_warmup(config, manifest)
    assert "train.warmup_steps=7, but the run has 7 steps" in " ".join(capsys.readouterr().err.split())
    warn_of_long_warmup(load_config("quickstart", ["train.warmup_steps=6", "train.max_steps=7"]), manifest)
    assert not capsys.readouterr().err


def test_missing_data_of_a_task_is_reported_too(data: Path, tiny_qwen2: Path, tmp_path: Path) -> None:
    given = {"data": str(data), "output": str(tmp_path / "out")}
    refuse_missing_of_evaluation(EvaluateConfig(model=str(tiny_qwen2), **given))
    with pytest.raises(UserError, match="data=/nosuch: no such file"):
        refuse_missing_of_evaluation(
            EvaluateConfig(model=str(tiny_qwen2), task="capability", **given | {"data": "/nosuch"})
        )
