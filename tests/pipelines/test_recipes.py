"""Every shipped recipe loads, and the paper's recipe has the paper's numbers."""

import pytest

from pipelines.config import load_config, resolved_config
from pipelines.config.recipes import RECIPES

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def test_the_documented_recipes_exist() -> None:
    promised = {
        "quickstart",
        "vcd_qwen2.5-3b_lora",
        "vcd_llama3.1-8b_lora",
        "vcd_llama3.1-8b_full_zero3",
        "bqd_qwen2.5-7b_lora",
    }
    assert promised <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_loads_under_its_own_name_and_its_longest_pair_fits(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert resolved_config(config)["derived"]["longest_pair_fits_a_microbatch"]


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_a_recipe_has_a_reason(name: str) -> None:
    section_has_reason = False
    for line in (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        value = line.split("#")[0].partition(":")[2].strip()
        if not line.startswith(" "):
            section_has_reason = "#" in line
        assert section_has_reason or "#" in line or not value[:1].isdigit(), line


def test_the_paper_recipe_has_the_papers_settings() -> None:
    config = load_config("vcd_qwen2.5-3b_lora")
    assert config.lora is not None
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (8, 32, 0.05)
    assert config.lora.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert (config.train.lr, config.train.epochs, config.train.schedule) == (5e-5, 3, "linear")
    assert (config.train.pairs_per_step, config.train.warmup_steps) == (16, 100)  # batch 4 x accumulation 4
    assert (config.prompt.condition_position, config.train.alpha, config.train.beta) == ("before", 1.0, 1.0)


def test_the_full_recipe_trains_all_weights_with_zero_3_on_eight_gpus() -> None:
    config = load_config("vcd_llama3.1-8b_full_zero3")
    assert config.lora is None
    assert (config.engine.name, config.engine.zero_stage) == ("deepspeed", 3)
    assert (config.scaling.num_workers, config.scaling.use_gpu) == (8, True)
