#!/usr/bin/env bash
# Runs several processes of one run on this machine: on its CPU, or with one GPU each.
#
#   launch/local.sh -n 4 -- train --config=quickstart --workdir=runs/quickstart
#
# What to edit: nothing. The flags are:
#   -n N        number of processes (default: one for each visible GPU, or 2 without GPUs)
#   -d DEVICE   cpu or gpu (default: gpu where nvidia-smi lists one)
#   -p PORT     port of process 0 (default: a free one)
#   -g SECONDS  after one process fails, wait this long before killing the others (default: 10)
# Set MMJAX to change the command (default: mmjax), for example MMJAX="python -m mmjax".
#
# SIGTERM and Ctrl-C are passed on: all processes save a checkpoint and end; a second signal kills them at once. The
# exit status is 0, or that of the process that failed first, whose last lines are then printed last. Run the same
# command again to resume.
set -euo pipefail

fail() {
  echo "local.sh: $1" >&2
  exit 2
}

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 501)); then
  fail "bash $BASH_VERSION is too old; 5.1 or later says which process ended first"
fi
number='' device='' port='' grace=10
while getopts ':n:d:p:g:h' flag; do
  case $flag in
    n) number=$OPTARG ;;
    d) device=$OPTARG ;;
    p) port=$OPTARG ;;
    g) grace=$OPTARG ;;
    h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0" && exit 0 ;;
    :) fail "-$OPTARG needs a value; -h shows all flags" ;;
    *) fail "-$OPTARG: no such flag; -h shows all, and mmjax's own come after --" ;;
  esac
done
shift $((OPTIND - 1))
(($# > 0)) || fail "nothing to run; put mmjax's words after --, as in: local.sh -n 2 -- train --config=… --workdir=…"
for value in "${number:-1}" "${port:-1}" "$grace"; do
  [[ $value =~ ^[0-9]{1,6}$ ]] || fail "'$value' is no whole number"
done
[[ $device =~ ^(cpu|gpu|)$ ]] || fail "-d $device: use cpu or gpu"

gpus=()
if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
  IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
elif [[ $device != cpu ]] && command -v nvidia-smi >/dev/null; then
  mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null || true)
fi
if [[ -z $device ]]; then
  device=cpu
  ((${#gpus[@]} == 0)) || device=gpu
fi
if [[ -z $number ]]; then
  number=2
  [[ $device == cpu ]] || number=${#gpus[@]}
fi
((number > 0)) || fail "-n $number: must be at least 1"
if [[ $device == gpu ]] && ((number > ${#gpus[@]})); then
  fail "-n $number: only ${#gpus[@]} GPUs are here, and each process needs its own; use -n ${#gpus[@]} or -d cpu"
fi
read -ra run <<<"${MMJAX:-mmjax}"
command -v "${run[0]}" >/dev/null || fail "${run[0]}: not found; activate its environment, or set MMJAX"

taken() {
  (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}
if [[ -z $port ]]; then
  # Below the range of ephemeral ports.
  port=$((20000 + RANDOM % 12000))
  while taken "$port"; do port=$((20000 + RANDOM % 12000)); done
elif taken "$port"; then
  fail "-p $port: something listens there; use another port"
fi

logs=$(mktemp -d "${TMPDIR:-/tmp}/mmjax.XXXXXX")
noise='/^\[Gloo\] Rank/d' # logged by the CPU collectives for every group of devices
declare -A running=() # process number by process id
groups=() readers=()

# Each process leads its own process group, which holds its data workers.
end_groups() {
  for id in "${groups[@]}"; do kill -KILL -- "-$id" || true; done
}
# Invoked by the traps below.
# shellcheck disable=SC2329
finish() {
  end_groups
  rm -rf "$logs"
}
# shellcheck disable=SC2329
pass_on() {
  [[ -z $asked ]] || end_groups
  asked=yes
  for id in "${!running[@]}"; do kill -TERM "$id" || true; done
}
asked=''
trap finish EXIT
trap pass_on TERM INT

for ((i = 0; i < number; i++)); do
  environment=("MMJAX_COORDINATOR=127.0.0.1:$port" "MMJAX_PROCESSES=$number" "MMJAX_PROCESS=$i" PYTHONUNBUFFERED=1)
  if [[ $device == gpu ]]; then
    environment+=("CUDA_VISIBLE_DEVICES=${gpus[i]}")
  else
    environment+=(JAX_PLATFORMS=cpu)
  fi
  mkfifo "$logs/$i.pipe"
  (trap '' TERM && exec tee "$logs/$i") <"$logs/$i.pipe" > >(trap '' TERM && exec sed -u "$noise;s/^/[$i] /") &
  readers+=($!)
  if ((i == 0)) && [[ -t 1 ]]; then
    # Its stdout stays on the terminal for the progress line; only stderr is recorded.
    setsid env "${environment[@]}" "${run[@]}" "$@" 2>"$logs/$i.pipe" &
  else
    setsid env "${environment[@]}" "${run[@]}" "$@" >"$logs/$i.pipe" 2>&1 &
  fi
  running[$!]=$i
  groups+=($!)
done

exec 3>&2 2>/dev/null # bash prints a line about every process that is killed

first='' result=0
while ((${#running[@]} > 0)) && [[ -z $first ]]; do
  status=0 ended=''
  wait -n -p ended "${!running[@]}" || status=$?
  [[ -n ${ended:-} ]] || continue # a signal interrupted the wait
  ((status == 0)) || first=${running[$ended]} result=$status
  unset "running[$ended]"
done
# The others usually notice and end by themselves; one that does not would wait forever for the failed process.
deadline=$((SECONDS + grace))
while ((${#running[@]} > 0)); do
  for id in "${!running[@]}"; do
    kill -0 "$id" || unset "running[$id]"
  done
  ((SECONDS < deadline)) || end_groups
  ((${#running[@]} == 0)) || sleep 0.2
done
end_groups
wait "${readers[@]}" || true
if [[ -n $first ]]; then
  how="status $result"
  ((result <= 128)) || how="signal $(kill -l $((result - 128)))"
  {
    echo "local.sh: process $first of $number failed first ($how); its last lines:"
    sed "$noise;s/^/[$first] /" "$logs/$first" | tail -n 20
    echo "local.sh: all have stopped; run the same command again to resume from the last checkpoint"
  } >&3
fi
exit "$result"
