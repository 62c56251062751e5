#!/usr/bin/env bash
# The truth benchmark from nothing: draw faces with and without a planted shortcut, train a classifier on each, explain
# them on the same faces with the demo's diffusion model, and compare with the truth. Works in truth/; run it again to
# go on where it was stopped. docs/truth.md explains the table.
#
#   bash benchmark-truth.sh                                     dime and the presets, on both classifiers
#   bash benchmark-truth.sh mine="--method dime --inner_steps 3 --l1_loss 0.1"   a setting of your own, beside them
set -euo pipefail
cd "$(dirname "$0")"
source tools/environment.sh
dime_environment
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" # see demo.sh

OUT="${TRUTH_PATH:-truth}"
IMAGES="${TRUTH_IMAGES:-64}" # faces to explain
TRAINING_FACES="${TRUTH_TRAINING_FACES:-3000}"
AGREEMENT="${TRUTH_AGREEMENT:-1}" # P(eyeglasses | smile) = P(none | no smile) in the shortcut's training data
METHODS="${TRUTH_METHODS:-dime fast local inverted turbo}" # keys of METHOD_FLAGS, or presets of main.py
ONCE="${TRUTH_ONCE:-dime}" # of these, those that run with one seed whatever TRUTH_SEEDS says
CLASSIFIERS="${TRUTH_CLASSIFIERS:-honest shortcut}" # and demo: the demo's, which is stronger than either
SEEDS="${TRUTH_SEEDS:-}" # several share a column; none: main.py's own
SAMPLE_FLAGS="${TRUTH_SAMPLE_FLAGS:---precision bf16}" # on top of --preset demo
MEASURE_FLAGS="${TRUTH_MEASURE_FLAGS:-}" # for benchmark-truth.py, such as --robust
declare -A METHOD_FLAGS=(
    [dime]="--preset demo"
    [inverted]="--preset demo,inverted --start_step 40"
    [turbo]="--preset demo,turbo --start_step 40"
    [fastdime]="--method fastdime --warmup_step 15"
    [fastdimenomask]="--method fastdimenomask"
    [direct]="--method direct"
    [naive]="--method naive"
    [gmd]="--method gmd --warmup_step 15"
    [maskdime]="--preset demo,local --method maskdime --inner_steps 0" # with its published flags for CelebA
)
for setting in "$@"; do
    METHOD_FLAGS["${setting%%=*}"]="${setting#*=}"
    METHODS+=" ${setting%%=*}"
done
declare -A CLASSIFIER_PATH=(
    [honest]="$OUT/classifier-honest/classifier.pth"
    [shortcut]="$OUT/classifier-shortcut/classifier.pth"
    [demo]=models/demo/classifier.safetensors
)

draw() { "$PYTHON" make-drawn-faces.py --output_path "$OUT/$1" "${@:2}"; }
TRAINING="--seed 11 --num_train $TRAINING_FACES --num_val 200"
declare -A PLANTED=([honest]="" [shortcut]="--correlate Smiling:Eyeglasses=$AGREEMENT")
for kind in $CLASSIFIERS; do
    : "${CLASSIFIER_PATH[$kind]:?$kind is no classifier; TRUTH_CLASSIFIERS knows honest, shortcut and demo}"
    if [ "$kind" != demo ]; then # the same faces twice: eyeglasses as they come, and eyeglasses that go with smiles
        draw "faces-$kind" $TRAINING ${PLANTED[$kind]}
        "$PYTHON" celeba-train-classifier.py --arch small --attributes Smiling --image_size 64 --batch_size 64 \
            --epochs 6 --lr 1e-3 --seed 0 --num_workers 0 --data_dir "$OUT/faces-$kind" --output_path "$OUT/classifier-$kind"
    fi
done
# what is explained: eyeglasses on every second face, whether it smiles or not
draw faces --seed 13 --num_train 0 --num_val "$IMAGES" --correlate Smiling:Eyeglasses=0.5

experiments=()
explain() { # NAME CLASSIFIER FLAGS…
    local seeds="$SEEDS"
    if [[ " $ONCE unguided " == *" ${1%-*} "* ]]; then seeds=; fi
    for seed in ${seeds:-""}; do
        "$PYTHON" -W ignore main.py --preset demo $SAMPLE_FLAGS --data_dir "$OUT/faces" --gpu 0 \
            --query_label Smiling --batch_size 16 --num_batches "$(((IMAGES + 15) / 16))" --image_format png \
            --classifier_path "${CLASSIFIER_PATH[$2]}" \
            --output_path "$OUT" --exp_name "$1${seed:+-$seed}" ${seed:+--seed "$seed"} "${@:3}"
    done
    experiments+=("$1")
}
for method in $METHODS; do
    for kind in $CLASSIFIERS; do
        explain "$method-$kind" "$kind" ${METHOD_FLAGS[$method]:---preset "demo,$method"}
    done
done
# noised and denoised without any pull: what the diffusion model alone costs
explain unguided "${CLASSIFIERS%% *}" --method naive --classifier_scales 0 --l1_loss 0 --l_perc 0

"$PYTHON" benchmark-truth.py --output-path "$OUT" --exp-name "${experiments[@]}" ${SEEDS:+--seeds $SEEDS} \
    --shortcut Eyeglasses --oracle-path models/demo/oracle.safetensors --json "$OUT/truth.json" $MEASURE_FLAGS
