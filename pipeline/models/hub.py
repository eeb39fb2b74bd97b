"""Publishing of exports on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import httpx2
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from pipeline.core.errors import BadInput


def push(folder: Path, name: str, *, private: bool, licence: str = "", api: HfApi | None = None) -> str:
    """Uploads a folder as the model NAME, which is made where it is not there; returns its address.

    licence: an identifier of the hub for the card, such as apache-2.0. Raises BadInput with the hub's reason.
    """
    if licence:
        card = ModelCard.load(folder / "README.md")
        card.data.license = licence
        card.save(folder / "README.md")
    api = api or HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"Upload {folder.name}")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, httpx2.TransportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"--push-to {name}: {reason}; {folder} is written: `hf auth login`, then `hf upload {name} {folder} .`"
        ) from None
    return str(address)
