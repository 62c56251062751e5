"""Write scikit-learn's 1,797 handwritten digits of 8x8 as a data set in MNIST's format, 28x28, to stand in for it.

python tools/small_digits.py FOLDER
"""

import struct
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits

BOX, SIZE = 20, 28
"""MNIST's digits fill 20x20 of 28x28 pixels."""


def main() -> None:
    """Enlarge, sharpen the borders that enlarging has blurred, and write both files."""
    folder, (pixels, labels) = Path(sys.argv[1]), load_digits(return_X_y=True)
    zoomed = ndimage.zoom(pixels.reshape(-1, 8, 8) / 16, (1, BOX / 8, BOX / 8), order=3, grid_mode=True, mode="nearest")
    margin = (SIZE - BOX) // 2
    images = np.pad((255 * (2 * zoomed - 0.5).clip(0, 1)).round(), ((0, 0), (margin, margin), (margin, margin)))
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("images-idx3", images), ("labels-idx1", labels)):
        head = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        (folder / f"t10k-{name}-ubyte").write_bytes(head + values.astype(np.uint8).tobytes())


if __name__ == "__main__":
    main()
