"""The patch discriminator that judges single frames."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, arXiv:1611.07004): one logit for every patch of a frame.

    ``num_layers`` convolutions of stride 2 and two of stride 1, all with kernel 4. Every layer but
    the first and the last is followed by an instance norm without parameters, so those layers
    need no bias. Biases that a file of weights has for them had no effect, and are left out when
    it is loaded.

    Args:
        in_channels: Channels of a frame.
        base_channels: Channels of the first layer; they double up to eight times that.
        num_layers: Number of halvings.
    """

    def __init__(self, in_channels: int = 3, base_channels: int = 64, num_layers: int = 4) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        # The last instance norm needs more than one value and the last convolution two by two.
        self.min_size = 3 * 2**num_layers
        widths = [base_channels * min(2**layer, 8) for layer in range(num_layers + 1)]
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, widths[0], 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for layer in range(1, num_layers + 1):
            stride = 2 if layer < num_layers else 1
            layers += [
                nn.Conv2d(widths[layer - 1], widths[layer], 4, stride, padding=1, bias=False),
                nn.InstanceNorm2d(widths[layer]),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        self.apply(_init_weights)
        self.register_load_state_dict_pre_hook(_drop_biases_before_norms)

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames ``[n, c, h, w]`` in [-1, 1] to logits ``[n, 1, h', w']``, high for real.

        Raises:
            ValueError: The frames are too small for the number of layers.
        """
        height, width = frames.shape[-2:]
        if min(height, width) < self.min_size:
            raise ValueError(
                f"frames of {height}x{width} pixels are too small for the discriminator, which "
                f"needs at least {self.min_size} on either side"
            )
        return self.main(frames)


def _drop_biases_before_norms(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is None:
            state_dict.pop(f"{prefix}{name}.bias", None)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
