"""stdout is one JSON line, stderr is for people, and exit codes are as documented."""

import io
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from pipelines import cli
from pipelines.cli import app, spread_inputs
from pipelines.console import console, one_table
from pipelines.evaluate import EvaluateConfig
from pipelines.prepare import PrepareConfig

CLI = [sys.executable, "-m", "pipelines.cli"]


def pft(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *arguments], capture_output=True, text=True, timeout=60, check=False)


def verb(body: str) -> subprocess.CompletedProcess[str]:
    """Run a verb with this body in a subprocess."""
    script = "import os, sys, typer\nfrom pft_core.errors import UserError\nfrom pipelines.cli import verb\n"
    script += "@verb\ndef command():\n" + textwrap.indent(body, "    ")
    script += "\napp = typer.Typer()\napp.command()(command)\napp()\n"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


def test_the_result_is_the_only_thing_on_stdout() -> None:
    done = pft("show", "config", "quickstart", "train.lr=2e-4")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["train"]["lr"] == 2e-4
    assert "lr: 0.0002" in done.stderr


def test_output_of_c_code_and_output_at_exit_do_not_reach_stdout() -> None:
    body = """
        import atexit
        atexit.register(lambda: print('late', flush=True))
        print('a library prints')
        os.write(1, b'C++ prints')
        os.system('echo a child prints')
        return {'answer': 42, 'word': '\\u00e9'}
    """
    done = verb(textwrap.dedent(body))
    assert (done.returncode, done.stdout) == (0, '{"answer": 42, "word": "\u00e9"}\n')
    for text in ("a library prints", "C++ prints", "a child prints", "late"):
        assert text in done.stderr


def test_a_user_error_is_one_message_and_exit_2() -> None:
    done = verb("raise UserError('train.lr=0: raise it')")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: train.lr=0: raise it\n")


def test_an_error_of_thousands_of_characters_is_shortened() -> None:
    done = verb("raise UserError('x' * 100_000 + ': raise it')")
    assert len(done.stderr) < 2000
    assert done.stderr.startswith("error: xxx")
    assert done.stderr.endswith("x: raise it\n")


def test_a_name_that_is_not_utf8_is_one_line_and_exit_2() -> None:
    done = subprocess.run([*CLI, "train", b"data=\xff"], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"error: 'data=\\udcff': not valid UTF-8: rename the file or folder\n"


def test_a_bug_shows_its_traceback_and_exits_1() -> None:
    done = verb("raise KeyError('ours')")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" in done.stderr


def test_an_interruption_exits_130() -> None:
    done = verb("raise KeyboardInterrupt")
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr


def test_a_failed_job_still_prints_its_result_and_exits_1() -> None:
    done = verb("return {'status': 'FAILED'}")
    assert (done.returncode, done.stdout) == (1, '{"status": "FAILED"}\n')


@pytest.mark.parametrize(
    ("redirected", "words"),
    [
        (">&-", "error: stdout is closed"),
        (">/dev/full", "error: stdout: No space left on device: the result could not be written; it is {"),
        ("| true", "error: stdout: Broken pipe: the result could not be written; it is {"),
    ],
)
def test_an_undeliverable_result_is_one_line_and_exit_2(redirected: str, words: str, tmp_path: Path) -> None:
    command = f"set -o pipefail; {sys.executable} -m pipelines.cli key me --file '{tmp_path}/keys' {redirected}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(words)
    assert (tmp_path / "keys").exists() == (
        redirected != ">&-"
    )  # no work is done for a result that cannot be delivered


def test_help_to_a_full_disk_is_one_line_and_exit_2() -> None:
    command = f"{sys.executable} -m pipelines.cli --help >/dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "error: stdout: No space left on device\n")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            ["evaluate", "--data", "d", "--output", "o", "--model", "m", "--precision", "fp16"],
            "error: precision='fp16': expected 'bf16' or 'fp32'",
        ),
        (
            ["evaluate", "--data", "d", "--output", "o", "--endpoint", "http://h", "--max-length", "9", "--no-use-gpu"],
            "max_length and endpoint: the recipe of the server sets this: leave max_length, use_gpu out",
        ),
        (
            ["prepare", "--source", "json", "--input", "d", "--output", "o", "--num-per-axis", "9"],
            "error: num_per_axis=9 has no effect: source=json reads files: leave it out",
        ),
        (["show", "config", "quickstart", "train.lrr=1"], "error: train.lrr: unknown key. Did you mean 'train.lr'?"),
        (["train", "quikstart"], "error: recipe 'quikstart' does not exist. Did you mean 'quickstart'?"),
        (["train", "quickstart", "scaling.num_workers=two"], "error: scaling.num_workers='two': expected an integer"),
    ],
)
def test_config_errors_are_reported_before_heavy_imports(arguments: list[str], part: str) -> None:
    done = pft(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert part in done.stderr
    assert "Traceback" not in done.stderr


IN_PYTHON_ONLY = {"prompt", "encoding", "tracking"}


@pytest.mark.parametrize(("name", "config"), [("prepare", PrepareConfig), ("evaluate", EvaluateConfig)])
def test_every_key_of_a_verb_with_options_has_an_option(name: str, config: Any) -> None:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]  # typer types it as any command
    options = {parameter.name for parameter in command.params} - {"fresh", "plugin"}
    assert options == set(config.model_fields) - IN_PYTHON_ONLY - {"plugins"}


def test_options_reach_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    given = "limit-per-axis=3 max-length=99 max-new-tokens=5 tokens-per-batch=512 num-workers=2 threads-per-worker=4"
    given += " precision=bf16 policy=mine scoring=generate seed=6"
    words = [f"--{option}" for option in given.split()]
    expected = {key.replace("-", "_"): value for key, value in (option.split("=") for option in given.split())}
    words += ["--data", "d", "--output", "o", "--model", "m", "--no-use-gpu"]
    config = config_of("evaluate", words, monkeypatch)
    assert expected | {"use_gpu": "False"} == {key: str(getattr(config, key)) for key in (*expected, "use_gpu")}
    words = ["--source", "toyworld", "--output", "o", "--num-per-axis", "7"]
    assert config_of("prepare", words, monkeypatch).num_per_axis == 7


def config_of(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the config that a verb makes of its options; its job is not run."""
    configs: list[Any] = []
    monkeypatch.setattr(f"pipelines.{name}.refuse_missing_inputs", lambda config, **_: configs.append(config))
    monkeypatch.setattr(f"pipelines.{name}.job.run", lambda config, **_: {})
    monkeypatch.setattr(cli, "print_table", lambda result: None)
    monkeypatch.setattr(cli, "reserve_stdout", lambda: (None, lambda result: None))
    app(args=[name, *words], standalone_mode=False)
    return configs[0]


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["prepare", "--sorce", "vcd"], ["submit"]])
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    done = pft(*arguments)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            ["serve", "quickstart", "--port", "18123"],
            "option: --port. It is a config key: set it as port=VALUE",
        ),
        (["train", "quickstart", "--lr=1"], "set it as train.lr=VALUE, without dashes."),
        (["train", "quickstart", "--num-workers", "2"], "set it as scaling.num_workers=VALUE"),
        (["show", "serve", "quickstart", "--port", "1"], "set it as port=VALUE"),
    ],
)
def test_an_option_that_is_a_config_key_gets_a_hint(arguments: list[str], part: str) -> None:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == 2
    assert part in " ".join(re.sub("[│╭╮╰╯─]", "", result.output).split())


def test_help_lists_every_verb() -> None:
    done = pft("--help")
    assert done.returncode == 0
    for name in ("prepare", "train", "evaluate", "quickstart", "submit", "show"):
        assert name in done.stdout


def commands(group: Any = None, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command, with the words that call it."""
    for word, command in (group or typer.main.get_command(app)).commands.items():
        yield f"{name} {word}".strip(), command
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {word}".strip())


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_help_text_is_a_phrase_that_stands_alone(name: str, command: Any) -> None:
    for parameter in command.params:
        assert parameter.help[:1].isupper(), f"pft {name}: {parameter.name}"
        assert parameter.help.endswith("."), f"pft {name}: {parameter.name}"
    if not hasattr(command, "commands"):
        assert f"Example: `pft {name}" in command.help


HEAVY = "('torch', 'ray', 'transformers', 'mlflow', 'pyarrow')"


def test_help_imports_nothing_heavy() -> None:
    script = f"import sys, pipelines.cli; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_version_prints_the_package_and_imports_nothing_heavy() -> None:
    script = f"""
        import atexit, sys
        sys.argv = ["pft", "--version"]
        atexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules]))
        from pipelines.cli import main
        main()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pft {version('pft')}\n[]\n", "")


def test_one_input_option_takes_several_paths() -> None:
    given = ["prepare", "--input", "a", "b", "--output", "o", "--input", "c"]
    assert list(spread_inputs(given)) == ["prepare", "--input", "a", "--input", "b", "--output", "o", "--input", "c"]
    assert list(spread_inputs(["train", "quickstart", "data=x"])) == ["train", "quickstart", "data=x"]


def test_the_table_has_a_line_per_pole_and_a_column_per_policy() -> None:
    def row(policy: str, pole: str, value: float, trained: bool) -> dict[str, object]:
        return {
            "policy": policy, "axis": "Risk [taking]", "pole": pole, "trained_pole": trained, "metric": "one", "n": 300,
            "value": value, "low": value - 0.05, "high": value + 0.05, "position_baseline": 0.5, "unparsed": 0.0,
        }  # fmt: skip

    rows = [row(policy, pole, 0.75, policy == "pft") for policy in ("base", "pft") for pole in ("bold", "careful")]
    flip = {**row("pft", "", 0.9, True), "metric": "flip", "pole": None}
    table = one_table([*rows, flip])
    assert [str(column.header) for column in table.columns] == ["axis", "pole", "n", "base", "pft", "position"]
    assert [str(cell) for cell in table.columns[4].cells] == ["0.75 (0.70-0.80)"] * 2
    wide = Console(file=io.StringIO(), width=120)
    wide.print(table)
    assert "Risk [taking]" in wide.file.getvalue()  # type: ignore[attr-defined]


def test_evaluate_and_train_say_where_to_look_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.json").write_text('{"rows": []}')
    cli.print_table({"report_json": str(tmp_path / "report.json")})
    assert capsys.readouterr().err == f"report: {tmp_path}/report.html\n"
    result = {"run_dir": "runs/own-1"}
    monkeypatch.setattr("pipelines.train.job.run", lambda config, fresh: result)
    monkeypatch.setattr("pipelines.train.refuse_missing_inputs", lambda config: None, raising=False)
    assert cli.train.__wrapped__("quickstart") == result
    said = capsys.readouterr().err
    assert said == "Next: pft evaluate --model runs/own-1 --data TEST_DATA --output runs/own-1-evaluation\n"


def test_brackets_and_colons_in_user_texts_are_printed_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"axis": "[/a]", "pole": "[b]", "policy": "[/c]", "metric": "one", "trained_pole": True, "n": 3}
    console.print("out/o[/b]x[red]:x: is finished", soft_wrap=True)
    console.print(one_table([{**row, "value": 0.5, "low": 0.4, "high": 0.6, "position_baseline": None}]))  # type: ignore[typeddict-item]
    said = capsys.readouterr().err
    for text in ("out/o[/b]x[red]:x: is finished", "[/a]", "[b]", "[/c]"):
        assert text in said


def test_the_users_own_recipe_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    done = pft("show", "config", str(tmp_path / "mine.yaml"))
    assert json.loads(done.stdout)["name"] == "mine"


def test_an_installed_completion_completes_verbs_and_options(tmp_path: Path) -> None:
    """A shell that has sourced what `pft --install-completion` writes offers what the command line has."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    here = {**os.environ, "HOME": str(tmp_path), "PATH": path}
    lines = [
        "pft --install-completion >&2",
        "source ~/.bash_completions/pft.sh",
        "COMP_WORDS=(pft tr); COMP_CWORD=1; _pft_completion pft; echo ${COMPREPLY[@]}",
        "COMP_WORDS=(pft prepare --so); COMP_CWORD=2; _pft_completion pft; echo ${COMPREPLY[@]}",
    ]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120, check=False, env=here
    )
    assert done.stdout.splitlines() == ["train", "--source"], done.stderr
