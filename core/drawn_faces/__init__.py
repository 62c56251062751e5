"""Drawn faces: a CelebA-like data set whose truth is known.

face = sample_face(seed=0, index=7)
draw(face).save("face.png")
draw(counterfactual(face, "Smiling")).save("the-same-face-with-the-other-mouth.png")
"""

from dime.core.drawn_faces.drawing import draw, region
from dime.core.drawn_faces.face import DRAWN, Correlation, Face, counterfactual, labels_of, sample_face

__all__ = ["DRAWN", "Correlation", "Face", "counterfactual", "draw", "labels_of", "region", "sample_face"]
