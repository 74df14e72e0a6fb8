#!/usr/bin/env bash
# lstmopt optimize --target nvidia on the reference model, on a machine with an NVIDIA GPU, a CUDA build of torch
# and TensorRT or TensorRT-RTX. At most 8 minutes. PYTHON: the interpreter. Exits with 2 and one line otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python3}"
OUT="${1:-build/gpu-demo}"
"$PYTHON" - <<'END'
import sys

try:
    from lstmopt.runtimes import runtime
except ImportError as error:
    sys.exit(print(f"error: lstmopt: cannot be imported ({error}); pip install .", file=sys.stderr) or 2)
status = runtime("tensorrt").status()
if not status.usable:
    sys.exit(print(f"error: tensorrt: {status.reason}", file=sys.stderr) or 2)
END
exec timeout 470 "$PYTHON" -m models.char_lm.optimize --target nvidia --scales 0.5 0.65 0.82 --seconds 240 -o "$OUT"
