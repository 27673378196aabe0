"""Fetching a checkpoint from the Hugging Face hub, only what is needed of it."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from ..checks import is_repo_id
from .folder import INDEX_NAME, CheckpointFolder

TOY_FOLDER = Path(__file__).parents[1] / "toy"


def open_checkpoint(
    folder_or_hub_id: str | PathLike[str] | None,
    variant: str | None = None,
    *,
    fast: bool = False,
    subfolder: str | None = None,
    use_safetensors: bool | None = None,
    **options: Any,
) -> CheckpointFolder:
    """Look into a checkpoint, which is fetched first if it lies on the hub.

    Args:
        folder_or_hub_id: A folder or `owner/repository`; None is the checkpoint that comes with
            this package.
        variant: As for `CheckpointFolder.open`.
        fast: The same.
        subfolder: Where the checkpoint lies in the folder or repository.
        use_safetensors: True takes weights in safetensors only, False pickled ones only.
        options: Further arguments of `download_checkpoint`.

    Raises:
        FileNotFoundError: There is no such folder, repository or variant.
        ConnectionError: The hub cannot be reached and the cache does not hold the files.
        ValueError: The variant is ambiguous, or a file cannot be understood.
    """
    source = TOY_FOLDER if folder_or_hub_id is None else Path(folder_or_hub_id)
    if not source.exists() and is_repo_id(str(folder_or_hub_id)):
        options |= {"subfolder": subfolder, "use_safetensors": use_safetensors, "fast": fast}
        source = download_checkpoint(str(folder_or_hub_id), variant, **options)
    path = source / subfolder if subfolder else source
    folder = CheckpointFolder.open(path, variant, fast=fast)
    return replace(folder, use_safetensors=use_safetensors)


def download_checkpoint(
    repo_id: str,
    variant: str | None = None,
    *,
    fast: bool = False,
    revision: str | None = None,
    cache_dir: str | PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    subfolder: str | None = None,
    use_safetensors: bool | None = None,
    transformer: bool = True,
    vae: bool = True,
    text_encoder: bool = True,
) -> Path:
    """Fetch one variant of a checkpoint; what an interrupted run fetched is not fetched again.

    Args:
        repo_id: `owner/repository`, for example `rain1011/pyramid-flow-miniflux`.
        variant: `diffusion_transformer_768p`, or in short `768p`; by default as for a folder.
        fast: Fetch the one that was distilled from it.
        revision: Branch, tag or commit.
        cache_dir: Where to keep it; by default the hub's cache.
        token: For repositories that are not public; by default that of `hf auth login`, False for
            none.
        local_files_only: Take what the cache holds, and do not ask the hub.
        force_download: Fetch again what the cache holds.
        subfolder: Where the checkpoint lies in the repository.
        use_safetensors: True leaves out pickled weights, False those in safetensors.
        transformer: Fetch the transformer's weights.
        vae: Fetch the VAE too.
        text_encoder: Fetch the text encoders and their tokenizers too.

    Returns:
        The folder of the repository.

    Raises:
        FileNotFoundError: No such repository, or no such variant in it.
        ConnectionError: The hub cannot be reached and the cache does not hold the files.
        ValueError: The variant is ambiguous, or a file cannot be understood.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    above = f"{subfolder}/" if subfolder else ""
    left_out = {None: [], True: ["*.bin", "*.pt"], False: ["*.safetensors"]}[use_safetensors]

    def fetch(*patterns: str) -> Path:
        folder = snapshot_download(
            repo_id,
            revision=revision,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=[above + pattern for pattern in patterns],
            ignore_patterns=left_out,
        )
        return Path(folder)

    try:
        # The small configs first: gigabytes of text encoders are in vain without the variant.
        path = fetch(INDEX_NAME, "*/config.json", "scheduler/*")
        try:
            folder = CheckpointFolder.open(path / above, variant, fast=fast)
        except FileNotFoundError as error:
            raise FileNotFoundError(str(error).replace(str(path), repo_id)) from error
        patterns = [INDEX_NAME, "*/config.json", "scheduler/*"]
        if transformer:
            patterns.append(f"{folder.variant}/*")
        if vae:
            patterns.append(f"{folder.vae_folder}/*")
        if text_encoder:
            patterns += ["text_encoder*/*", "tokenizer*/*"]
        return fetch(*patterns)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"{repo_id!r} is neither a folder nor a repository on the Hub"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConnectionError(f"cannot download {repo_id} from the Hub: {reason}") from error
