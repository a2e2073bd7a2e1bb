"""Files of earlier versions still open: the config of a run, the reference of a policy, the manifest of a data set."""

from pathlib import Path

from pft_core.data.manifest import DatasetManifest
from pft_core.data.preferences import load_space
from pft_core.encoding.layer import layer_key
from pft_core.encoding.settings import EncodingSettings
from pft_core.encoding.views import EncodingSpec
from pft_core.policies.model_ref import ModelRef
from pft_core.prompts.rendering import PromptStyle, template_digest
from pipelines.config import load_config

STORED = Path(__file__).resolve().parents[1] / "stored"


def test_a_stored_config_opens_as_it_was_written() -> None:
    config = load_config(STORED / "config.yaml")
    assert (config.train.objective, config.train.pairs_per_step, config.engine.zero_stage) == ("one_sided:first", 32, 3)
    assert load_config(STORED / "config.yaml", ["train.objective=pft", "train.alpha=2"]).train.alpha == 2.0


def test_a_stored_reference_opens_and_its_prompts_have_the_same_digest() -> None:
    ref = ModelRef.load(STORED)
    assert ref.adapter == str(STORED / "adapter")
    assert ref.trained_sides == (0, 1)
    assert template_digest(ref.style, ref.space) == ref.template_digest


def test_a_stored_manifest_opens() -> None:
    manifest = DatasetManifest.load(STORED)
    assert (manifest.rows_in, manifest.space.name, manifest.shards[0].rows) == (4800, "toyworld", 4800)


def test_a_stored_layer_is_found_under_its_key() -> None:
    encoding = EncodingSettings(max_length=256, mask="paper", overlong="cut_prompt")
    spec = EncodingSpec(PromptStyle("after", "option"), encoding, "preference")
    key = layer_key(data_digest="d", tokenizer_digest="t", spec=spec, space=load_space("toyworld"))
    assert key == "a8c0da803b07b237"  # of format 4
