"""A base model served as it is: a folder, a name on the Hub, or `toyworld`, without any reference to say its words."""

from pathlib import Path

from pft_core.data import DatasetManifest, PreferenceSpace
from pft_core.policies import MODEL_REF_NAME, TOYWORLD, ModelRef, load_tokenizer, refuse_unusable_model
from pft_core.prompts import Frame, PromptStyle, chat_frame, template_digest

NO_SPACE = PreferenceSpace("none", ())


def is_bare(place: str) -> bool:
    """Whether this is a base model, and no policy that was trained here; a place is absolute unless it is a name."""
    if "://" in place or place.startswith("models:/"):
        return False
    folder = Path(place)
    is_model = (folder / "config.json").is_file() and not (folder / MODEL_REF_NAME).is_file()
    return place == TOYWORLD or not folder.is_absolute() or is_model


def bare_reference(place: str, *, examples: str | None) -> ModelRef:
    """Return how a base model is asked: in its own chat template if it has one, of the axes that the examples have.

    Raises UserError for a model that is not there, or has no tokenizer.
    """
    refuse_unusable_model(place, wants_chat=False)
    space = DatasetManifest.load(Path(examples)).space if examples else NO_SPACE
    tokenizer = load_tokenizer(place)
    style = PromptStyle(frame=chat_frame(tokenizer) if tokenizer.chat_template else Frame())
    return ModelRef(place, None, None, style, space, (), template_digest(style, space), "", "", None)
