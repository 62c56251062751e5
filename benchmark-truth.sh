#!/usr/bin/env bash
# The truth benchmark from nothing: draw faces with and without a planted shortcut, train a classifier on each, explain
# both on the same faces with the demo's diffusion model, and compare with the truth. Works in truth/; run it again to
# go on where it was stopped. docs/truth.md explains the table.
set -euo pipefail
cd "$(dirname "$0")"
source tools/environment.sh
dime_environment
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" # see demo.sh

OUT="${TRUTH_PATH:-truth}"
IMAGES="${TRUTH_IMAGES:-64}" # faces to explain
TRAINING_FACES="${TRUTH_TRAINING_FACES:-3000}"
AGREEMENT="${TRUTH_AGREEMENT:-1}" # P(eyeglasses | smile) = P(none | no smile) in the shortcut's training data
METHODS="${TRUTH_METHODS:-dime fast local}"
SAMPLE_FLAGS="${TRUTH_SAMPLE_FLAGS:---precision bf16}" # on top of --preset demo
declare -A METHOD_FLAGS=(
    [dime]="--preset demo"
    [fast]="--preset demo,fast"
    [fastdime]="--method fastdime --warmup_step 15"
    [fastdimenomask]="--method fastdimenomask"
    [direct]="--method direct"
    [naive]="--method naive"
    [gmd]="--method gmd --warmup_step 15"
    [maskdime]="--preset demo,local --method maskdime --inner_steps 0" # with its published flags for CelebA
    [local]="--preset demo,local"
)

# the same faces twice: eyeglasses as they come, and eyeglasses that go with smiles
TRAINING="--seed 11 --num_train $TRAINING_FACES --num_val 200"
"$PYTHON" make-drawn-faces.py --output_path "$OUT/faces-honest" $TRAINING
"$PYTHON" make-drawn-faces.py --output_path "$OUT/faces-shortcut" $TRAINING --correlate "Smiling:Eyeglasses=$AGREEMENT"
# what is explained: eyeglasses on every second face, whether it smiles or not
"$PYTHON" make-drawn-faces.py --output_path "$OUT/faces" --seed 12 --num_train 0 --num_val "$IMAGES" \
    --correlate Smiling:Eyeglasses=0.5

for kind in honest shortcut; do
    "$PYTHON" celeba-train-classifier.py --arch small --attributes Smiling --image_size 64 --batch_size 64 --epochs 6 \
        --lr 1e-3 --seed 0 --num_workers 0 --data_dir "$OUT/faces-$kind" --output_path "$OUT/classifier-$kind"
done

explain() { # NAME KIND FLAGS…
    "$PYTHON" -W ignore main.py --preset demo $SAMPLE_FLAGS --data_dir "$OUT/faces" --gpu 0 \
        --query_label Smiling --batch_size 16 --num_batches "$(((IMAGES + 15) / 16))" --image_format png \
        --classifier_path "$OUT/classifier-$2/classifier.pth" \
        --output_path "$OUT" --exp_name "$1" "${@:3}"
}
experiments=()
for method in $METHODS; do
    for kind in honest shortcut; do
        explain "$method-$kind" $kind ${METHOD_FLAGS[$method]}
        experiments+=("$method-$kind")
    done
done
# noised and denoised without any pull: what the diffusion model alone costs
explain unguided honest --method naive --classifier_scales 0 --l1_loss 0 --l_perc 0

"$PYTHON" benchmark-truth.py --output-path "$OUT" --exp-name "${experiments[@]}" unguided --shortcut Eyeglasses \
    --oracle-path models/demo/oracle.safetensors --json "$OUT/truth.json"
