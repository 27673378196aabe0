#!/bin/sh
# The video VAE of the default checkpoint, from nothing.
set -eu

usage() {
    cat <<'TEXT'
Usage: scripts/train_causal_video_vae.sh [OPTION...]

Trains the causal video VAE of the default checkpoint on the synthetic set "moving shapes", the
only data this trainer knows: on images, on clips, then the decoder alone. The VAE is written to
OUTPUT/causal_video_vae. Started again with the same OUTPUT it goes on where it stopped.

Settings, as environment variables:
  OUTPUT     folder of the run (default: output/toy/vae)
  PROCESSES  processes, one per GPU, or that share the CPU's cores (default: 1)
  PRECISION  no, bf16 or fp16: the mixed precision (default: no)
  SEED       of weights and data (default: 0)
  PYTHON     the Python to run (default: python)

Everything else is an option of the trainer, see `python -m trainer_misc.vae_trainer --help`:
  PROCESSES=2 scripts/train_causal_video_vae.sh --mixed-precision bf16
TEXT
}

case "${1:-}" in
-h | --help)
    usage
    exit 0
    ;;
esac

processes=${PROCESSES:-1}
case $processes in
'' | *[!0-9]* | 0)
    echo "train_causal_video_vae.sh: PROCESSES must be a number above 0, not '$processes'" >&2
    exit 2
    ;;
esac

root=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH
set -- trainer_misc.vae_trainer --output "${OUTPUT:-output/toy/vae}" \
    --mixed-precision "${PRECISION:-no}" --seed "${SEED:-0}" "$@"
if [ "$processes" -gt 1 ]; then
    set -- torch.distributed.run --standalone --nproc-per-node "$processes" -m "$@"
fi
exec "${PYTHON:-python}" -m "$@"
