#!/usr/bin/env bash
# lstmopt optimize --target nvidia on the reference model, on a machine with an NVIDIA GPU and a CUDA build of
# torch; TensorRT or TensorRT-RTX take part where they are installed. At most 8 minutes. PYTHON: the interpreter;
# TRAINING: its seconds. Exits with 2 and one line where nothing can run.
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
statuses = [runtime(name).status() for name in ("tensorrt", "cudnn")]
if not any(status.usable for status in statuses):
    told = "; ".join(f"{status.name}: {status.reason}" for status in statuses)
    sys.exit(print(f"error: {told}", file=sys.stderr) or 2)
END
exec timeout 470 "$PYTHON" -m models.char_lm.optimize --target nvidia --scales 0.653 0.98 \
  --seconds "${TRAINING:-180}" -o "$OUT"
