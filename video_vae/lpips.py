"""The perceptual distance LPIPS on the features of VGG16 (Zhang et al. 2018, arXiv:1801.03924)."""

from __future__ import annotations

from os import PathLike

import torch
from torch import Tensor, nn

from .checkpoint_file import load_strictly, read_state_dict

# Width and number of convolutions of the five blocks of VGG16 (Simonyan & Zisserman 2014).
VGG16_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
MIN_SIZE = 16  # four halvings


class LPIPS(nn.Module):
    """Distance of two images in feature space. Frozen: gradients flow through, never into it.

    The parameters carry the names of ``vgg_lpips.pth`` (``net.slice1.0.weight``,
    ``lin0.model.1.weight``, ``scaling_layer.shift``); a new instance is random and of no use
    before such a file is loaded, see `from_file`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = ScalingLayer()
        self.net = VGG16Features()
        for index, (width, _) in enumerate(VGG16_BLOCKS):
            self.add_module(f"lin{index}", ChannelWeights(width))
        self.requires_grad_(False)

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> LPIPS:
        """Build the distance from a file such as ``vgg_lpips.pth``.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged or holds other weights.
        """
        lpips = cls()
        load_strictly(lpips, read_state_dict(path), source=path)
        return lpips

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """Compare images with references, both ``[n, 3, h, w]`` in [-1, 1]; gives ``[n]``.

        d = sum_l mean_hw w_l · (f_l/|f_l| - g_l/|g_l|)^2, norms taken over the channels.

        Raises:
            ValueError: The images are smaller than 16 pixels.
        """
        if min(images.shape[-2:]) < MIN_SIZE:
            raise ValueError(
                f"LPIPS needs images of at least {MIN_SIZE} pixels a side, "
                f"got {images.shape[-2]}x{images.shape[-1]}"
            )
        distance = images.new_zeros(images.shape[0])
        features = self.net(self.scaling_layer(images))
        reference_features = self.net(self.scaling_layer(references))
        for index, (feature, reference) in enumerate(
            zip(features, reference_features, strict=True)
        ):
            difference = (_unit_length(feature) - _unit_length(reference)).square()
            weighted = self.get_submodule(f"lin{index}")(difference)
            distance = distance + weighted.mean(dim=(1, 2, 3))
        return distance


class ScalingLayer(nn.Module):
    """From [-1, 1] to the mean and deviation of the images VGG16 was trained on."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Shift and scale ``[n, 3, h, w]``."""
        return (images - self.shift) / self.scale


class VGG16Features(nn.Module):
    """The convolutions of VGG16 in five slices, cut after the last ReLU of each resolution.

    Layers are numbered through all slices, as in the classifier that they come from.
    """

    def __init__(self) -> None:
        super().__init__()
        channels, index = 3, 0
        for block, (width, num_convs) in enumerate(VGG16_BLOCKS, start=1):
            layers = nn.Sequential()
            if block > 1:
                layers.add_module(str(index), nn.MaxPool2d(2))
                index += 1
            for _ in range(num_convs):
                layers.add_module(str(index), nn.Conv2d(channels, width, 3, padding=1))
                layers.add_module(str(index + 1), nn.ReLU(inplace=True))
                channels, index = width, index + 2
            self.add_module(f"slice{block}", layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Give the features of all slices, finest first."""
        features = []
        for layers in self.children():
            images = layers(images)
            features.append(images)
        return features


class ChannelWeights(nn.Module):
    """One weight per channel, at place 1: a dropout stood at 0 when LPIPS itself was trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """Weigh ``[n, c, h, w]`` to ``[n, 1, h, w]``."""
        return self.model(features)


def _unit_length(features: Tensor) -> Tensor:
    # vector_norm has a zero gradient where all channels are zero; sqrt(sum of squares) has NaN.
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / (norm + 1e-10)
