#!/bin/sh
# The video VAE: stage one on pictures and short clips, stage two on longer clips.
set -eu
# shellcheck disable=SC1091  # it is read only by `shellcheck -x`
. "$(dirname "$0")/lib/launch.sh"

# Settings, each of which an environment variable of that name replaces.
GPUS=${GPUS:-8}
MODEL_PATH=${MODEL_PATH:-}                         # folder of the VAE
LPIPS_CKPT=${LPIPS_CKPT:-}                         # vgg_lpips.pth
IMAGE_ANNO=${IMAGE_ANNO:-annotation/image_text.jsonl}
VIDEO_ANNO=${VIDEO_ANNO:-annotation/video_text.jsonl}
OUTPUT_DIR=${OUTPUT_DIR:-output/causal_video_vae}
RESOLUTION=${RESOLUTION:-256}
CONTEXT_SIZE=${CONTEXT_SIZE:-1}                    # above 1: stage two
NUM_FRAMES=${NUM_FRAMES:-}
BATCH_SIZE=${BATCH_SIZE:-2}
PYTHON=${PYTHON:-python}

usage() {
    cat <<'TEXT'
Usage: scripts/train_causal_video_vae.sh [OPTION...]

Trains a causal video VAE with the recipe of the reference: squared error, LPIPS if you give its
weights, and a discriminator from step 250,000 on. Stage one trains on videos and some pictures.
Stage two, with a CONTEXT_SIZE above 1, continues from its result with longer videos; CONTEXT_SIZE
GPUs divide the frames of a video among them. If you start it again with the same OUTPUT_DIR, it
continues where it stopped. The result is OUTPUT_DIR/causal_video_vae:
  OUTPUT_DIR=output/stage1 MODEL_PATH=models/vae scripts/train_causal_video_vae.sh
  CONTEXT_SIZE=2 OUTPUT_DIR=output/stage2 MODEL_PATH=output/stage1/causal_video_vae \
      scripts/train_causal_video_vae.sh

Settings, as environment variables:
  GPUS        processes, one per GPU (default: 8)
  MODEL_PATH  folder of the VAE to train on
  LPIPS_CKPT  file of the LPIPS weights, vgg_lpips.pth; without it there is no LPIPS
  IMAGE_ANNO  JSON lines of image (default: annotation/image_text.jsonl)
  VIDEO_ANNO  JSON lines of video (default: annotation/video_text.jsonl)
  OUTPUT_DIR  folder of the run (default: output/causal_video_vae)
  RESOLUTION  height and width of a clip in pixels (default: 256)
  CONTEXT_SIZE  GPUs that share the frames of a clip (default: 1, which is stage one)
  NUM_FRAMES  most frames of a clip; of these 8n+1 are taken (default: 17, in stage two
              17 * CONTEXT_SIZE + 1)
  BATCH_SIZE  clips per batch and GPU (default: 2)
  PYTHON      the Python to run (default: python)

Everything else is an option of the trainer, see `python -m trainer_misc.train_vae --help`:
  GPUS=1 MODEL_PATH=models/vae scripts/train_causal_video_vae.sh --steps 500 --freeze_encoder
TEXT
}

explain_if_asked "$@"
check_number GPUS "$GPUS"
[ -n "$MODEL_PATH" ] || refuse "MODEL_PATH must name the folder of a VAE"

check_number CONTEXT_SIZE "$CONTEXT_SIZE"
if [ "$CONTEXT_SIZE" -gt 1 ]; then
    NUM_FRAMES=${NUM_FRAMES:-$((17 * CONTEXT_SIZE + 1))}
    set -- --use_context_parallel --context_size "$CONTEXT_SIZE" "$@"
else
    set -- --use_image_video_mixed_training --image_mix_ratio 0.1 --image_anno "$IMAGE_ANNO" "$@"
fi
if [ -n "$LPIPS_CKPT" ]; then
    set -- --lpips_ckpt "$LPIPS_CKPT" "$@"
fi
RUN='exec' run_processes "$GPUS" trainer_misc.train_vae --model_path "$MODEL_PATH" \
    --model_dtype bf16 \
    --video_anno "$VIDEO_ANNO" --output_dir "$OUTPUT_DIR" --resolution "$RESOLUTION" \
    --max_frames "${NUM_FRAMES:-17}" --batch_size "$BATCH_SIZE" --add_discriminator \
    --disc_start 250000 --disc_weight 0.5 --kl_weight 1e-12 --pixelloss_weight 10 \
    --perceptual_weight 1 \
    --opt_betas 0.9,0.95 --weight_decay 1e-3 --clip_grad 1.0 --lr 1e-4 --lr_disc 1e-4 \
    --warmup_epochs 1 --epochs 100 --iters_per_epoch 2000 "$@"
