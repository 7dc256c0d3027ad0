"""Scores and verdicts of the detector in this folder: python verdict.py PICTURES...

Needs onnxruntime, Pillow and numpy.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder = Path(__file__).parent
facts = json.loads((folder / "detector.json").read_text(encoding="utf-8"))
size, threshold = facts["size"], facts["threshold"]
detector = onnxruntime.InferenceSession(folder / "detector.onnx")
for name in sys.argv[1:]:
    with Image.open(name, formats=("PNG", "JPEG", "BMP")) as picture:
        if picture.mode not in ("L", "RGB"):
            sys.exit(f"{name}: {picture.mode}; save it as 8-bit grey or colour")
        picture = ImageOps.exif_transpose(picture).convert("RGB")
    small = picture.resize((size, size), Image.Resampling.LANCZOS)
    anomaly_map, score = detector.run(None, {"picture": np.asarray(small)[None]})
    verdict = "" if threshold is None else "defective" if score[0] > threshold else "normal"
    print(f"{score[0]:.6f},{verdict},{name}")
