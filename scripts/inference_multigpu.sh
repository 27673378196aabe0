#!/bin/sh
# One video by several GPUs of this machine.
set -eu

usage() {
    cat <<'TEXT'
Usage: scripts/inference_multigpu.sh [OPTION...]

Makes one video on several GPUs. Settings, as environment variables:
  GPUS        number of GPUs (default: 2)
  MODEL_PATH  folder of a checkpoint, or a repository on the Hugging Face hub
              (default: rain1011/pyramid-flow-miniflux)
  VARIANT     transformer of the model (default: diffusion_transformer_768p)
  TASK        t2v, from PROMPT alone, or i2v, from IMAGE and PROMPT (default: t2v)
  PROMPT      what the video should show
  IMAGE       picture to start from, for i2v
  TEMP        latent frames: 16 makes 121 frames, 5 seconds (default: 16)
  OUTPUT      file to write (default: text_to_video_sample.mp4 or image_to_video_sample.mp4)
  PYTHON      the Python to run (default: python)

Everything else is an option of pyramid-flow, see `pyramid-flow --help`:
  GPUS=4 PROMPT="a lighthouse in a storm" scripts/inference_multigpu.sh --seed 7 --guidance 9

More than one machine: docs/multi-gpu.md.
TEXT
}

case "${1:-}" in
-h | --help)
    usage
    exit 0
    ;;
esac

root=$(cd "$(dirname "$0")/.." && pwd)
task=${TASK:-t2v}
temp=${TEMP:-16}
case $temp in
'' | *[!0-9]* | 0)
    echo "inference_multigpu.sh: TEMP must be a number above 0, not '$temp'" >&2
    exit 2
    ;;
esac

case $task in
t2v)
    prompt=${PROMPT:-"A movie trailer of a lighthouse in a storm, waves breaking on the rocks"}
    output=${OUTPUT:-text_to_video_sample.mp4}
    ;;
i2v)
    prompt=${PROMPT:-}
    output=${OUTPUT:-image_to_video_sample.mp4}
    if [ -z "${IMAGE:-}" ]; then
        echo "inference_multigpu.sh: TASK=i2v needs IMAGE, the picture to start from" >&2
        exit 2
    fi
    set -- --image "$IMAGE" "$@"
    ;;
*)
    echo "inference_multigpu.sh: TASK must be t2v or i2v, not '$task'" >&2
    exit 2
    ;;
esac

PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
exec "${PYTHON:-python}" -m pyramid_dit \
    --gpus "${GPUS:-2}" \
    --model "${MODEL_PATH:-rain1011/pyramid-flow-miniflux}" \
    --variant "${VARIANT:-diffusion_transformer_768p}" \
    --num-frames $((8 * (temp - 1) + 1)) \
    --output "$output" \
    "$@" -- "$prompt"
