"""Contact sheets: frames of videos side by side in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def save_contact_sheet(videos: Sequence[Tensor], path: Path, *, frames: int = 7) -> None:
    """Write one row a video, `frames` pictures evenly spread over its time.

    Args:
        videos: Pixels [3, t, h, w] in [-1, 1], all of one height and width.
        path: The PNG to write.
        frames: Pictures a row (fewer where a video has fewer).
    """
    rows = []
    for video in videos:
        chosen = torch.linspace(0, video.shape[1] - 1, min(frames, video.shape[1])).round().long()
        row = torch.cat(list(video[:, chosen].unbind(1)), dim=-1)
        rows.append((row.float().cpu() * 127.5 + 127.5).clamp(0, 255).byte())
    width = max(row.shape[-1] for row in rows)
    rows = [torch.nn.functional.pad(row, (0, width - row.shape[-1])) for row in rows]
    temporary = path.with_name(f".{path.name}.tmp")
    sheet = torch.cat(rows, dim=-2).permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(sheet).save(temporary, format="PNG")
    temporary.rename(path)
