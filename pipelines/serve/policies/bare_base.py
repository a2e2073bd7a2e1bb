"""A bare base model served as a policy: a folder, a GGUF file, a name on the Hub, `smollm2-135m` or
`toyworld`, without a model reference."""

from pathlib import Path

from pft_core.data import DatasetManifest, PreferenceSpace
from pft_core.policies import MODEL_REF_NAME, TOYWORLD, ModelRef, is_gguf_name, load_tokenizer, refuse_unusable_model
from pft_core.prompts import Frame, PromptStyle, chat_frame, template_digest

NO_SPACE = PreferenceSpace("none", ())


def is_bare(place: str) -> bool:
    """Return whether a place is a base model, not a trained policy; a place is absolute unless it is a name."""
    if "://" in place or place.startswith("models:/"):
        return False
    folder = Path(place)
    is_model = (folder / "config.json").is_file() and not (folder / MODEL_REF_NAME).is_file()
    return place == TOYWORLD or not folder.is_absolute() or is_model or is_gguf_name(folder)


def bare_reference(place: str, *, examples: str | None) -> ModelRef:
    """Return a reference for a base model: its own chat template if it has one, and the axes of the examples.

    Raises UserError if the model is missing or has no tokenizer.
    """
    refuse_unusable_model(place, wants_chat=False)
    space = DatasetManifest.load(Path(examples)).space if examples else NO_SPACE
    tokenizer = load_tokenizer(place)
    style = PromptStyle(frame=chat_frame(tokenizer) if tokenizer.chat_template else Frame())
    return ModelRef(place, None, None, style, space, (), template_digest(style, space), "", "", None)
