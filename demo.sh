#!/usr/bin/env bash
# Counterfactuals from nothing, without a GPU: draw faces, explain a trained classifier's decisions on them, measure the
# result, show it in one page. Works in demo/.
#
#   bash demo.sh                                     what would change the decision "smiling"
#   bash demo.sh --attribute Young                   another attribute that is drawn (docs/drawn-faces.md)
#   bash demo.sh --preset demo,fast --exp_name fast  another method, beside the first; further flags go to main.py
#   bash demo.sh --digits                            handwritten digits: what would make this 4 a 9? MNIST is looked for
#                                                    in DATA_DIR (data/mnist); --target 3 asks for another class than 9
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
source tools/environment.sh
dime_environment
# threads that wait must not spin: where other programs want the same cores, spinning makes this ten times slower
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"

ATTRIBUTE=Smiling IMAGES= NAME= TARGET= METHOD= REST=()
while [ $# -gt 0 ]; do
    case "$1" in
        --attribute) ATTRIBUTE="${2:?--attribute needs a name, such as Young}"; shift 2 ;;
        --exp_name) NAME="${2:?--exp_name needs a name}"; shift 2 ;;
        --digits) TARGET="${TARGET:-9}"; shift ;;
        --target) TARGET="${2:?--target needs a class, such as 9}"; shift 2 ;;
        --images) IMAGES="${2:?--images needs a number}"; shift 2 ;;
        --preset) METHOD="--preset ${2:?--preset needs names, such as demo,fast}"; shift 2 ;;
        *) REST+=("$1"); shift ;;
    esac
done

if [ -n "$TARGET" ]; then
    DATA_DIR="${DATA_DIR:-data/mnist}" NAME="${NAME:-digits}" NETWORK=models/digits/oracle.safetensors
    if ! "$PYTHON" -c 'import sys; from dime.core.digits import list_mnist; list_mnist(sys.argv[1])' "$DATA_DIR" 2>/dev/null
    then
        echo "No MNIST in $DATA_DIR (DATA_DIR): scikit-learn's digits, scaled up from 8x8, stand in for it."
        DATA_DIR=demo/digits
        dime_environment digits
        "$PYTHON" tools/small_digits.py "$DATA_DIR"
    fi
    OUT="demo/results-${DATA_DIR##*/}" # not those of the faces
    RUN=(main.py ${METHOD:---preset digits,fast} --data_dir "$DATA_DIR" --gpu 0 --output_path "$OUT" --image_format png)
    explain() { "$PYTHON" -W ignore "${RUN[@]}" --batch_size "${IMAGES:-32}" --num_batches 1 "$@" "${REST[@]}"; }
    explain --exp_name "$NAME"
    explain --exp_name "$NAME-to-$TARGET" --target "$TARGET"
    "$PYTHON" evaluate.py --output-path "$OUT" --exp-name "$NAME" "$NAME-to-$TARGET" --oracle-path $NETWORK \
        --weights-path $NETWORK --feature-network oracle --robust --second-classifier-path $NETWORK
    "$PYTHON" -W ignore class-matrix.py "${RUN[@]:1}" "${REST[@]}"
    "$PYTHON" make-report.py "$OUT" "$NAME" "$NAME-to-$TARGET"
    exit
fi

IMAGES="${IMAGES:-24}"
NAME="${NAME:-$ATTRIBUTE}"

# faces that no network has seen in its training; the train partition is there for its labels alone, which CD reads
"$PYTHON" make-drawn-faces.py --output_path demo/data --num_train 1000 --num_val 200 --seed 2026
"$PYTHON" -W ignore main.py ${METHOD:---preset demo,inverted --start_step 40} --data_dir demo/data --query_label "$ATTRIBUTE" \
    --batch_size "$IMAGES" --num_batches 1 --gpu 0 --save_x_t True --save_z_t True \
    --output_path demo/results --exp_name "$NAME" "${REST[@]}"
"$PYTHON" evaluate.py --output-path demo/results --exp-name "$NAME" --celeba-path demo/data \
    --classifier-path models/demo/classifier.safetensors --oracle-path models/demo/oracle.safetensors \
    --weights-path models/demo/features.safetensors --feature-network oracle
"$PYTHON" make-report.py demo/results "$NAME" --oracle-path models/demo/oracle.safetensors
