#!/bin/sh
# Features of texts, so that a training needs no text encoders.
set -eu
# shellcheck disable=SC1091  # it is read only by `shellcheck -x`
. "$(dirname "$0")/lib/launch.sh"

# Settings, each of which an environment variable of that name replaces.
GPUS=${GPUS:-8}
MODEL_NAME=${MODEL_NAME:-pyramid_flux}             # or pyramid_mmdit
MODEL_PATH=${MODEL_PATH:-}                         # folder of the checkpoint
ANNO_FILE=${ANNO_FILE:-annotation/video_text.jsonl}
MODEL_DTYPE=${MODEL_DTYPE:-bf16}
BATCH_SIZE=${BATCH_SIZE:-4}
PYTHON=${PYTHON:-python}

usage() {
    cat <<'TEXT'
Usage: scripts/extract_text_feature.sh [OPTION...]

Encodes texts with the text encoders of a checkpoint. Each annotation names the file to write under
`text_fea`. The empty text goes into empty_text_feature.pt next to the annotations: pass it to
train_dit as --empty_text_feature, so that the model learns guidance. Files that already exist and
are complete are kept.

Settings, as environment variables:
  GPUS         processes, one per GPU (default: 8)
  MODEL_NAME   pyramid_flux or pyramid_mmdit (default: pyramid_flux)
  MODEL_PATH   folder of the checkpoint
  ANNO_FILE    JSON lines of text and text_fea (default: annotation/video_text.jsonl)
  MODEL_DTYPE  bf16, fp16 or fp32 (default: bf16)
  BATCH_SIZE   texts per batch and GPU (default: 4)
  PYTHON       the Python to run (default: python)

Everything else is an option of the tool, see `python -m trainer_misc.extract_features --help`:
  GPUS=1 MODEL_PATH=models/flux scripts/extract_text_feature.sh --device cpu
TEXT
}

explain_if_asked "$@"
check_number GPUS "$GPUS"
[ -n "$MODEL_PATH" ] || refuse "MODEL_PATH must name the folder of a checkpoint"

RUN='exec' run_processes "$GPUS" trainer_misc.extract_features --what text \
    --model_name "$MODEL_NAME" \
    --model_path "$MODEL_PATH" --anno_file "$ANNO_FILE" --model_dtype "$MODEL_DTYPE" \
    --batch_size "$BATCH_SIZE" "$@"
