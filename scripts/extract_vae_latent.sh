#!/bin/sh
# Latents of moving shapes, for the training of the transformer.
set -eu

usage() {
    cat <<'TEXT'
Usage: scripts/extract_vae_latent.sh [OPTION...]

Encodes images and clips of the synthetic set "moving shapes", the only data this tool knows, with
a trained VAE and writes all latents to one safetensors file, which train_pyramid_flow.sh reads.

Settings, as environment variables:
  VAE      folder of the VAE (default: output/toy/vae/3-decoder/causal_video_vae)
  BANK     file to write (default: output/toy/bank.safetensors)
  IMAGES   first frames (default: 16000)
  CLIPS    clips of 97 frames (default: 1000)
  PYTHON   the Python to run (default: python)

Everything else is an option of `python -m trainer_misc.toy.latent_bank`:
  scripts/extract_vae_latent.sh --clips 200
TEXT
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
exec "${PYTHON:-python}" -m trainer_misc.toy.latent_bank \
    --vae "${VAE:-output/toy/vae/3-decoder/causal_video_vae}" \
    --output "${BANK:-output/toy/bank.safetensors}" \
    --images "${IMAGES:-16000}" --clips "${CLIPS:-1000}" "$@"
