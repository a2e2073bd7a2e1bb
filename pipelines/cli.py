"""`pft`: the verbs. Heavy imports stay inside the commands, so that help and usage errors appear at once.

Every verb ends with one JSON object on stdout; everything else goes to stderr. Exit codes: 0 done, 1 failed, 2 a
mistake in the user's input (one message, no traceback), 130 or 143 interrupted (by SIGINT or SIGTERM).
"""

# ruff: noqa: E402  # a signal may arrive while the rest is imported
import os
import signal
import sys


def end_at_once(number: int, frame: object) -> None:
    """End the process as an interrupted verb does, before any work has begun."""
    try:
        os.write(2, f"interrupted by {signal.Signals(number).name}: run the same command to start again\n".encode())
    finally:  # also if stderr is closed
        os._exit(128 + number)


if __name__ == "__main__" or os.path.basename(sys.argv[0]) == "pft":
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, end_at_once)

import errno
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pft_core.errors import UserError, did_you_mean
from pft_core.files import refuse_unwritable
from pipelines.cli_options import (
    MODES,
    AccessLog,
    Adapter,
    Address,
    AskedForms,
    Command,
    DataSetOutput,
    DrawSeed,
    DryRun,
    EncodingModel,
    Endpoint,
    EvaluationData,
    EvaluationOutput,
    Evaluations,
    EvaluationTask,
    ExportedRun,
    ExportFolder,
    Forms,
    Fresh,
    Inputs,
    LimitPerAxis,
    ListSuites,
    MaxLength,
    MaxNewTokens,
    MaxRejectFraction,
    Merge,
    Mode,
    ModelArgument,
    NumActors,
    NumPerAxis,
    NumTasks,
    Overrides,
    Parts,
    Plugins,
    PolicyName,
    Precision,
    Real,
    Recipe,
    Replacing,
    Reports,
    RowAxis,
    RunArgument,
    RunArguments,
    RunsFolder,
    Scoring,
    ServeOverrides,
    ServeRecipe,
    Size,
    Source,
    Split,
    SplitBy,
    Storage,
    Suite,
    SuiteOverrides,
    ThreadsPerWorker,
    TokensPerBatch,
    ToyworldSeed,
    UseGpu,
)
from pipelines.config import load_config, refuse_idle_search, resolved_config
from pipelines.console import console, one_table, reserve_stdout
from pipelines.demos import REAL, TINY
from pipelines.interruption import catching_signals, end_interrupted, is_interrupted, on_interruption
from pipelines.jobs import missing_code, start_again
from pipelines.plugins import load_plugins, place_of, read_plugins
from pipelines.validated_yaml import build, dump_yaml, keys

if TYPE_CHECKING:
    from cluster.submit import GivenParameter, JobVerb

UsageError: Any = typer.BadParameter.__base__  # from typer's own copy of click, or from the package


class Verbs(typer.core.TyperGroup):
    """The verbs. An unknown option that is a config key gets a hint how overrides are written."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            if hasattr(error, "option_name") and error.ctx is not None:
                error.message += override_hint(error.option_name, error.ctx.command)
            raise


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train one language model policy that follows either side of a value conflict, evaluate it and serve it. "
    "Every command prints its result as one line of JSON on stdout; messages go to stderr.",
)
show = typer.Typer(no_args_is_help=True, help="Print a resolved config, a serving config or a training prompt.")
app.add_typer(show, name="show")
data = typer.Typer(no_args_is_help=True, help="Look into prepared data.")
app.add_typer(data, name="data")
runs = typer.Typer(no_args_is_help=True, help="List the runs in a storage folder, show one, or compare several.")
app.add_typer(runs, name="runs")

STORING = ("train", "tune", "quickstart")  # verbs that take the folder for runs as an override, storage=DIR
HERE = ("submit", "key", "runs", "chat", "data")  # verbs that act on this machine, so that they cannot be submitted


def override_hint(option: str, command: Any) -> str:
    """Return how to set the config key that an unknown option names; "" if it names none of this command."""
    wanted = option.lstrip("-").replace("-", "_")
    if command.name == "compare" or "overrides" not in {parameter.name for parameter in command.params}:
        return ""
    from pipelines.config import RunConfig
    from pipelines.serve import ServeConfig

    known = keys(ServeConfig if command.name == "serve" else RunConfig)
    found = sorted((key for key in known if wanted in (key, key.rpartition(".")[2])), key=lambda key: key.count("."))
    return f". It is a config key: set it as {found[0]}=VALUE, without dashes." if found else ""


def print_version(is_requested: bool) -> None:
    """Print the version of the installed package to stdout and exit."""
    if not is_requested:
        return
    try:
        typer.echo(f"pft {version('pft')}")
    except PackageNotFoundError:  # a copy of the code, such as a submitted job's
        typer.echo("pft (not installed as a package)")
    raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Take the options that stand before a verb."""


@contextmanager
def exit_on_interruption() -> Iterator[None]:
    """End the process if the block is interrupted, even if a library swallows the interruption or replaces it."""
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
    """Turn a function into a command: print its return value as the result, and turn its errors into exit codes."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        stdout: int | None = None
        try:
            stdout, write_result = reserve_stdout()
            with exit_on_interruption():
                result = function(*args, **kwargs)
            write_result(result)
        except Exception as error:
            if stdout is not None and (missing := missing_code(error)):
                start_again(missing, stdout=stdout)
                print(f"error: {missing} disappeared during the run: run the same command to continue", file=sys.stderr)
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
    """Cut the middle out of lines that quote a value of more than 2,000 characters."""
    lines = message.split("\n")
    return "\n".join(f"{line[:1000]} ... {line[-500:]}" if len(line) > 2000 else line for line in lines)


@app.command()
@verb
def prepare(
    source: Source,
    output: DataSetOutput,
    input: Inputs = None,
    axis: RowAxis = None,
    forms: Forms = "one",
    split: Split = None,
    seed: ToyworldSeed = None,
    num_per_axis: NumPerAxis = None,
    split_by: SplitBy = None,
    parts: Parts = None,
    num_workers: NumTasks = None,
    model: EncodingModel = None,
    max_reject_fraction: MaxRejectFraction = None,
    plugin: Plugins = None,
    fresh: Replacing = False,
) -> dict[str, Any]:
    """Turn raw preference rows into validated records; rejects.parquet says why a row is left out.

    Example: `pft prepare --source json --input pairs.jsonl --output data/train`
    """
    options = dict(locals())  # each is named as the key that it sets
    from pipelines.prepare import PrepareConfig, refuse_missing_inputs

    config = build(PrepareConfig, keys_set(options, forms=split_list(forms), parts=parts and split_numbers(parts)))
    refuse_missing_inputs(config)
    from pipelines.prepare import job as prepare

    return prepare.run(config, fresh=fresh)


@app.command()
@verb
def train(recipe: Recipe, overrides: Overrides = None, fresh: Fresh = False, dry_run: DryRun = False) -> dict[str, Any]:
    """Fine-tune a model on prepared pairs into a run folder with adapter, checkpoints and report.

    The same command continues an interrupted run, and returns the result of a finished one.

    Example: `pft train vcd_qwen2.5-3b_lora data=data/train storage=runs`
    """
    config = load_config(recipe, overrides or [])
    from pipelines.train import refuse_missing_inputs

    refuse_missing_inputs(config)
    if dry_run:
        from pipelines.train import dry_run as plan_only

        return plan_only(config, fresh=fresh)
    from pipelines.train import job as train
    from pipelines.train import next_command

    result = train.run(config, fresh=fresh)
    console.print(next_command(Path(result["run_dir"])), highlight=False, soft_wrap=True)
    return result


@app.command()
@verb
def evaluate(
    data: EvaluationData,
    output: EvaluationOutput,
    model: ModelArgument = None,
    endpoint: Endpoint = None,
    adapter: Adapter = None,
    scoring: Scoring = None,
    forms: AskedForms = None,
    limit_per_axis: LimitPerAxis = None,
    seed: DrawSeed = None,
    max_length: MaxLength = None,
    max_new_tokens: MaxNewTokens = None,
    tokens_per_batch: TokensPerBatch = None,
    num_workers: NumActors = None,
    threads_per_worker: ThreadsPerWorker = None,
    use_gpu: UseGpu = None,
    precision: Precision = None,
    policy: PolicyName = None,
    task: EvaluationTask = "choices",
    plugin: Plugins = None,
    fresh: Replacing = False,
) -> dict[str, Any]:
    """Ask a policy every prepared item under both poles, and write a report with metrics and intervals.

    Example: `pft evaluate --model runs/RUN --data data/test --output runs/report`
    """
    options = dict(locals())  # each is named as the key that it sets
    from pipelines.evaluate import EvaluateConfig, refuse_missing_inputs

    config = build(EvaluateConfig, keys_set(options, forms=forms and split_list(forms)))
    refuse_missing_inputs(config, fresh=fresh)
    from pipelines.evaluate import job as evaluate

    result = evaluate.run(config, fresh=fresh)
    print_table(result)
    return result


@app.command()
@verb
def quickstart(overrides: Overrides = None, real: Real = False, fresh: Fresh = False) -> dict[str, Any]:
    """Prepare, train, evaluate and report on an embedded data set, to see what paired fine-tuning changes.

    Writes runs/quickstart/report.html; takes minutes on two CPU cores.

    Example: `pft quickstart`
    """
    demo = REAL if real else TINY
    config = load_config(demo.recipe, overrides or [])
    shipped = load_config(demo.recipe).data
    if config.data != shipped:
        raise UserError(
            f"data={config.data}: `pft quickstart` evaluates on the embedded data only ({shipped}): for other data, "
            f"use `pft train {demo.recipe} data=...` and `pft evaluate`"
        )
    from pipelines.train import refuse_missing_inputs

    refuse_missing_inputs(config)
    from pipelines import quickstart

    result = quickstart.run(config, demo=demo, fresh=fresh)
    print_table(result)
    return result


@app.command()
@verb
def compare(
    suite: Suite = None,
    overrides: SuiteOverrides = None,
    size: Size = None,
    outcomes: Evaluations = None,
    storage: Storage = Path("runs"),
    list_suites: ListSuites = False,
    plugin: Plugins = None,
) -> dict[str, Any]:
    """Train and evaluate several methods over seeds, and report them side by side with intervals and tests.

    Writes report.html, report.json and tables below --storage; finished cells are not run again.

    Example: `pft compare table2_vcd --size tiny`
    """
    if outcomes:
        if suite is not None or size is not None or list_suites:
            raise UserError("--outcomes compares finished evaluations: leave out SUITE, --size and --list")
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

    return job.run(chosen, size=size or "tiny", storage=storage)  # type: ignore[arg-type]  # the suite has it


def compare_outcomes(outcomes: list[Path], storage: Path, plugin: list[str] | None) -> dict[str, Any]:
    """Compare two finished evaluations of the same data."""
    refuse_unwritable(storage)
    load_plugins(read_plugins(plugin_places(plugin) or []))
    from pipelines.compare import compare_evaluations

    return compare_evaluations(outcomes, storage=storage)


@app.command()
@verb
def tune(recipe: Recipe, overrides: Overrides = None, mode: Mode = "grid", fresh: Fresh = False) -> dict[str, Any]:
    """Search the ratio of alpha and beta on validation data, and pick the ratio whose worse pole is best.

    Writes a report, a recipe for the picked ratio (chosen.yaml) and a registered model in MLflow.

    Example: `pft tune quickstart search.trials=warm`
    """
    config = load_config(recipe, overrides or [])
    if mode not in MODES:
        raise UserError(f"--mode {mode}: expected {', '.join(MODES)}.{did_you_mean(mode, MODES)}")
    refuse_idle_search(overrides or [], mode)
    from pipelines.train import refuse_missing_inputs

    refuse_missing_inputs(config, is_searched=True)
    from pipelines.tune import job

    return job.run(config, mode=mode, fresh=fresh)  # type: ignore[arg-type]  # one of MODES


@app.command()
@verb
def serve(recipe: ServeRecipe, overrides: ServeOverrides = None, access_log: AccessLog = None) -> dict[str, Any]:
    """Serve a trained policy over an OpenAI-compatible HTTP API that takes a preference with each request.

    Runs until Ctrl-C or SIGTERM, and finishes the requests that it has accepted.

    Example: `pft serve quickstart port=8000`
    """
    from pipelines.serve import load_serve_config, refuse_missing_policies

    logged = [] if access_log is None else [f"access_log={access_log}"]
    config = load_serve_config(recipe, [*(overrides or []), *logged])
    refuse_missing_policies(config)
    from pipelines.serve import job

    return job.run(config)


@app.command()
@verb
def chat(run: RunArgument, storage: Storage = Path("runs")) -> dict[str, Any]:
    """Ask a trained policy in the terminal; both poles of an axis answer side by side.

    Type a scenario, or `scenario | option | option` for probabilities. Commands: /axis NAME, /base, /quit.

    Example: `pft chat quickstart/pft`
    """
    from pipelines.chat import job

    return job.run(run, storage)


@app.command()
@verb
def export(run: ExportedRun, to: ExportFolder, merge: Merge = False, report: Reports = None) -> dict[str, Any]:
    """Write a trained policy into a folder that transformers, peft and vLLM load, with a model card.

    The folder holds the LoRA adapter, or with --merge one model; a fully fine-tuned run is one model already.

    Example: `pft export runs/RUN --to my-policy --merge`
    """
    from pipelines.export import ExportConfig, refuse_missing_inputs

    config = ExportConfig(run.expanduser(), to.expanduser(), merge, tuple(report or []))
    refuse_missing_inputs(config)
    from pipelines.export import job

    return job.run(config)


@app.command()
@verb
def key(
    name: Annotated[str, typer.Argument(help="Name of the client that gets the key.")],
    file: Annotated[
        Path,
        typer.Option(
            "--file", metavar="FILE", help="Key file of the server (keys=FILE); it is created if it does not exist."
        ),
    ],
    requests_per_minute: Annotated[
        int | None,
        typer.Option(
            help="Limit of requests per minute for this key. Default: limits.requests_per_minute of the server."
        ),
    ] = None,
) -> dict[str, Any]:
    """Create an API key for `pft serve`: the key is printed once, and the file stores only its hash.

    Example: `pft key alice --file keys.json`
    """
    from pipelines.serve import add_key

    return {"name": name, "key": add_key(file, name, requests_per_minute=requests_per_minute), "file": str(file)}


@app.command()
@verb
def submit(command: Command, address: Address = None, plugin: Plugins = None) -> dict[str, Any]:
    """Run a verb as a job on a Ray cluster, follow its log and print its result.

    The code and the recipe are uploaded; data and storage must lie on a file system that all nodes share.

    The same command submitted twice is one job.

    Example: `pft submit --address http://HOST:8265 -- train RECIPE data=DIR storage=DIR`
    """
    from cluster import submit

    with on_interruption(lambda: "the submitted job keeps running; run the same command to follow it again"):
        return submit.run(command, address=address, verbs=job_verbs(), plugins=plugin or [])


@data.command("check")
@verb
def data_check(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="Folder written by `pft prepare`, or a folder that holds such parts.")
    ],
) -> dict[str, Any]:
    """Measure what a data set gives away without a policy: position, words, repeated texts, leaks between its parts.

    Example: `pft data check data/own`
    """
    from pipelines import data_check

    return data_check.run(Path(folder))


@show.command("config")
@verb
def show_config(recipe: Recipe, overrides: Overrides = None) -> dict[str, Any]:
    """Print a recipe with all defaults and overrides resolved, and the numbers derived from it.

    Example: `pft show config quickstart train.lr=1e-4`
    """
    result = resolved_config(load_config(recipe, overrides or []))
    console.print(dump_yaml(result), soft_wrap=True)
    return result


@show.command("serve")
@verb
def show_serve(recipe: ServeRecipe, overrides: ServeOverrides = None) -> dict[str, Any]:
    """Print a serving recipe as a Ray Serve config, for `serve deploy` or a RayService on Kubernetes.

    Example: `pft show serve quickstart > serve.yaml`
    """
    from pipelines.serve import load_serve_config
    from pipelines.serve.job import serve_yaml

    result = serve_yaml(load_serve_config(recipe, overrides or []))
    console.print(dump_yaml(result), soft_wrap=True)
    return result


@show.command("prompt")
@verb
def show_one_prompt(
    data: Annotated[str, typer.Argument(metavar="DIR", help="Folder written by `pft prepare`.")],
    model: Annotated[
        str,
        typer.Option(metavar="MODEL_REF_OR_DIR", help="Trained run, or base model (a folder or a Hugging Face name)."),
    ],
    row: Annotated[int, typer.Option(metavar="N", help="Number of the record, counted from 1.")] = 1,
) -> dict[str, Any]:
    """Print one record as the model sees it: prompt and answer under both poles, with the labels in color.

    Example: `pft show prompt data/train --model runs/RUN --row 3`
    """
    from pipelines.encode import show_prompt

    return show_prompt(data, model, row=row)


@runs.command("list")
@verb
def list_runs(storage: RunsFolder = Path("runs")) -> dict[str, Any]:
    """List every run in a storage folder, newest first, with status, key figures and size on disk.

    Example: `pft runs list`
    """
    from pipelines.runs import job

    return job.list_runs(storage)


@runs.command("show")
@verb
def show_run(run: RunArgument, storage: Storage = Path("runs")) -> dict[str, Any]:
    """Print a run: changed config keys, figures, files, its policy, and commands that continue or use it.

    Example: `pft runs show quickstart/pft`
    """
    from pipelines.runs import job

    return job.show_run(run, storage)


@runs.command("compare")
@verb
def compare_runs(run: RunArguments, storage: Storage = Path("runs")) -> dict[str, Any]:
    """Print the config keys that differ between runs, and their figures side by side.

    Example: `pft runs compare quickstart/pft quickstart/sft-first`
    """
    from pipelines.runs import job

    return job.compare_runs(run, storage)


def job_verbs() -> "dict[str, JobVerb]":
    """Describe the verbs that run as jobs: all of this command line except those that act on the local machine."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # an app with several verbs is a group
    return {name: _job_verb(name, command) for name, command in commands.items() if name not in HERE}


def _job_verb(name: str, command: Any) -> "JobVerb":
    from cluster.submit import JobVerb

    roles = {parameter.name: role for parameter in command.params if (role := _role(parameter))}
    stores: Any = "option" if "storage" in roles else "override" if name in STORING else None
    commands = {inner: _job_verb(inner, c) for inner, c in getattr(command, "commands", {}).items()}  # if it is a group
    return JobVerb(functools.partial(_parsed, name, command), roles, stores, commands)


def _role(parameter: Any) -> Any:
    """Return the role of a parameter's values for the job; None if they need no treatment."""
    by_name = {"recipe": "recipe", "suite": "recipe", "overrides": "override", "plugin": "plugin"}
    by_name |= {"output": "output", "storage": "output", "to": "output", "run": "path"}
    return by_name.get(parameter.name, "path" if re.search("DIR|FILE|PATH", parameter.metavar or "") else None)


def _parsed(name: str, command: Any, words: list[str]) -> "list[GivenParameter]":
    """Parse the words after a verb with its own parser, so that an option takes its own values and no more."""
    from cluster.submit import GivenParameter

    try:
        values, _, order = command.make_parser(command.context_class(command)).parse_args(list(words))
    except UsageError as error:
        raise UserError(f"submit: {name}: {error.format_message()}") from None
    given = {p.name: (_option_word(p, values.get(p.name)), values.get(p.name)) for p in order}
    return [GivenParameter(key, option, _as_words(value)) for key, (option, value) in given.items()]


def _option_word(parameter: Any, value: Any) -> str:
    """Return the word of an option, or its negation such as --no-use-gpu; "" for an argument."""
    if parameter.param_type_name != "option":
        return ""
    return str(parameter.secondary_opts[0] if value is False and parameter.secondary_opts else parameter.opts[0])


def _as_words(value: Any) -> tuple[str, ...]:
    """Return the words of a parsed value; none for a flag or a missing argument."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()


def print_table(result: dict[str, Any]) -> None:
    """Print the table of *One* accuracies of a report, if it has them, and the path of its page."""
    from pft_core.files import read_json

    rows = read_json(Path(result["report_json"]), what="a report")["rows"]
    if any(row["metric"] == "one" for row in rows):
        console.print(one_table(rows))
    page = Path(result["report_json"]).with_suffix(".html")
    console.print(f"report: {page}", highlight=False, soft_wrap=True)


def keys_set(options: dict[str, Any], **converted: Any) -> dict[str, Any]:
    """Return the keys that the options of a verb set, without those that are left out.

    converted: values of keys whose options are text.
    """
    raw = {**options, **converted, "plugins": plugin_places(options["plugin"])}
    return {name: value for name, value in raw.items() if value is not None and name not in ("plugin", "fresh")}


def plugin_places(plugins: list[str] | None) -> list[str] | None:
    """Return the places of the plugins named on the command line; None if there are none."""
    return [place_of(name, Path.cwd()) for name in plugins] if plugins else None


def split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def split_numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in split_list(text)]
    except ValueError:
        raise UserError(f"{text!r}: expected numbers separated by commas, such as 0.8,0.1,0.1") from None


def spread_inputs(arguments: list[str]) -> Iterator[str]:
    """Repeat an option for each path after it, since shells expand `--input data/*.json` to several."""
    option = ""
    for argument in arguments:
        if option and not argument.startswith("-"):
            yield from (option, argument)
            continue
        option = argument if argument in ("--input", "--outcomes") else ""
        if not option:
            yield argument


def refuse_non_utf8(arguments: list[str]) -> None:
    """Exit with code 2 if an argument is not UTF-8: neither JSON nor Parquet can hold it."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            print(f"error: {argument!a}: not valid UTF-8: rename the file or folder", file=sys.stderr)
            sys.exit(2)


def main() -> None:
    refuse_non_utf8(sys.argv[1:])
    try:
        app(args=list(spread_inputs(sys.argv[1:])), prog_name="pft")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python reports the same error again at exit
        print(f"error: stdout: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # the work is done: no traceback from cleanup at exit


if __name__ == "__main__":
    main()
