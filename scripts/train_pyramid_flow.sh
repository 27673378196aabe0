#!/bin/sh
# The transformer, autoregressive with the temporal pyramid, on latents.
set -eu
# shellcheck disable=SC1091  # it is read only by `shellcheck -x`
. "$(dirname "$0")/lib/launch.sh"

# Settings, each of which an environment variable of that name replaces.
GPUS=${GPUS:-8}
MODEL_NAME=${MODEL_NAME:-pyramid_flux}             # or pyramid_mmdit
MODEL_PATH=${MODEL_PATH:-}                         # folder of the checkpoint
VARIANT=${VARIANT:-diffusion_transformer_384p}
ANNO_FILE=${ANNO_FILE:-annotation/video_text.jsonl}
OUTPUT_DIR=${OUTPUT_DIR:-output/pyramid_flow_ar}
SHARD_STRATEGY=${SHARD_STRATEGY:-zero2}            # or zero3
BATCH_SIZE=${BATCH_SIZE:-4}
GRAD_ACCU_STEPS=${GRAD_ACCU_STEPS:-2}
NUM_FRAMES=${NUM_FRAMES:-16}                       # latent frames: 16 are 121 frames
VIDEO_SYNC_GROUP=${VIDEO_SYNC_GROUP:-8}            # GPUs that see the same clip at every length
PYTHON=${PYTHON:-python}

usage() {
    cat <<'TEXT'
Usage: scripts/train_pyramid_flow.sh [OPTION...]

Trains the transformer of a checkpoint, autoregressive with the temporal pyramid, with the recipe of
the reference. It reads latents that were encoded before, and encodes prompts during training. AdamW
with a learning rate of 5e-5 after 1,000 steps of warm-up; weights in float32, sharded across the
GPUs, computation in bf16. If you start it again with the same OUTPUT_DIR, it continues where it
stopped. The result is OUTPUT_DIR/model, a checkpoint.

Settings, as environment variables:
  GPUS              processes, one per GPU (default: 8)
  MODEL_NAME        pyramid_flux or pyramid_mmdit (default: pyramid_flux)
  MODEL_PATH        folder of the checkpoint to train on
  VARIANT           folder of the transformer in it (default: diffusion_transformer_384p)
  ANNO_FILE         JSON lines of video, text, latent (default: annotation/video_text.jsonl)
  OUTPUT_DIR        folder of the run (default: output/pyramid_flow_ar)
  SHARD_STRATEGY    zero2 or zero3 (default: zero2)
  BATCH_SIZE        samples per batch and GPU, a multiple of 4 (default: 4)
  GRAD_ACCU_STEPS   batches per step (default: 2)
  NUM_FRAMES        latent frames of the longest clip (default: 16)
  VIDEO_SYNC_GROUP  GPUs that see the same clips, each at another length (default: 8)
  PYTHON            the Python to run (default: python)

Everything else is an option of the trainer, see `python -m trainer_misc.train_dit --help`:
  GPUS=1 MODEL_PATH=models/flux scripts/train_pyramid_flow.sh --steps 500 --ema_update
TEXT
}

explain_if_asked "$@"
check_number GPUS "$GPUS"
[ -n "$MODEL_PATH" ] || refuse "MODEL_PATH must name the folder of a checkpoint"

RUN='exec' run_processes "$GPUS" trainer_misc.train_dit --task t2v --use_fsdp \
    --fsdp_shard_strategy "$SHARD_STRATEGY" \
    --use_temporal_causal --use_temporal_pyramid --interp_condition_pos --sync_video_input \
    --video_sync_group "$VIDEO_SYNC_GROUP" --load_text_encoder --model_name "$MODEL_NAME" \
    --model_path "$MODEL_PATH" --model_variant "$VARIANT" --model_dtype bf16 \
    --anno_file "$ANNO_FILE" --output_dir "$OUTPUT_DIR" --max_frames "$NUM_FRAMES" \
    --batch_size "$BATCH_SIZE" --gradient_accumulation_steps "$GRAD_ACCU_STEPS" \
    --gradient_checkpointing --lr 5e-5 --opt_beta2 0.95 --clip_grad 1.0 --warmup_steps 1000 \
    --lr_scheduler constant_with_warmup --epochs 20 --iters_per_epoch 2000 "$@"
