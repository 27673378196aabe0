#!/bin/sh
# One request of the web demo, by several GPUs of this machine.
set -eu

usage() {
    cat <<'TEXT'
Usage: scripts/app_multigpu_engine.sh GPUS VARIANT MODEL_PATH t2v TEMP GUIDANCE_SCALE \
           VIDEO_GUIDANCE_SCALE RESOLUTION OUTPUT_PATH PROMPT
       scripts/app_multigpu_engine.sh GPUS VARIANT MODEL_PATH i2v TEMP GUIDANCE_SCALE \
           VIDEO_GUIDANCE_SCALE RESOLUTION OUTPUT_PATH IMAGE_PATH PROMPT

Makes one video on several GPUs, as the web demo asks for it.
  GPUS                  number of GPUs
  VARIANT               transformer of the model, such as diffusion_transformer_768p
  MODEL_PATH            folder of a checkpoint, or a repository on the Hugging Face hub
  TEMP                  latent frames: 16 makes 121 frames, 5 seconds
  GUIDANCE_SCALE        guidance of the first frame
  VIDEO_GUIDANCE_SCALE  guidance of the later frames
  RESOLUTION            384p, 768p, or WIDTHxHEIGHT in multiples of 64
  OUTPUT_PATH           file to write
  IMAGE_PATH            picture to start from
  PROMPT                what the video should show; may be empty for i2v

Environment variables:
  PYTHON   the Python to run (default: python)
  OPTIONS  more options of pyramid-flow, separated by spaces, such as "--shard --quiet"
TEXT
}

complain() {
    echo "app_multigpu_engine.sh: $1 (see --help)" >&2
    exit 2
}

case "${1:-}" in
-h | --help)
    usage
    exit 0
    ;;
esac

[ $# -ge 10 ] || complain "10 arguments are needed, or 11 for i2v; there are $#"
gpus=$1 variant=$2 model=$3 task=$4 temp=$5 guidance=$6 video_guidance=$7 resolution=$8 output=$9
shift 9

case $temp in
'' | *[!0-9]* | 0) complain "TEMP must be a number above 0, not '$temp'" ;;
esac
case $resolution in
384p) size=640x384 ;;
768p) size=1280x768 ;;
*x*) size=$resolution ;;
*) complain "RESOLUTION must be 384p, 768p or WIDTHxHEIGHT, not '$resolution'" ;;
esac
case $task in
t2v)
    [ $# -eq 1 ] || complain "t2v takes a PROMPT after OUTPUT_PATH, and nothing else"
    prompt=$1
    shift
    ;;
i2v)
    [ $# -eq 2 ] || complain "i2v takes IMAGE_PATH and PROMPT after OUTPUT_PATH"
    prompt=$2
    set -- --image "$1"
    ;;
*) complain "the task must be t2v or i2v, not '$task'" ;;
esac

root=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
# OPTIONS are several words on purpose.
# shellcheck disable=SC2086
exec "${PYTHON:-python}" -m pyramid_dit \
    --gpus "$gpus" --model "$model" --variant "$variant" --size "$size" \
    --num-frames $((8 * (temp - 1) + 1)) \
    --guidance "$guidance" --video-guidance "$video_guidance" \
    --output "$output" "$@" ${OPTIONS:-} -- "$prompt"
