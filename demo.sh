#!/usr/bin/env bash
# The main job from nothing: install what it needs, draw a small data set, explain images of it. Works in demo/.
set -euo pipefail
cd "$(dirname "$0")"
source tools/environment.sh
dime_environment
# threads that wait must not spin: where other programs want the same cores, spinning makes this ten times slower
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"

"$PYTHON" make-drawn-faces.py --output_path demo/data --num_train 0 --num_val 8
PYTHONPATH=. "$PYTHON" tools/untrained_weights.py demo/weights
echo "The diffusion model and the classifier of this demo are UNTRAINED: it shows the commands, the progress and the"
echo "result tree. Its counterfactuals are noise, and its flip rate says nothing."
"$PYTHON" -W ignore main.py \
    --image_size 64 --num_channels 32 --num_res_blocks 1 --channel_mult 1,2,2 --learn_sigma True \
    --diffusion_steps 500 --resblock_updown True --timestep_respacing 50 --start_step 12 \
    --dataset CelebA --data_dir demo/data --query_label Smiling --batch_size 8 --gpu 0 \
    --classifier_scales 100,1000,10000 --use_logits True --l1_loss 0.05 --save_x_t True --save_z_t True \
    --model_path demo/weights/ddpm.pt --classifier_path demo/weights/classifier.pth \
    --output_path demo/results --exp_name smile "$@"
"$PYTHON" make-report.py demo/results smile
echo "Look into demo/results: Original/, Results/smile/*/*/{CF,Noise,SM,Info}/, x_t/ and z_t/."
