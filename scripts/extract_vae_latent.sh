#!/bin/sh
# Latents of videos, which train_pyramid_flow.sh reads.
set -eu

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

Encodes videos with the VAE of a checkpoint, each into the file that its annotation calls `latent`.
What is there already and whole is left as it is, so that the same command goes on after an end at
any moment.

Settings, as environment variables:
  GPUS         processes, one per GPU (default: 8; 1 does as well)
  MODEL_PATH   folder of the checkpoint, or of its VAE
  ANNO_FILE    JSON lines of video and latent (default: annotation/video_text.jsonl)
  MODEL_DTYPE  bf16, fp16 or fp32 (default: bf16)
  WIDTH        of the clips in pixels (default: 640)
  HEIGHT       of the clips in pixels (default: 384)
  NUM_FRAMES   most frames of a clip, 8n+1 (default: 121)
  BATCH_SIZE   clips at a time and GPU (default: 1)
  PYTHON       the Python to run (default: python)

Everything else is an option of the tool, see `python -m trainer_misc.extract_features --help`:
  GPUS=1 MODEL_PATH=models/flux scripts/extract_vae_latent.sh --save_memory
TEXT
}

case "${1:-}" in
-h | --help)
    usage
    exit 0
    ;;
esac
case $GPUS in
'' | *[!0-9]* | 0)
    echo "extract_vae_latent.sh: GPUS must be a number above 0, not '$GPUS'" >&2
    exit 2
    ;;
esac
if [ -z "$MODEL_PATH" ]; then
    echo "extract_vae_latent.sh: MODEL_PATH must name the folder of a checkpoint" >&2
    exit 2
fi

root=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
set -- trainer_misc.extract_features --what latents --model_path "$MODEL_PATH" \
    --anno_file "$ANNO_FILE" --model_dtype "$MODEL_DTYPE" --width "$WIDTH" --height "$HEIGHT" \
    --num_frames "$NUM_FRAMES" --batch_size "$BATCH_SIZE" "$@"
if [ "$GPUS" -gt 1 ]; then
    set -- torch.distributed.run --standalone --nproc-per-node "$GPUS" -m "$@"
fi
exec "$PYTHON" -m "$@"
