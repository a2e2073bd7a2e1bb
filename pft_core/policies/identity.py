"""What identifies a base model: its weights and config, or its name and revision on the hub."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from pft_core.files import digest, file_sha256


def base_digest(name_or_path: str) -> str:
    """Return the digest of a model folder's weights and config; of a hub model, of its name and revision."""
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        # Loaded before it is asked for: its snapshot in the cache is named after the revision.
        return digest([name_or_path, str(try_to_load_from_cache(name_or_path, "config.json"))])
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), folder / "config.json"])
    return digest({file.name: file_sha256(file) for file in files})
