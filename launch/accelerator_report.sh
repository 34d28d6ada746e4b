#!/usr/bin/env bash
# Measures what training reaches on the GPU of this machine, and writes it as report.json and a table, report.md.
#
#   launch/accelerator_report.sh -o gpu-report
#
# What to edit: nothing. The flags are:
#   -o DIR      where results go (default: accelerator-report); what is there already stays and is replaced part by part
#   -m MINUTES  stop after this time (default: 10); parts without time left are named in the report
#   -p "A B"    the parts to run, in this order (default: all), of:
#               device   matrix products and memory of the card itself
#               step     ViT-B/16, L/14 and B/32 in bfloat16 as they are by default, with a profile of each
#               peer     open_clip with torch.compile, where torch and open_clip are installed
#               loader   images a second from shards on the machine's cores
#               augment  each augmentation's overhead at ViT-B/16
#               choices  the steps with other kernels of attention, and with blocks in a loop or written out
#               flags    XLA's flags at ViT-B/16
#               plan     what `mmjax compile` says of the ViT-B/16 step on such a card
#   -w DIR      a folder of wheels to use before what is installed, for machines that reach nothing
#   -t          tiny models on the CPU: a rehearsal
# Set PYTHON to change the interpreter (default: python3), which needs JAX for this machine's GPU, and PART_SECONDS to
# change how long one part may take (default: 240).
#
# A part that fails is named in the report with its last line, and the others go on; logs and profiles lie in DIR/parts.
# Compiled programs are kept between runs, so that a second run gets further. The exit status is 0 if no part failed.
set -euo pipefail

fail() {
  echo "accelerator_report.sh: $1" >&2
  exit 2
}

all='device step peer loader augment choices flags plan'
out=accelerator-report minutes=10 wheels='' tiny='' chosen=$all
while getopts ':o:m:p:w:th' flag; do
  case $flag in
    o) out=$OPTARG ;;
    m) minutes=$OPTARG ;;
    p) chosen=$OPTARG ;;
    w) wheels=$OPTARG ;;
    t) tiny=yes ;;
    h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0" && exit 0 ;;
    :) fail "-$OPTARG needs a value; -h shows all flags" ;;
    *) fail "-$OPTARG: no such flag; -h shows all" ;;
  esac
done
shift $((OPTIND - 1))
(($# == 0)) || fail "$1: takes no words; -h shows all flags"
[[ $minutes =~ ^[0-9]{1,4}$ ]] || fail "-m $minutes: is no whole number"
[[ -z $wheels || -d $wheels ]] || fail "-w $wheels: no such folder"
for one in $chosen; do
  [[ " $all " == *" $one "* ]] || fail "-p $one: no such part; use some of: $all"
done

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3} limit=${PART_SECONDS:-240}
command -v "$python" >/dev/null || fail "$python: not found; set PYTHON"
mkdir -p "$out/parts"
out=$(cd "$out" && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" XLA_CLIENT_MEM_FRACTION="${XLA_CLIENT_MEM_FRACTION:-0.9}"
deadline=$((SECONDS + 60 * minutes))

# The report: every result so far, as JSON and as a table. It is written after each part, so that it outlives a kill.
summarize() {
  "$python" - "$out" "$1" <<'PYTHON'
import json
import sys
from pathlib import Path

out, last = Path(sys.argv[1]), sys.argv[2]


def load(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


parts = {}
for path in sorted(out.glob("parts/*.status"), key=lambda path: path.stat().st_mtime):
    seconds, _, status = path.read_text().strip().partition(" ")
    result = load(path.with_suffix(".json")) if status == "ok" else None
    parts[path.stem] = {"status": status, "seconds": int(seconds), "result": result}
device = parts.get("device", {}).get("result") or {}
peak = device.get("flops_per_second", {}).get("bfloat16")

HEADER = (
    "part", "ms a step", "examples/s", "MFU", "of measured peak", "peak GiB", "kernels", "modelled ms",
    "modelled / measured", "ratio to plain",
)


def cells(row):
    """One step's figures; torch's have some of them."""
    seconds, modeled, kernels = row["seconds"], row.get("modeled_seconds"), row.get("kernels")
    flops = row.get("flops_per_second_per_device")
    values = (
        (1e3 * seconds, "{:.1f}"),
        (row["examples_per_second"], "{:.0f}"),
        (row.get("mfu"), "{:.1%}"),
        (flops / peak if flops and peak else None, "{:.1%}"),
        (row["peak_bytes"] / 2**30 if row.get("peak_bytes") else None, "{:.1f}"),
        (sum(kind["executions"] for kind in kernels) if kernels else None, "{}"),
        (1e3 * modeled if modeled else None, "{:.1f}"),
        (modeled / seconds if modeled else None, "{:.2f}"),
        (row.get("ratio"), "{:.3f}"),
    )
    return ["-" if value is None else form.format(value) for value, form in values]


table, other = [HEADER, ["---"] * len(HEADER)], []
for name, part in parts.items():
    result, kind = part["result"], name.partition("-")[0]
    if result is None:
        done = part["status"] == "ok"
        line = f"{name}: done" if done else f"{name}: {part['status']}"
        other += [] if done else [line]
    elif kind in ("step", "choice", "flag", "augment", "peer"):
        rows = result if isinstance(result, list) else [result]
        table.append([name, *cells(rows[-1])])  # the first of several is the plain step
        pairs = zip(HEADER, table[-1], strict=True)
        line = ", ".join([name, *(f"{label} {cell}" for label, cell in pairs if cell not in (name, "-"))])
    elif kind == "device":
        rates = ", ".join(f"{dtype} {rate / 1e12:.1f} TFLOP/s" for dtype, rate in result["flops_per_second"].items())
        line = f"{result['devices']} x {result['device']}, {result['cores']} cores, jax {result['jax']}: {rates}, "
        line += f"memory {result['bytes_per_second'] / 1e12:.2f} TB/s"
        other.append(line)
    elif kind == "loader":
        rates = ", ".join(f"{stage} {rate:.0f}/s" for stage, rate in result["examples_per_second"].items())
        line = f"loader on {result['cores']} cores: {rates}"
        other.append(line)
    else:
        seconds = result.get("estimate", {}).get("step_seconds")
        line = f"{name} of {result['topology']}: needs {result['needed_bytes'] / 2**30:.1f} GiB"
        line += f", modelled {1e3 * seconds:.1f} ms a step" if seconds else ""
        other.append(line)
    part["line"] = line
(out / "report.json").write_text(json.dumps({"machine": device, "parts": parts}, indent=2) + "\n")
text = ["# Accelerator report", "", *(f"* {line}" for line in other), "", *(f"| {' | '.join(row)} |" for row in table)]
(out / "report.md").write_text("\n".join(text) + "\n")
print(parts[last]["line"] if last in parts else f"{out}/report.json and {out}/report.md")
PYTHON
}

# finish NAME SECONDS STATUS: one part.
finish() {
  echo "$2 $3" >"$out/parts/$1.status"
  echo "[$((SECONDS / 60)):$(printf %02d $((SECONDS % 60)))] $(summarize "$1")"
}

# part NAME COMMAND…: the command's JSON is the part's result.
failed=0
part() {
  local name=$1 line status=0 started=$SECONDS left=$((deadline - SECONDS)) file="$out/parts/$1"
  shift
  if ((left < 5)); then
    finish "$name" 0 "left out: no time"
    return
  fi
  ((left <= limit)) || left=$limit
  timeout -k 5 "$left" "$@" >"$file.json" 2>"$file.log" || status=$?
  if ((status == 0)); then
    line=ok
  elif ((status == 124 && SECONDS >= deadline)); then
    line="left out: the time was up"
  elif ((status == 124)); then
    failed=1 line="failed: took more than PART_SECONDS=$limit"
  else
    line=$(grep -v '^[[:space:]]*$' "$file.log" | tail -n 1 | cut -c -300)
    failed=1 line="failed: ${line:-status $status}"
  fi
  finish "$name" $((SECONDS - started)) "$line"
}

overrides=(--config.data.train.size=2048) repeats=20 augment_batch=256
models=(ViT-B-16 ViT-L-14 ViT-B-32)
declare -A batches=([ViT-B-16]=512 [ViT-L-14]=256 [ViT-B-32]=1024) # that fit 80 GB with every choice
device=() peer=() pictures=2048 loader_batch=512 loader_seconds=4
if [[ -n $tiny ]]; then
  export JAX_PLATFORMS=cpu
  repeats=2 augment_batch=8 models=(ViT-B-16) batches=([ViT-B-16]=8)
  device=(--size=256 --repeats=2) peer=(--layers=1 --repeats=2 --no-compile)
  pictures=64 loader_batch=16 loader_seconds=1
  for tower in vision text; do
    overrides+=("--config.model.${tower}_cfg.layers=1" "--config.model.${tower}_cfg.width=64")
  done
  overrides+=(--config.model.text_cfg.heads=1 --config.model.embed_dim=64 --config.data.train.size=64)
fi

mmjax() { part "$1" "$python" -m mmjax "${@:2}" --json; }
# step NAME MODEL BATCH ARGUMENTS…
step() {
  mmjax "$1" bench step --repeats="$repeats" --config="$root/configs/clip.py:model=$2,batch=$3,precision=bfloat16" \
    "${overrides[@]}" "${@:4}"
}

run() {
  local model attention scan name chip shards="$out/parts/shards"
  case $1 in
    device) mmjax device bench device "${device[@]}" ;;
    step)
      for model in "${models[@]}"; do
        step "step-$model" "$model" "${batches[$model]}" --profile="$out/parts/profile-$model"
      done
      ;;
    peer)
      if "$python" -c 'import open_clip' 2>/dev/null; then
        part peer-open_clip-ViT-B-16 "$python" "$root/tests/peers/open_clip_step.py" --model=ViT-B-16 --json \
          --batch="${batches[ViT-B-16]}" "${peer[@]}"
      else
        finish peer-open_clip-ViT-B-16 0 "left out: open_clip is not installed"
      fi
      ;;
    loader)
      part shards "$python" -m mmjax data prepare --source=scenes --option size="$pictures" --option image_size=384 \
        --drop=negatives --split=train --output="$shards" --name=scenes --shards=8
      mmjax loader data bench --path="$shards/scenes" --batch-size="$loader_batch" --seconds="$loader_seconds"
      ;;
    augment)
      for name in "$root"/mmjax/augment/*.py; do
        name=$(basename "$name" .py)
        [[ $name != __init__ ]] || continue
        # In a loop, blocks compile faster.
        step "augment-$name" ViT-B-16 "$augment_batch" --augment="none,$name" --config.model.scan=True
      done
      ;;
    choices)
      for model in "${models[@]}"; do
        for attention in xla cudnn; do
          for scan in True False; do
            step "choice-$model-$attention-scan-$scan" "$model" "${batches[$model]}" \
              --config.model.attention="$attention" --config.model.scan="$scan"
          done
        done
      done
      ;;
    flags)
      for name in JAX_OPTIMIZATION_LEVEL=O1 XLA_FLAGS=--xla_gpu_{enable_triton_gemm=false,triton_gemm_any=true} \
        XLA_FLAGS=--xla_gpu_{enable_command_buffer=,enable_latency_hiding_scheduler=true}; do
        export "${name?}"
        step "flag-${name##*xla_gpu_}" ViT-B-16 "${batches[ViT-B-16]}"
        unset "${name%%=*}"
      done
      ;;
    plan)
      chip=$(sed -n 's/^ *"chip": "\(.*\)",$/\1/p' "$out/parts/device.json" || true)
      mmjax plan compile --explain --topology="${chip:-h100}:1" "${overrides[@]}" \
        --config="$root/configs/clip.py:model=ViT-B-16,precision=bfloat16,batch=${batches[ViT-B-16]}"
      ;;
  esac
}

if [[ -n $wheels ]]; then
  part wheels "$python" -m pip install --quiet --no-index --no-deps --upgrade --target="$out/parts/site" \
    "$wheels"/*.whl
  export PYTHONPATH="$out/parts/site:$PYTHONPATH"
fi
for one in $chosen; do run "$one"; done
summarize ''
exit "$failed"
