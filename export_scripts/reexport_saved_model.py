#!/usr/bin/env python3
"""Write the next version of a served model with some classes forgotten: the Python API in one call.

    python export_scripts/reexport_saved_model.py models/resnet cat
    python export_scripts/reexport_saved_model.py models/resnet 3 "crane, bird"

MODEL is a base path, or one version directory. The classes are indices, or labels if the model has them.
"""

import sys

import mpru_tf
from mpru_tf.console import hush_tensorflow

if len(sys.argv) < 3:
    sys.exit(__doc__)

hush_tensorflow()
model, *classes = sys.argv[1:]
try:
    result = mpru_tf.forget(model, classes=classes)
except mpru_tf.MPRUError as error:
    sys.exit(f"refused: {error}")

print(f"version {result.version} answers classes {list(result.forgotten)} no more: {result.path}")
print(f"method {result.method}, leak gate {result.leak_gate}, {result.seconds:.3f} s")
