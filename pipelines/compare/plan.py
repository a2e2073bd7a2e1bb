"""The plan of a suite: for each variant its prepared data, and one cell per method and seed."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pft_core.data import DatasetManifest, PreferenceSpace, read_records
from pft_core.evaluation import YARDSTICKS
from pft_core.evaluation import read_items as read_questions
from pft_core.files import digest
from pft_core.policies import base_digest, model_place
from pft_core.prompts import PromptSettings, PromptStyle
from pft_core.toyworld import make_text_base
from pipelines.compare.cells import NO_SEED, Cell
from pipelines.compare.methods import method as method_named
from pipelines.compare.stages import stage_configs
from pipelines.compare.suite import Suite, SuiteSize, Variant
from pipelines.compare.suite_data import SuiteData, released_file, subset
from pipelines.config import RunConfig, with_precision
from pipelines.console import console
from pipelines.evaluate import read_items, refuse_too_few_scenarios
from pipelines.jobs import code_digest
from pipelines.tracking import commit
from pipelines.train import RunLayers, encode_layers, resolve


@dataclass(frozen=True)
class VariantPlan:
    """One variant (None if the suite has none) with its folders of records and its cells."""

    variant: Variant | None
    data: SuiteData
    cells: tuple[Cell, ...]

    @property
    def space(self) -> PreferenceSpace:
        return DatasetManifest.load(self.data.test).space


def plan_suite(suite: Suite, size: SuiteSize, data: SuiteData, storage: Path) -> list[VariantPlan]:
    """Cut the data of each variant, encode it for each method, and list the cells."""
    test = Path(data.test)
    items = read_items(test, DatasetManifest.load(test), forms=["one"], limit_per_axis=size.test_per_axis)
    refuse_too_few_scenarios(items, advice="raise test_per_axis")
    if size.capability and (path := released_file(size.capability)):
        read_questions(Path(path))
    base = base_model(size, data, storage)
    plans = []
    layers = SuiteLayers()
    variants: list[Variant | None] = [*suite.variants] or [None]
    for variant in variants:
        own_data = variant_data(variant, data, storage / "data")
        cells = cells_of(suite, size, variant, own_data, base, storage, layers)
        plans.append(VariantPlan(variant, own_data, tuple(cells)))
    return plans


def cells_of(
    suite: Suite,
    size: SuiteSize,
    variant: Variant | None,
    data: SuiteData,
    base: str,
    storage: Path,
    layers: "SuiteLayers",
) -> Iterator[Cell]:
    weights = base_digest(base)
    code_commit, capability = commit(), released_file(size.capability) if size.capability else None
    for name in (name for name in suite.methods if name not in YARDSTICKS):  # yardsticks answer from the records alone
        method = method_named(name)
        for seed in size.seeds if method.seeded else [NO_SEED]:
            own = {"name": name.replace(":", "-"), "seed": max(seed, 0)}
            fixed = own | shared_by_cells(suite, data, base, storage)
            changes = {
                "method_changes": size.of_method.get(name, {}),
                "variant_changes": variant.set if variant else {},
            }
            stages = tuple(map(with_precision, stage_configs(name, size.run, **changes, fixed=fixed, source="suite")))
            yield Cell(
                name=name,
                method=method,
                seed=seed,
                variant=variant,
                base_digest=weights,
                stages=stages,
                layers=tuple(layers.of(config) for config in stages) if method.stages else (),
                validation=str(data.validation),
                test=str(data.test),
                forms=tuple(size.forms),
                test_per_axis=size.test_per_axis,
                use_gpu=size.resources.get("GPU", 0) > 0,
                capability=capability,
                lm_eval=tuple(size.lm_eval),
                commit=code_commit,
            )


def shared_by_cells(suite: Suite, data: SuiteData, base: str, storage: Path) -> dict[str, object]:
    """Return what the run configs of all cells share, which a suite's file cannot change."""
    return {
        "data": str(data.train),
        "model": base,
        "storage": str(storage / "cells"),
        "tracking.experiment": f"compare/{suite.name}",
        "plugins": suite.plugins,
    }


def variant_data(variant: Variant | None, data: SuiteData, storage: Path) -> SuiteData:
    """Cut the data of a variant to its axes, and the training data to its number of records."""
    if variant is None:
        return data
    key = digest([DatasetManifest.load(data.train).data_digest, variant.axes, variant.train_size])
    return SuiteData(
        data.name,
        subset(data.train, storage / f"train-{key}", axes=variant.axes, num_records=variant.train_size),
        subset(data.validation, storage / f"validation-{key}", axes=variant.axes, num_records=None),
        subset(data.test, storage / f"test-{key}", axes=variant.axes, num_records=None),
    )


class SuiteLayers:
    """The encoded layers of a suite's runs, each looked up once."""

    def __init__(self) -> None:
        self._layers: dict[str, RunLayers] = {}

    def of(self, config: RunConfig) -> RunLayers:
        """Return the encoded training data of a run, encoding it if needed."""
        run = resolve(config)
        what = [config.data, config.model, config.prompt, config.encoding, config.max_reject_fraction]
        key = digest([*what, run.objective.view])
        if key not in self._layers:
            self._layers[key] = encode_layers(run)
        return self._layers[key]


def base_model(size: SuiteSize, data: SuiteData, storage: Path) -> str:
    """Return the model that every method starts from; base `text` is made from the training texts if missing."""
    if size.base != "text":
        return str(model_place(size.base) or size.base)
    prompt = PromptSettings(**size.run.get("prompt", {}))
    style = PromptStyle(prompt.condition_position, prompt.answer)
    key = digest([DatasetManifest.load(data.train).data_digest, asdict(style), code_digest()])
    folder = storage / "bases" / f"text-{key}"
    if not folder.is_dir():
        console.print(f"making a tiny base model from the texts of {data.name}: this takes about two minutes")
        folder.parent.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        make_text_base(list(read_records(data.train)), folder, seed=0, style=style)
    return str(folder)
