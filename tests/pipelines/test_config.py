"""A config is a recipe plus overrides; an error names the key, the value and what to do."""

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pft_core.errors import UserError
from pipelines.compare import load_suite
from pipelines.config import load_config, refuse_idle_search, resolved_config
from pipelines.serve import load_serve_config
from pipelines.validated_yaml import _loaded, dump_yaml


def fault(*overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        load_config("quickstart", overrides)
    return str(raised.value)


def test_a_bare_name_is_the_shipped_recipe_and_a_path_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nmodel: m\ntrain:\n  lr: 2e-4\n")
    assert load_config("quickstart").name == "quickstart"
    assert load_config(tmp_path / "mine.yaml").train.lr == 2e-4


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", ".1e-3", "0.0001"])
def test_every_way_to_write_a_small_number_is_a_number(text: str) -> None:
    assert load_config("quickstart", [f"train.lr={text}"]).train.lr == 1e-4


def test_overrides_reach_any_depth_and_the_last_one_wins() -> None:
    config = load_config("quickstart", ["lora.r=4", "lora.r=2", "data=some/folder", "engine.name=torch"])
    assert (config.lora and config.lora.r, config.data, config.engine.name) == (2, "some/folder", "torch")


def test_null_removes_a_section_and_setting_a_key_restores_it() -> None:
    assert load_config("quickstart", ["lora=null"]).lora is None
    again = load_config("quickstart", ["lora=null", "lora.r=4"]).lora
    assert again is not None
    assert again.r == 4


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.lrr=1", "train.lr"),
        ("trian.lr=1", "train"),
        ("lr=1", "train.lr"),
        ("train.zero_stage=1", "engine.zero_stage"),
    ],
)
def test_an_unknown_key_suggests_the_nearest_key(override: str, meant: str) -> None:
    assert f"unknown key. Did you mean '{meant}'?" in fault(override)


def test_an_unknown_key_unlike_any_lists_the_keys_of_its_section() -> None:
    assert fault("engine.qqq=1") == "engine.qqq: unknown key. Known: engine.name, engine.zero_stage."


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=fast", "train.lr='fast': expected a number"),
        ("train.lr='1e-4'", "train.lr='1e-4': expected a number"),
        ("train.lr=-1", "train.lr=-1: expected greater than 0"),
        ("train.lr=.nan", "train.lr=nan: expected a finite number"),
        ("train.epochs=true", "train.epochs=True: expected a number"),
        ("train.warmup_steps=1.5", "train.warmup_steps=1.5: expected an integer"),
        ("scaling.use_gpu=1", "scaling.use_gpu=1: expected a boolean"),
        ("train.schedule=cosin", "train.schedule='cosin': expected 'linear' or 'cosine'"),
        ("lora.target_modules=3", "lora.target_modules=3: expected a list, or 'all-linear'"),
        ("lora=3", "lora=3: expected a section of keys"),
        ("name=a/b", "name='a/b': expected a string that matches '^[A-Za-z0-9][A-Za-z0-9._-]*$'"),
        ("foo", "'foo': expected an override KEY=VALUE, such as train.lr=1e-4"),
        ("storage=s3://bucket", "storage='s3://bucket' is a URL: give a folder on a file system that all nodes share"),
    ],
)
def test_an_invalid_value_is_reported_with_key_and_expectation(override: str, message: str) -> None:
    assert fault(override).removeprefix("quickstart.yaml: config: ") == message


def test_an_error_in_a_file_names_the_file_and_one_on_the_command_line_does_not(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("train: {lr: fast, epochs: many}\n")
    with pytest.raises(UserError) as raised:
        load_config(recipe, ["train.epochs=none"])
    assert str(raised.value) == (
        "train.epochs='none': expected a number\nmine.yaml: train.lr='fast': expected a number"
    )


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["train.normalization=micro_batch"], "pairs_per_microbatch and normalization=micro_batch go together"),
        (["train.pairs_per_microbatch=4"], "pairs_per_microbatch and normalization=micro_batch go together"),
        (["train.normalization=micro_batch", "train.pairs_per_microbatch=3"], "pairs_per_step=32 is not a multiple of"),
        (["train.alpha=0", "train.beta=0"], "alpha and beta are both 0"),
        (
            ["train.update=asynchronous", "train.objective=mixed"],
            "update=asynchronous has no effect on",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(overrides: list[str], part: str) -> None:
    assert part in fault(*overrides)


def test_a_yaml_error_names_file_and_line(tmp_path: Path) -> None:
    recipe = tmp_path / "broken.yaml"
    recipe.write_text("name: broken\ntrain: [1\nlora: 2\n")
    with pytest.raises(UserError, match=rf"^{recipe}:3: not valid YAML"):
        load_config(recipe)


def test_a_repeated_key_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "twice.yaml"
    recipe.write_text("name: t\ntrain:\n  lr: 1e-3\n  lr: 1e-4\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"^{recipe}:4: .*the key 'lr' is repeated"):
        load_config(recipe)


def test_a_recipe_that_is_not_a_mapping_or_does_not_exist_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="expected a mapping of keys to values, got a list"):
        load_config(tmp_path / "list.yaml")
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such recipe file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match=r"'quikstart' does not exist\. Did you mean 'quickstart'"):
        load_config("quikstart")


def test_derived_numbers_follow_from_the_config() -> None:
    overrides = [
        "data=null",
        "train.max_steps=50",
        "train.warmup_steps=10",
        "encoding.max_length=100",
        "lora.alpha=16",
        "lora.r=8",
    ]
    derived = resolved_config(load_config("quickstart", [*overrides, "train.tokens_per_microbatch=500"]))["derived"]
    # 32 pairs per step on 2 workers: 16 each. A pair has at most 200 tokens, so a bin of 500 holds at least 2: 8 bins
    assert derived["longest_pair_tokens"] == 200
    assert derived["microbatches_per_step_at_most"] == 8
    assert derived["lora_scale"] == 2.0
    assert (derived["steps"], derived["pairs_seen"], derived["warmup_share"]) == (50, 50 * 32, 0.2)


GIVEN = ["/x/exp #3", "yes", "1e3", "007", "2024-01-05", "no", "0x1F", "12:30:00", "a: b", "[x", "{}", "&a", "%TAG"]


@pytest.mark.parametrize("text", GIVEN)
def test_the_value_of_a_string_field_is_taken_literally(text: str) -> None:
    for key in ("storage", "data", "model", "tracking.experiment"):
        config: Any = load_config("quickstart", [f"{key}={text}"])
        for name in key.split("."):
            config = getattr(config, name)
        assert config == text


@pytest.mark.parametrize("quote", ["'", '"'])
def test_quotes_around_a_string_are_removed(quote: str) -> None:
    config = load_config("quickstart", [f"storage={quote}a # b{quote}", f"data={quote}null{quote}", f"model={quote}x"])
    assert (config.storage, config.data, config.model) == ("a # b", "null", f"{quote}x")


def test_null_is_none_only_if_none_is_allowed() -> None:
    config = load_config("quickstart", ["data=null", "validation_data=", "storage=null", "name=null"])
    assert (config.data, config.validation_data, config.storage, config.name) == (None, None, "null", "null")


def test_strings_inside_a_list_or_a_section_stay_unchanged() -> None:
    config = load_config("quickstart", ["lora={r: 4, target_modules: [no, 1e3, 007]}", "tracking={uri: null}"])
    assert config.lora is not None
    assert (config.lora.r, config.lora.target_modules, config.tracking.uri) == (4, ["no", "1e3", "007"], None)
    served = load_serve_config("quickstart", ["policy=/a #1", "adapters={one: /b, two: ~/c}"])
    assert (served.policy, served.adapters) == ("/a #1", {"one": "/b", "two": f"{Path.home()}/c"})


def test_a_tilde_is_expanded_in_recipes_and_on_the_command_line(tmp_path: Path) -> None:
    places = {"data": "~/d", "validation_data": "~/v", "model": "~/m", "storage": "~"}
    (tmp_path / "mine.yaml").write_text("".join(f"{key}: '{place}'\n" for key, place in places.items()))
    expected = {key: os.path.expanduser(place) for key, place in places.items()}
    for config in (
        load_config(tmp_path / "mine.yaml"),
        load_config("quickstart", [f"{key}={place}" for key, place in places.items()]),
    ):
        assert {key: getattr(config, key) for key in places} == expected
    with pytest.raises(UserError, match=f"plugin {Path.home()}/no_such_plugin.py"):
        load_config("quickstart", ["plugins=[~/no_such_plugin.py]"])


@pytest.mark.parametrize("override", ["storage=''", "data=' '", "model=''", "storage="])
def test_an_empty_path_is_refused(override: str) -> None:
    assert fault(override).startswith(f"{override.partition('=')[0]}")


TEN = "".join(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in pairwise("abcdefghi"))
MISTAKES = {
    "? {a: b}\n: c\n": "a key must be a single word",
    "{[a]: b}": "a key must be a single word",
    "[" * 20_000: "nested",
    "{a: " * 20_000: "nested",
    "a: " + "[" * 60 + "]" * 60: "nested deeper than 40 levels",
    "a: &a [*a]": "contains itself",
    "a: &a {b: *a}": "contains itself",
    "seed: 2024-13-45": "",  # read as a date, or as a string if a library has removed dates from YAML's loaders
    "seed: 0x_": "not valid YAML",
    f"seed: 0x{'f' * 6000}": "an integer of 24000 bits",
    f"search: {{space: {{seed: [0x{'f' * 6000}]}}}}": "an integer of 24000 bits",
    'data: "\\ud800"': "",
    "seed: !!int x": "not valid YAML",
    "seed: !!python/object:os.system x": "not valid YAML",
    "a: \x07": "not valid YAML",
    f"a: &a [x]\n{TEN}seed: *i": "seed=[[[[[",
    "1: 2\nnull: 3": "1: a key must be a string",
}


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: text[:20])
def test_no_recipe_text_causes_a_traceback(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(MISTAKES[text])) as raised:
        load_config(tmp_path / "mine.yaml")
    lines = str(raised.value).splitlines()
    assert all(line.startswith((f"{tmp_path}/mine.yaml", "mine.yaml: ")) and len(line) < 400 for line in lines)
    with pytest.raises(UserError) as raised:
        load_config("quickstart", [f"train={text}"])
    assert all(len(line) < 1000 for line in str(raised.value).splitlines())


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("{CPU: -1}", r"CPU=-1: expected greater than or equal to 0"),
        ("{CPU: 1e300}", "less than or equal to"),
        ("{CPU: 1.5}", r"CPU=1\.5: above 1, Ray grants whole units"),
        ("{CPU: 1e-9}", "Ray grants at least 0.0001"),
        ("{'': 1}", "a resource needs a name"),
        ("{GPU: 1}", "use_gpu=false, but resources_per_worker names a GPU: add use_gpu=true"),
    ],
)
def test_resources_that_ray_never_grants_are_refused(override: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        load_config("quickstart", [f"scaling.resources_per_worker={override}"])


def test_a_zero_stage_without_deepspeed_is_refused_unless_it_comes_from_the_recipe() -> None:
    message = r"engine\.zero_stage=3 has no effect on engine\.name=torch"
    with pytest.raises(UserError, match=message):
        load_config("vcd_qwen2.5-3b_lora", ["engine.zero_stage=3"])
    with pytest.raises(UserError, match=message):
        load_config("quickstart", ["engine.name=torch", "engine.zero_stage=3"])
    assert (
        load_config("quickstart", ["engine.name=torch"]).engine.zero_stage == 2
    )  # the recipe's stage belongs to its own engine


@pytest.mark.parametrize(
    ("override", "part"),
    [
        (f"train.max_steps={10**30}", r"train: max_steps holds a whole number beyond 9223372036854775807"),
        (f"train.pairs_per_step={10**12}", "train.pairs_per_step=1000000000000: expected less than or equal to"),
        (f"scaling.threads_per_worker={10**9}", "scaling.threads_per_worker=1000000000: expected less than or equal"),
        (f"lora.r={10**9}", "lora.r=1000000000: expected less than or equal to"),
        (f"search.num_trials={10**30}", "search: num_trials holds a whole number beyond"),
    ],
)
def test_numbers_beyond_any_machine_are_refused(override: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        load_config("quickstart", [override])


def test_resources_of_servers_and_cells_are_checked_alike(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"num_cpus=1\.5: above 1, Ray grants whole units"):
        load_serve_config("quickstart", [f"policy={tmp_path}", "scaling.num_cpus=1.5"])
    with pytest.raises(UserError, match=r"max_ongoing_requests=10{12}: expected less than or equal"):
        load_serve_config("quickstart", [f"policy={tmp_path}", f"scaling.max_ongoing_requests={10**12}"])
    for resources in ("{CPU: 1.5}", "{'': 1}", "{CPU: 1e-9}", "{CPU: -1}"):
        with pytest.raises(UserError, match=r"sizes\.tiny\.resources"):
            load_suite("budget", [f"sizes.tiny.resources={resources}"])


@pytest.mark.parametrize("given", ["seed=010", "train.max_steps=08", "seed=1:30", "seed=0o17", "train.lr=1:30.5"])
def test_yaml_1_1_numbers_in_other_bases_are_refused(given: str) -> None:
    with pytest.raises(UserError, match="expected"):
        load_config("quickstart", [given])


def test_floats_are_read_and_numeric_strings_stay_strings() -> None:
    for text, value in (("1e-4", 1e-4), ("1.", 1.0), (".5", 0.5), ("1_0.5", 10.5), ("1.5e+3", 1500.0), ("3", 3.0)):
        assert load_config("quickstart", [f"train.lr={text}"]).train.lr == value
    for text in ("010", "1:30", "1e3", "5", "0x1f"):
        dumped = dump_yaml({"name": text})
        assert _loaded(dumped) == {"name": text}


def test_epochs_beside_max_steps_are_an_error() -> None:
    with pytest.raises(UserError, match=r"train\.epochs=10 has no effect beside train\.max_steps=150: add"):
        load_config("quickstart", ["train.epochs=10"])
    assert load_config("quickstart", ["train.epochs=10", "train.max_steps=null"]).train.epochs == 10


@pytest.mark.parametrize(
    ("mode", "given"),
    [("soup", "search.num_trials=3"), ("grid", "search.sampler=random"), ("asha", "search.t.low=-1"),
     ("optuna", "search.alphas=[1]"), ("grid", "search.verify=1")],
)  # fmt: skip
def test_an_override_that_the_search_mode_ignores_is_an_error(mode: str, given: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"{given} has no effect: only --mode ")):
        refuse_idle_search([given], mode)
    refuse_idle_search(["search.form=all", "search.space={}", "train.lr=1", "search=x"], mode)
