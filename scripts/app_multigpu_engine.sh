#!/bin/sh
# The page on several GPUs of this machine; or one request of the reference's web demo.
set -eu

usage() {
    cat <<'TEXT'
Usage: scripts/app_multigpu_engine.sh [OPTION...]
       scripts/app_multigpu_engine.sh GPUS VARIANT MODEL_PATH t2v TEMP GUIDANCE_SCALE \
           VIDEO_GUIDANCE_SCALE RESOLUTION OUTPUT_PATH PROMPT
       scripts/app_multigpu_engine.sh GPUS VARIANT MODEL_PATH i2v TEMP GUIDANCE_SCALE \
           VIDEO_GUIDANCE_SCALE RESOLUTION OUTPUT_PATH IMAGE_PATH PROMPT

The first form starts the page in the browser, whose videos several GPUs make together. Settings,
as environment variables:
  GPUS        number of GPUs (default: 2)
  MODEL_PATH  folder of a checkpoint, or a repository on the Hugging Face hub
              (default: rain1011/pyramid-flow-miniflux)
  VARIANT     transformer of the model (default: diffusion_transformer_768p)
  PYTHON      the Python to run (default: python)

Everything else is an option of app.py, see `python app.py --help`:
  GPUS=4 scripts/app_multigpu_engine.sh --port 8000

The other forms make one video, with the arguments of the reference's script:
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
and as environment variables PYTHON and
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

root=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH

case "${1:-}" in
'' | -*)
    exec "${PYTHON:-python}" "$root/app.py" \
        --gpus "${GPUS:-2}" \
        --model "${MODEL_PATH:-rain1011/pyramid-flow-miniflux}" \
        --variant "${VARIANT:-diffusion_transformer_768p}" \
        "$@"
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

# OPTIONS are several words on purpose.
# shellcheck disable=SC2086
exec "${PYTHON:-python}" -m pyramid_dit \
    --gpus "$gpus" --model "$model" --variant "$variant" --size "$size" \
    --num-frames $((8 * (temp - 1) + 1)) \
    --guidance "$guidance" --video-guidance "$video_guidance" \
    --output "$output" "$@" ${OPTIONS:-} -- "$prompt"
