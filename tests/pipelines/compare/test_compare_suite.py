"""Suite files: knobs go to the methods that take them, and errors are found when the file is loaded."""

from pathlib import Path

import pytest

from pft_core.errors import UserError
from pft_core.evaluation.yardsticks.registry import YARDSTICKS
from pft_core.objectives.registry import OBJECTIVES, ObjectiveEntry
from pipelines.compare.stages import stage_configs
from pipelines.compare.suite import Suite, load_suite
from tests.builders import record, write_dataset


def suite(folder: Path, methods: str, overrides: list[str]) -> Suite:
    path = folder / "own.yaml"
    path.write_text(f"name: own\ntitle: own\nmethods: [{methods}]\nsizes: {{tiny: {{}}}}\n")
    return load_suite(str(path), [f"reference={methods.split(', ')[-1]}", *overrides])


def strengths(chosen: Suite, name: str, variant_changes: dict[str, object]) -> list[tuple[str, float]]:
    """Return the objective and preference_beta of each stage of a method."""
    size = chosen.sizes["tiny"]
    own = size.of_method.get(name, {})
    configs = stage_configs(
        name, size.run, method_changes=own, variant_changes=variant_changes, fixed={}, source="suite"
    )
    return [(config.train.objective, config.train.preference_beta) for config in configs]


def test_a_shared_knob_goes_to_the_methods_that_take_it(tmp_path: Path) -> None:
    methods = "position, prompt_only, sft:mixed, dpo, controllable_po, pft"
    chosen = suite(tmp_path, methods, ["sizes.tiny.run.train.preference_beta=0.3"])
    assert strengths(chosen, "dpo", {}) == [("dpo", 0.3)]
    assert strengths(chosen, "pft", {}) == [("pft", 0.1)]
    assert strengths(chosen, "controllable_po", {}) == [("mixed", 0.1), ("dpo", 0.3)]


def test_a_knob_of_a_variant_goes_to_the_methods_that_take_it(tmp_path: Path) -> None:
    set_to = "[{value: 0.3, set: {train.preference_beta: 0.3}}]"
    chosen = suite(tmp_path, "dpo, pft", ["varies=strength", f"variants={set_to}"])
    assert strengths(chosen, "dpo", chosen.variants[0].set) == [("dpo", 0.3)]
    assert strengths(chosen, "pft", chosen.variants[0].set) == [("pft", 0.1)]


def test_a_knob_of_one_method_goes_to_its_stages_that_take_it(tmp_path: Path) -> None:
    own = "sizes.tiny.of_method={controllable_po: {train.preference_beta: 0.3}}"
    chosen = suite(tmp_path, "controllable_po, dpo", [own])
    assert strengths(chosen, "controllable_po", {}) == [("mixed", 0.1), ("dpo", 0.3)]
    assert strengths(chosen, "dpo", {}) == [("dpo", 0.1)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["sizes.tiny.run.train.preference_beta=0.3"],
            r"own.yaml: sizes.tiny.run: train.preference_beta=0.3 has no effect: no method of the suite takes it",
        ),
        (
            ["varies=x", "variants=[{value: 1, set: {train.nll_weight: 3.0}}]"],
            r"own.yaml: variants.0.set: train.nll_weight=3.0 has no effect: no method of the suite takes it",
        ),
        (
            ["sizes.tiny.of_method={pft: {train.preference_beta: 0.3}}"],
            r"own.yaml: sizes.tiny.of_method.pft: train.preference_beta=0.3 has no effect: no training of pft takes it",
        ),
        (
            ["sizes.tiny.of_method={prompt_only: {train.alpha: 0.3}}"],
            r"own.yaml: sizes.tiny.of_method.prompt_only: train.alpha=0.3 has no effect",
        ),
        (["sizes.tiny.run.train.lrr=0.3"], r"own.yaml: sizes.tiny, method prompt_only: train.lrr: unknown key"),
        (
            ["sizes.tiny.of_method={pft: {train.alpha: -1}}"],
            r"own.yaml: sizes.tiny, method pft: train.alpha=-1: expected greater than or equal to 0",
        ),
    ],
)
def test_what_no_run_can_be_made_of_is_said_as_the_suite_is_loaded(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        suite(tmp_path, "position, prompt_only, pft", overrides)


def test_data_is_a_prepared_folder_or_holds_prepared_train_and_test(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    whole, parts = write_dataset(tmp_path / "whole", [record(0)]), tmp_path / "parts"
    write_dataset(parts / "train", [record(0)])
    write_dataset(parts / "test", [record(1)])
    for folder in (whole, parts):
        assert suite(tmp_path, "pft", [f"sizes.tiny.data={folder}"]).sizes["tiny"].data == str(folder)
    for folder in (empty, parts / "validation"):
        with pytest.raises(UserError, match=rf"^sizes\.tiny\.data: '{folder}' is not a data set"):
            suite(tmp_path, "pft", [f"sizes.tiny.data={folder}"])


@pytest.mark.parametrize("name", ["caa", "position", "sft:mixed", "pft_async"])
def test_an_objective_of_ones_own_cannot_have_the_name_of_a_method(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setattr(OBJECTIVES, "_entries", {name: OBJECTIVES[name] for name in OBJECTIVES})
    OBJECTIVES.add(name, ObjectiveEntry("pft_core.objectives.nll:pft"))
    with pytest.raises(UserError, match=rf"own\.yaml: .*method '{name}' is the name of a registered .*objective"):
        suite(tmp_path, f"{name}, pft", [])


def test_a_yardstick_of_ones_own_cannot_have_the_name_of_a_method(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(YARDSTICKS, "_entries", {"position": YARDSTICKS["position"], "dpo": YARDSTICKS["position"]})
    with pytest.raises(UserError, match="method 'dpo' is the name of a registered yardstick and objective and method"):
        suite(tmp_path, "dpo, pft", [])


def test_a_fault_of_the_command_line_does_not_begin_with_the_suites_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^plugin /nowhere/own\.py: cannot be read"):
        load_suite("table2_vcd", [], ["/nowhere/own.py"])
    with pytest.raises(UserError, match=r"^plugin /nowhere/own\.py: cannot be read"):
        load_suite("table2_vcd", ["plugins=[/nowhere/own.py]"])
    (tmp_path / "own.yaml").write_text("plugins: [/nowhere/own.py]\n")
    with pytest.raises(UserError, match=r"^own\.yaml: plugin /nowhere/own\.py: cannot be read"):
        load_suite(str(tmp_path / "own.yaml"))


def test_a_key_that_is_suggested_is_one_that_can_be_given() -> None:
    with pytest.raises(UserError, match=r"^seeds: unknown key\. Did you mean 'sizes\.tiny\.seeds'\?"):
        load_suite("table2_vcd", ["seeds=[]"])
