"""`pft`: the verbs. Heavy imports stay inside the commands, so that help and typing mistakes answer at once.

Every verb ends with one JSON object on stdout; everything else goes to stderr. Exit codes: 0 done, 1 failed, 2 a
mistake in what the user gave (one message, no traceback), 130 or 143 interrupted (by SIGINT or SIGTERM).
"""

# ruff: noqa: E402  # a signal may come while the rest is imported
import os
import signal
import sys


def end_at_once(number: int, frame: object) -> None:
    """End the process as a verb that is interrupted does, before it has begun anything."""
    try:
        os.write(2, f"interrupted by {signal.Signals(number).name}: the same command starts again\n".encode())
    finally:  # also where stderr is closed
        os._exit(128 + number)


if __name__ == "__main__" or os.path.basename(sys.argv[0]) == "pft":
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, end_at_once)

import errno
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pft_core.data import SOURCES
from pft_core.errors import UserError, did_you_mean
from pft_core.evaluation import TASKS
from pft_core.files import refuse_unwritable
from pipelines.config import load_config, refuse_idle_search, resolved
from pipelines.console import console, one_table, reserve_stdout
from pipelines.interruption import catching_signals, end_interrupted, is_interrupted, on_interruption
from pipelines.jobs import missing_code, start_again
from pipelines.plugins import load_plugins, place_of, read_plugins
from pipelines.validated_yaml import build, dump_yaml

if TYPE_CHECKING:
    from cluster.submit import GivenParameter, JobVerb

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Preference-paired fine-tuning: raw preference pairs in, one policy for both poles and an honest report out.",
)
show = typer.Typer(no_args_is_help=True, help="Print what a run would use.")
app.add_typer(show, name="show")

Recipe = Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as train.lr=1e-4")]
STORING = ("train", "tune", "quickstart")  # verbs whose override storage= says where runs are kept
UsageError: Any = typer.BadParameter.__base__  # of the click that typer brings, its own or the package
MODES = ("grid", "soup", "asha", "optuna")  # of tune
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="FILE_OR_MODULE", help="Your code, which registers what other options name."),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH...", help="Files, folders, or hub data sets as OWNER/NAME or OWNER/NAME:CONFIG."),
]
ModelArgument = Annotated[
    str | None, typer.Option(metavar="MODEL_REF_OR_DIR", help="A trained run, a base model, or a served name.")
]
Endpoint = Annotated[
    str | None, typer.Option(metavar="URL", help="Ask a `pft serve` instead; its key is in PFT_API_KEY.")
]
Split = Annotated[
    str | None, typer.Option(metavar="NAME", help="Of toyworld (train, validation, test), or of a hub data set.")
]
SplitBy = Annotated[
    str | None, typer.Option(metavar="scenario", help="Write DIR/train, validation and test: no scenario in two.")
]
Parts = Annotated[
    str | None, typer.Option(metavar="0.8,0.1,0.1", help="With --split-by: the parts' shares of the scenarios.")
]
MaxRejectFraction = Annotated[
    float | None, typer.Option(help="Stop when a larger share of the rows is faulty; 0.5 unless given.")
]
Evaluations = Annotated[
    list[Path] | None,
    typer.Option("--outcomes", metavar="DIR DIR", help="Instead of SUITE: two evaluations of the same data."),
]
Size = Annotated[
    str | None, typer.Option(metavar="tiny|paper", help="Two cores (unless given), or the paper's models on GPUs.")
]
Storage = Annotated[Path, typer.Option(metavar="DIR", help="Where runs and reports are kept.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete this run's folder first and start anew.")]
Replacing = Annotated[bool, typer.Option("--fresh", help="Replace what the folder holds of other input or options.")]


@contextmanager
def ended_where_interrupted() -> Iterator[None]:
    """End the process where the block is interrupted, also where libraries make another exception of it, or none."""
    with catching_signals():
        try:
            yield
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or is_interrupted():
                end_interrupted()
            raise
        if is_interrupted():
            end_interrupted()


def verb(function: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """Turn a function into a command: its return value is the result, its mistakes and interruptions exit codes."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        stdout: int | None = None
        try:
            stdout, write_result = reserve_stdout()
            with ended_where_interrupted():
                result = function(*args, **kwargs)
            write_result(result)
        except Exception as error:
            if stdout is not None and (missing := missing_code(error)):
                start_again(missing, stdout=stdout)
                print(f"error: {missing} is gone while it runs: the same command goes on", file=sys.stderr)
                raise typer.Exit(2) from None
            from pipelines.jobs import unwrap_user_error

            mistake = unwrap_user_error(error)
            if mistake is None:
                raise
            print(shortened(f"error: {mistake}"), file=sys.stderr)
            raise typer.Exit(2) from None
        if result.get("status") in ("FAILED", "STOPPED"):
            raise typer.Exit(1)

    return command


def shortened(message: str) -> str:
    """Cut the middle out of lines that quote a value of thousands of characters."""
    lines = message.split("\n")
    return "\n".join(f"{line[:1000]} ... {line[-500:]}" if len(line) > 2000 else line for line in lines)


@app.command()
@verb
def prepare(
    source: Annotated[str, typer.Option(metavar="|".join(SOURCES), help="The form of the raw rows.")],
    output: Annotated[str, typer.Option(metavar="DIR", help="The folder for records, manifest and rejects.")],
    input: Inputs = None,
    axis: Annotated[str | None, typer.Option(metavar="NAME", help="The rows' axis, where they do not say it.")] = None,
    forms: Annotated[str, typer.Option(metavar="one,all", help="Answer forms to train on.")] = "one",
    split: Split = None,
    seed: Annotated[int | None, typer.Option(help="Of toyworld.")] = None,
    split_by: SplitBy = None,
    parts: Parts = None,
    num_workers: Annotated[int | None, typer.Option(help="Ray Data tasks at once.")] = None,
    model: Annotated[str | None, typer.Option(metavar="DIR_OR_NAME", help="Encode for this model too.")] = None,
    max_reject_fraction: MaxRejectFraction = None,
    plugin: Plugins = None,
    fresh: Replacing = False,
) -> dict[str, Any]:
    """Read raw rows, validate them, and write hashed records."""
    from pipelines.prepare import PrepareConfig, refuse_missing_inputs

    options = {
        "axis": axis,
        "split": split,
        "seed": seed,
        "split_by": split_by,
        "parts": parts and split_numbers(parts),
        "num_workers": num_workers,
        "model": model,
        "max_reject_fraction": max_reject_fraction,
        "plugins": places_of(plugin),
    }
    given = {name: value for name, value in options.items() if value is not None}
    raw = {"source": source, "input": input or [], "output": output, "forms": split_list(forms), **given}
    config = build(PrepareConfig, raw)
    refuse_missing_inputs(config)
    from pipelines.prepare import job as prepare

    return prepare.run(config, fresh=fresh)


@app.command()
@verb
def train(recipe: Recipe, overrides: Overrides = None, fresh: Fresh = False) -> dict[str, Any]:
    """Fine-tune a model on prepared pairs: `pft train RECIPE data=DIR model=DIR_OR_NAME`."""
    config = load_config(recipe, overrides or [])
    from pipelines.train import refuse_missing_inputs

    refuse_missing_inputs(config)
    from pipelines.train import job as train

    return train.run(config, fresh=fresh)


@app.command()
@verb
def evaluate(
    data: Annotated[str, typer.Option(metavar="DIR", help="A folder written by `pft prepare`.")],
    output: Annotated[str, typer.Option(metavar="DIR", help="The folder for the report.")],
    model: ModelArgument = None,
    endpoint: Endpoint = None,
    adapter: Annotated[str | None, typer.Option(metavar="DIR", help="A LoRA adapter on top of the base.")] = None,
    scoring: Annotated[
        str | None, typer.Option(metavar="letter|option|generate", help="How an option is chosen.")
    ] = None,
    forms: Annotated[str | None, typer.Option(metavar="one,all", help="Questions to ask; else the data's.")] = None,
    num_workers: Annotated[int | None, typer.Option(help="Ray Data actors, each with the model.")] = None,
    tokens_per_batch: Annotated[int | None, typer.Option(help="Asked at once: fewer need less memory.")] = None,
    task: Annotated[
        str, typer.Option(metavar="|".join(TASKS), help="What is asked; --data is what it reads.")
    ] = "choices",
    plugin: Plugins = None,
    fresh: Replacing = False,
) -> dict[str, Any]:
    """Score a policy on prepared records and write the report."""
    from pipelines.evaluate import EvaluateConfig, refuse_missing_inputs

    options = {
        "model": model,
        "endpoint": endpoint,
        "adapter": adapter,
        "scoring": scoring,
        "forms": forms and split_list(forms),
        "num_workers": num_workers,
        "tokens_per_batch": tokens_per_batch,
        "task": task,
        "plugins": places_of(plugin),
    }
    given = {name: value for name, value in options.items() if value is not None}
    config = build(EvaluateConfig, {"data": data, "output": output, **given})
    refuse_missing_inputs(config, fresh=fresh)
    from pipelines.evaluate import job as evaluate

    result = evaluate.run(config, fresh=fresh)
    print_table(result)
    return result


@app.command()
@verb
def quickstart(overrides: Overrides = None, fresh: Fresh = False) -> dict[str, Any]:
    """Run the whole pipeline on the embedded data set and show what paired fine-tuning changes."""
    config = load_config("quickstart", overrides or [])
    if config.data != "toyworld":
        raise UserError(
            f"data={config.data}: `pft quickstart` shows the embedded data, and would evaluate on that: use `pft train "
            "quickstart data=...` and `pft evaluate`"
        )
    from pipelines.train import refuse_missing_inputs

    refuse_missing_inputs(config)
    from pipelines import quickstart

    result = quickstart.run(config, fresh=fresh)
    print_table(result)
    return result


@app.command()
@verb
def compare(
    suite: Annotated[str | None, typer.Argument(help="A shipped suite's name, or a YAML file.")] = None,
    overrides: Overrides = None,
    size: Size = None,
    outcomes: Evaluations = None,
    storage: Storage = Path("runs"),
    list_suites: Annotated[bool, typer.Option("--list", help="List the shipped suites.")] = False,
    plugin: Plugins = None,
) -> dict[str, Any]:
    """Compare methods over seeds, with intervals, tests and yardsticks, or two evaluations: `pft compare SUITE`."""
    if outcomes:
        if suite is not None or size is not None or list_suites:
            raise UserError("--outcomes compares what is evaluated already: leave SUITE, --size and --list out")
        return compare_outcomes(outcomes, storage, plugin)
    from pipelines.compare import load_suite, shipped_suites

    if list_suites or suite is None:
        suites = {name: load_suite(name) for name in shipped_suites()}
        for name, shipped in suites.items():
            console.print(f"{name:20} {shipped.title}", highlight=False, soft_wrap=True)
            for at, chosen_size in shipped.sizes.items():
                console.print(f"{'':20}   {at}: {chosen_size.summary}", highlight=False, soft_wrap=True)
        return {"suites": list(suites)}
    chosen = load_suite(suite, overrides or [], plugin or [])
    from pipelines.compare import refuse_missing_inputs

    refuse_missing_inputs(chosen, size or "tiny", storage)
    from pipelines.compare import job

    return job.run(chosen, size=size or "tiny", storage=storage)  # type: ignore[arg-type]


def compare_outcomes(outcomes: list[Path], storage: Path, plugin: list[str] | None) -> dict[str, Any]:
    refuse_unwritable(storage)
    load_plugins(read_plugins(places_of(plugin) or []))
    from pipelines.compare import compare_evaluations

    return compare_evaluations(outcomes, storage=storage)


@app.command()
@verb
def tune(
    recipe: Recipe,
    overrides: Overrides = None,
    mode: Annotated[str, typer.Option(metavar="grid|soup|asha|optuna", help="How the ratios are searched.")] = "grid",
    fresh: Fresh = False,
) -> dict[str, Any]:
    """Search the ratio of alpha and beta: `pft tune RECIPE search.trials=warm`."""
    config = load_config(recipe, overrides or [])
    if mode not in MODES:
        raise UserError(f"--mode {mode}: expected {', '.join(MODES)}.{did_you_mean(mode, MODES)}")
    refuse_idle_search(overrides or [], mode)
    from pipelines.train import refuse_missing_inputs

    refuse_missing_inputs(config, is_searched=True)
    from pipelines.tune import job

    return job.run(config, mode=mode, fresh=fresh)  # type: ignore[arg-type]


@app.command()
@verb
def serve(
    recipe: Recipe,
    overrides: Overrides = None,
    access_log: Annotated[
        str | None, typer.Option(metavar="FILE", help="Where a line of JSON for each request goes; else stderr.")
    ] = None,
) -> dict[str, Any]:
    """Serve a policy behind an OpenAI-compatible API, under any preference: `pft serve RECIPE port=8000`."""
    from pipelines.serve import load_serve_config, refuse_missing_policies

    logged = [] if access_log is None else [f"access_log={access_log}"]
    config = load_serve_config(recipe, [*(overrides or []), *logged])
    refuse_missing_policies(config)
    from pipelines.serve import job

    return job.run(config)


@app.command()
@verb
def key(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    file: Annotated[Path, typer.Option("--file", metavar="FILE", help="The server's `keys`; made where it is absent.")],
    requests_per_minute: Annotated[int | None, typer.Option(help="Of this key; else the recipe's limit.")] = None,
) -> dict[str, Any]:
    """Make an API key for `pft serve`; it is shown this once, the file holds its hash."""
    from pipelines.serve import add_key

    return {"name": name, "key": add_key(file, name, requests_per_minute=requests_per_minute), "file": str(file)}


@app.command()
@verb
def submit(
    command: Annotated[list[str], typer.Argument(metavar="-- VERB [ARGUMENT]...", help="Such as: -- train RECIPE")],
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="The cluster's dashboard; else RAY_ADDRESS.")
    ] = None,
    plugin: Plugins = None,
) -> dict[str, Any]:
    """Run a verb on a Ray cluster as a job, and follow it."""
    from cluster import submit

    with on_interruption(lambda: "a job that is submitted goes on, and the same command follows it"):
        return submit.run(command, address=address, verbs=job_verbs(), plugins=plugin or [])


@show.command("config")
@verb
def show_config(recipe: Recipe, overrides: Overrides = None) -> dict[str, Any]:
    """Print a recipe with overrides and defaults resolved, and the numbers that follow from it."""
    result = resolved(load_config(recipe, overrides or []))
    console.print(dump_yaml(result), soft_wrap=True)
    return result


@show.command("serve")
@verb
def show_serve(recipe: Recipe, overrides: Overrides = None) -> dict[str, Any]:
    """Print a serving recipe as the config that `serve deploy` and a RayService take."""
    from pipelines.serve import load_serve_config
    from pipelines.serve.job import serve_yaml

    result = serve_yaml(load_serve_config(recipe, overrides or []))
    console.print(dump_yaml(result), soft_wrap=True)
    return result


@show.command("prompt")
@verb
def show_one_prompt(
    data: Annotated[str, typer.Argument(metavar="DIR", help="A folder written by `pft prepare`.")],
    model: Annotated[str, typer.Option(metavar="MODEL_REF_OR_DIR", help="A trained run, or a base model.")],
    row: Annotated[int, typer.Option(metavar="N", help="The record's number; the first is 1.")] = 1,
) -> dict[str, Any]:
    """Print a record as a model is trained on it: prompt and answer of both poles, with the labels in colour."""
    from pipelines.encode import show_prompt

    return show_prompt(data, model, row=row)


def job_verbs() -> "dict[str, JobVerb]":
    """Describe the verbs that run as jobs, by this command line's own table: all but those that act where one is."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {name: _job_verb(name, command) for name, command in commands.items() if name not in ("submit", "key")}


def _job_verb(name: str, command: Any) -> "JobVerb":
    from cluster.submit import JobVerb

    roles = {parameter.name: role for parameter in command.params if (role := _role(parameter))}
    stores: Any = "option" if "storage" in roles else "override" if name in STORING else None
    commands = {inner: _job_verb(inner, c) for inner, c in getattr(command, "commands", {}).items()}  # of a group
    return JobVerb(functools.partial(_parsed, name, command), roles, stores, commands)


def _role(parameter: Any) -> Any:
    """What the cluster's side should know of a parameter's values; None: nothing."""
    by_name = {"recipe": "recipe", "suite": "recipe", "overrides": "override", "plugin": "plugin"}
    by_name |= {"output": "output", "storage": "output"}
    return by_name.get(parameter.name, "path" if re.search("DIR|FILE|PATH", parameter.metavar or "") else None)


def _parsed(name: str, command: Any, words: list[str]) -> "list[GivenParameter]":
    """Read the words after a verb by its own parser, so that an option takes its own values and no more."""
    from cluster.submit import GivenParameter

    try:
        values, _, order = command.make_parser(command.context_class(command)).parse_args(list(words))
    except UsageError as error:
        raise UserError(f"submit: {name}: {error.format_message()}") from None
    given = {p.name: (p.opts[0] if p.param_type_name == "option" else "", values.get(p.name)) for p in order}
    return [GivenParameter(key, option, _as_words(value)) for key, (option, value) in given.items()]


def _as_words(value: Any) -> tuple[str, ...]:
    """The words of a parsed value: of a flag and of an argument that is not given, none."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()


def print_table(result: dict[str, Any]) -> None:
    """Print the first numbers of a report, where it has such."""
    from pft_core.files import read_json

    rows = read_json(Path(result["report_json"]), what="a report")["rows"]
    if any(row["metric"] == "one" for row in rows):
        console.print(one_table(rows))


def places_of(plugins: list[str] | None) -> list[str] | None:
    """The places of plugins that are named on the command line; None where there are none."""
    return [place_of(name, Path.cwd()) for name in plugins] if plugins else None


def split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def split_numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in split_list(text)]
    except ValueError:
        raise UserError(f"{text!r}: expected numbers with commas between them, such as 0.8,0.1,0.1") from None


def spread_inputs(arguments: list[str]) -> Iterator[str]:
    """Let an option take several paths, as shells expand `--input data/*.json`: repeat the option for each."""
    option = ""
    for argument in arguments:
        if option and not argument.startswith("-"):
            yield from (option, argument)
            continue
        option = argument if argument in ("--input", "--outcomes") else ""
        if not option:
            yield argument


def refuse_foreign_bytes(arguments: list[str]) -> None:
    """End with 2 where a name is not UTF-8: neither JSON nor Parquet could hold it."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            print(f"error: {argument!a}: is not UTF-8: rename what it names", file=sys.stderr)
            sys.exit(2)


def main() -> None:
    refuse_foreign_bytes(sys.argv[1:])
    try:
        app(args=list(spread_inputs(sys.argv[1:])), prog_name="pft")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains once more as it ends
        print(f"error: stdout: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # all is done: no traceback of what still closes


if __name__ == "__main__":
    main()
