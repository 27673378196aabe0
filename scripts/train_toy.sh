#!/bin/sh
# From nothing to the default checkpoint: VAE, latents, DiT with its text encoders, table.
set -eu

usage() {
    cat <<'TEXT'
Usage: scripts/train_toy.sh [OUTPUT]

Trains the small default checkpoint on the synthetic set "moving shapes" and writes it, in the
released layout, to OUTPUT/dit/checkpoint (default: output/toy). Started again with the same
OUTPUT it goes on where it stopped.

It runs train_causal_video_vae.sh, extract_vae_latent.sh and train_pyramid_flow.sh, then measures
the checkpoint and writes its model card.

Settings, as environment variables:
  PROCESSES  processes of the DiT training (default: the number of GPUs, else of CPU cores)
  STEPS      optimizer steps of the DiT training (default: 4300)
  IMAGES     first frames to encode for it (default: 16000)
  CLIPS      clips of 97 frames to encode for it (default: 1000)
  PRECISION  no, bf16 or fp16: the mixed precision of both trainings (default: no)
  SEED       of weights and data (default: 0)
  PYTHON     the Python to run (default: python)
TEXT
}

case "${1:-}" in
-h | --help)
    usage
    exit 0
    ;;
esac
if [ $# -gt 1 ]; then
    echo "train_toy.sh: one folder at most, not $#; settings are environment variables" >&2
    exit 2
fi

output=${1:-output/toy}
python=${PYTHON:-python}
root=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH

VAE="$output/vae/causal_video_vae"
BANK="$output/bank.safetensors"
export VAE BANK
PROCESSES=1 OUTPUT="$output/vae" sh "$root/scripts/train_causal_video_vae.sh"
if [ ! -f "$BANK" ]; then
    sh "$root/scripts/extract_vae_latent.sh"
fi
OUTPUT="$output/dit" sh "$root/scripts/train_pyramid_flow.sh"
"$python" -m trainer_misc.evaluation --model "$output/dit/checkpoint" --mode all \
    --output "$output/scores.json" --contact-sheet "$output/sheet.png"
"$python" -m trainer_misc.toy.model_card --checkpoint "$output/dit/checkpoint" \
    --scores "$output/scores.json"
