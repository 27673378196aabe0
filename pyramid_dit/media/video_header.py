"""What the header of a video says, and what follows from it: frames as a player shows them."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .ffmpeg import ffmpeg_says

_STREAM = re.compile(
    r"^  Stream #\S+.*?: Video: .*?, (?P<pixels>\w+)(?:\((?P<colors>[^)]*)\))?, "
    r"(?P<width>\d+)x(?P<height>\d+)(?!.*\(attached pic\))",
    re.MULTILINE,
)
_DURATION = re.compile(r"^  Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)", re.MULTILINE)
_FRAME_RATE = re.compile(r", (\d+(?:\.\d+)?) fps\b")
_PIXEL_ASPECT = re.compile(r"\[SAR (\d+):(\d+) ")
_ROTATION = re.compile(r"^ +display ?matrix: rotation of (-?[\d.]+) degrees", re.I | re.MULTILINE)
_SOUND = re.compile(r"^  Stream #\S+.*?: Audio: ", re.MULTILINE)
_COLORS = re.compile(r"([\w-]+)/([\w-]+)/([\w-]+)")
_ONE_NAME = re.compile(r"\b(bt709|smpte170m|smpte240m)\b")  # of all three, where they agree
_YUV = ("yuv", "nv", "p0", "p2", "p4", "uyvy", "yuyv", "yvyu", "y2")
_HDR = {"arib-std-b67": "HLG", "smpte2084": "PQ"}
_WHITE = 203  # cd/m² of diffuse white, ITU-R BT.2408
_PEAK = 1000 / _WHITE
_KNEE = 0.75  # of white's light; what is brighter is compressed, so that white gets 240 of 255


class UnsupportedVideoError(ValueError):
    """A whole video of a kind that cannot be read here; the message says what to do."""


@dataclass(frozen=True)
class VideoHeader:
    """What ffmpeg says of the first video stream of a file."""

    pixel_format: str
    width: int
    """As stored: neither turned nor with square pixels."""
    height: int
    matrix: str
    """Of YUV; "unknown" where the file does not say, as the next two."""
    primaries: str
    transfer: str
    seconds: float | None
    """Length of the file, None where it does not say."""
    has_sound: bool
    frame_rate: float | None = None
    """Frames a second on the average, None where the file does not say."""
    aspect: float = 1
    """Width by height of what is shown: turned, and with square pixels."""

    @classmethod
    def read(cls, path: str | Path, input_options: Sequence[str] = ()) -> VideoHeader:
        """Look at a file.

        Args:
            path: The file.
            input_options: Options for ffmpeg.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: There is no video in it.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no such video file: {str(path)!r}")
        # an absolute name cannot be taken for an option or a protocol
        arguments = [*input_options, "-i", str(Path(path).absolute())]
        # It ends with an error, as nothing is to be written, once it has printed what it found.
        said = ffmpeg_says(arguments).stderr.decode(errors="replace")
        stream, duration = _STREAM.search(said), _DURATION.search(said)
        if stream is None:
            raise ValueError(f"not a video that ffmpeg can read: {str(path)!r}")
        colors = stream["colors"] or ""
        three, one = _COLORS.search(colors), _ONE_NAME.search(colors)
        names = three.groups() if three else (one[1] if one else "unknown",) * 3
        seconds = None
        if duration:
            seconds = 3600 * int(duration[1]) + 60 * int(duration[2]) + float(duration[3])
        about = said[stream.start() :].partition("\n  Stream ")[0]
        return cls(
            pixel_format=stream["pixels"],
            width=int(stream["width"]),
            height=int(stream["height"]),
            matrix=names[0],
            primaries=names[1],
            transfer=names[2],
            seconds=seconds,
            has_sound=_SOUND.search(said) is not None,
            frame_rate=_frame_rate(about.partition("\n")[0]),
            aspect=_aspect(int(stream["width"]) / max(1, int(stream["height"])), about),
        )

    def filters(self, size: tuple[int, int] | None, fps: float | None) -> list[str]:
        """ffmpeg's filters for square pixels in the colors of a screen, upright as ever.

        Args:
            size: Width and height that a frame is scaled to cover, and cropped to in the middle.
            fps: Frames a second, by dropping and repeating; None for every stored frame once.

        Raises:
            UnsupportedVideoError: The video is HDR, and this ffmpeg cannot read that.
        """
        chain = [] if fps is None else [f"fps={fps}"]
        if tags := self._missing_tags():
            chain.append(f"setparams={':'.join(tags)}")
        square = "clip(sar,1/8,8)"  # bounded, for a header may say anything
        if size is not None:
            width, height = size
            aspect = f"iw/ih*{square}"
            chain += [
                f"scale=w='max({width},round({height}*{aspect}))'"
                f":h='max({height},round({width}/({aspect})))':flags=lanczos+accurate_rnd+full_chroma_int",
                f"crop={width}:{height}",
            ]
        else:
            chain.append(f"scale=w='round(iw*max(1,{square}))':h='round(ih/min(1,{square}))'")
        chain.append("setsar=1")
        return chain + self._to_screen()

    def _missing_tags(self) -> list[str]:
        """Colors that the file does not name, where the usual guess would be wrong."""
        tags = []
        if self.transfer in _HDR:
            tags += ["colorspace=bt2020nc"] if self.matrix == "unknown" else []
            tags += ["color_primaries=bt2020"] if self.primaries == "unknown" else []
        elif self.matrix == "unknown" and self.pixel_format.startswith(_YUV):
            high_definition = (
                max(self.width, self.height) >= 1280 or min(self.width, self.height) > 576
            )
            tags += ["colorspace=bt709"] if high_definition else []
        return tags

    def _to_screen(self) -> list[str]:
        """HDR to the range of screens: diffuse white is white, the rest up to 1000 cd/m² fits."""
        if self.transfer not in _HDR:
            return []
        if not _has_filters("zscale", "tonemap"):
            raise UnsupportedVideoError(
                f"HDR ({_HDR[self.transfer]}) cannot be read with this ffmpeg, which lacks the "
                "filters zscale and tonemap: convert the video to SDR"
            )
        return [
            f"zscale=t=linear:npl={_WHITE}",
            "format=gbrpf32le",
            "zscale=p=bt709",
            f"tonemap=mobius:param={_KNEE}:peak={_PEAK:.4f}:desat=0",
            "zscale=t=iec61966-2-1",
            "format=gbrp",
        ]


def _aspect(stored: float, about: str) -> float:
    """Width by height as shown, by what ffmpeg says about the stream."""
    pixel, turn = _PIXEL_ASPECT.search(about.partition("\n")[0]), _ROTATION.search(about)
    if pixel and int(pixel[1]) and int(pixel[2]):
        stored *= int(pixel[1]) / int(pixel[2])
    on_its_side = turn is not None and round(float(turn[1]) / 90) % 2 == 1
    return 1 / stored if on_its_side else stored


def _frame_rate(stream: str) -> float | None:
    found = _FRAME_RATE.search(stream)
    return float(found[1]) or None if found else None


@functools.cache
def _has_filters(*names: str) -> bool:
    said = ffmpeg_says(["-filters"]).stdout.decode(errors="replace").split()
    return set(names) <= set(said)
