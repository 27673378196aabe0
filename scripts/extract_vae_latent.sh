#!/bin/sh
# Latents of videos, which train_pyramid_flow.sh reads.
set -eu
# shellcheck disable=SC1091  # it is read only by `shellcheck -x`
. "$(dirname "$0")/lib/launch.sh"

# Settings, each of which an environment variable of that name replaces.
GPUS=${GPUS:-8}
MODEL_PATH=${MODEL_PATH:-}                         # folder of the checkpoint, or of its VAE
ANNO_FILE=${ANNO_FILE:-annotation/video_text.jsonl}
MODEL_DTYPE=${MODEL_DTYPE:-bf16}
WIDTH=${WIDTH:-640}
HEIGHT=${HEIGHT:-384}
NUM_FRAMES=${NUM_FRAMES:-121}
BATCH_SIZE=${BATCH_SIZE:-1}
PYTHON=${PYTHON:-python}

usage() {
    cat <<'TEXT'
Usage: scripts/extract_vae_latent.sh [OPTION...]

Encodes videos with the VAE of a checkpoint. Each annotation names the file to write under `latent`.
Files that already exist and are complete are kept, so you can stop this command at any time and run
it again.

Settings, as environment variables:
  GPUS         processes, one per GPU (default: 8)
  MODEL_PATH   folder of the checkpoint, or of its VAE
  ANNO_FILE    JSON lines of video and latent (default: annotation/video_text.jsonl)
  MODEL_DTYPE  bf16, fp16 or fp32 (default: bf16)
  WIDTH        of the clips in pixels (default: 640)
  HEIGHT       of the clips in pixels (default: 384)
  NUM_FRAMES   most frames of a clip, 8n+1 (default: 121)
  BATCH_SIZE   clips per batch and GPU (default: 1)
  PYTHON       the Python to run (default: python)

Everything else is an option of the tool, see `python -m trainer_misc.extract_features --help`:
  GPUS=1 MODEL_PATH=models/flux scripts/extract_vae_latent.sh --save_memory
TEXT
}

explain_if_asked "$@"
check_number GPUS "$GPUS"
[ -n "$MODEL_PATH" ] || refuse "MODEL_PATH must name the folder of a checkpoint"

RUN='exec' run_processes "$GPUS" trainer_misc.extract_features --what latents \
    --model_path "$MODEL_PATH" \
    --anno_file "$ANNO_FILE" --model_dtype "$MODEL_DTYPE" --width "$WIDTH" --height "$HEIGHT" \
    --num_frames "$NUM_FRAMES" --batch_size "$BATCH_SIZE" "$@"
