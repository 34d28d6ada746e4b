#!/usr/bin/env bash
# A run on all workers of a Cloud TPU slice, until it is finished, through preemptions.
#
#   TPU=my-slice ZONE=us-east5-b launch/tpu_vm.sh train --config=quickstart --workdir=runs/first \
#     --config.checkpoint.directory=gs://bucket/runs/first
#
# Each worker has a run folder of its own; what outlives a preemption is the checkpoints in the bucket.
#
# What to edit: nothing; these variables say what is yours.
#   TPU, ZONE         the slice (gcloud compute tpus tpu-vm list); PROJECT where it is not gcloud's default
#   SETUP             a command for each worker before the first start (default: pip install -q "mmjax[tpu,gcs]")
#   MMJAX             the command that is run there (default: ~/.local/bin/mmjax)
#   ATTEMPTS          how often to start at most (default: 100)
#   POLL              seconds between looks at the slice's state (default: 15)
#   CREATE            a command that makes the slice again once it was preempted, for example
#                     CREATE='gcloud compute tpus tpu-vm create my-slice --zone=… --accelerator-type=v5litepod-16 …'
#
# SIGTERM and Ctrl-C are passed on to every worker, which save at the same step. The same command again goes on.
set -euo pipefail

fail() {
  echo "tpu_vm.sh: $1" >&2
  exit 2
}

: "${SETUP=pip install -q \"mmjax[tpu,gcs]\"}" "${MMJAX:=~/.local/bin/mmjax}"
: "${ATTEMPTS:=100}" "${CREATE:=}" "${POLL:=15}"
[[ -n ${TPU:-} ]] || fail "TPU is not set: the name of the slice"
[[ -n ${ZONE:-} ]] || fail "ZONE is not set: where the slice is, such as us-east5-b"
(($# > 0)) || fail "nothing to run; add mmjax's subcommand, as in: tpu_vm.sh train --config=… --workdir=…"
[[ $ATTEMPTS =~ ^[1-9][0-9]{0,5}$ ]] || fail "ATTEMPTS=$ATTEMPTS: must be a whole number, at least 1"
command -v gcloud >/dev/null || fail "gcloud: not found; install the Google Cloud CLI"

where=("$TPU" "--zone=$ZONE")
[[ -z ${PROJECT:-} ]] || where+=("--project=$PROJECT")
printf -v words '%q ' "$@"

everywhere() {
  gcloud compute tpus tpu-vm ssh "${where[@]}" --worker=all --command="$1"
}
state() {
  gcloud compute tpus tpu-vm describe "${where[@]}" --format='value(state)' 2>/dev/null || echo GONE
}

asked='' interrupted=''
# Invoked by the trap below.
# shellcheck disable=SC2329
pass_on() {
  asked=yes interrupted=yes
  echo "tpu_vm.sh: asks all workers to save and end" >&2
  # Not through the ssh session of the run: that one ends without telling the command at its other end.
  everywhere "test ! -f /tmp/mmjax.pid || kill -TERM \$(cat /tmp/mmjax.pid)" >/dev/null || true
}
trap pass_on TERM INT

# setsid: a Ctrl-C here is for this script alone, which then asks the workers in order.
# A worker's first failure ends its command; the others notice within a minute by themselves.
# A stopped run's status tells it from a finished one, because a preempted machine asks its processes to stop too.
remote="echo \$\$ > /tmp/mmjax.pid; export MMJAX_STOPPED_STATUS=75 PYTHONUNBUFFERED=1; exec $MMJAX $words"
ready=''
for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
  if [[ $(state) != READY ]]; then
    [[ -n $CREATE ]] || fail "$TPU in $ZONE is $(state); make it again and repeat the command, or set CREATE"
    gcloud compute tpus tpu-vm delete "${where[@]}" --quiet 2>/dev/null || true
    bash -c "$CREATE" || { sleep "$POLL" && continue; }
    ready=''
  fi
  if [[ -z $ready && -n $SETUP ]]; then
    everywhere "$SETUP" || fail "SETUP failed on a worker; its message is above"
  fi
  ready=yes
  setsid gcloud compute tpus tpu-vm ssh "${where[@]}" --worker=all --command="$remote" &
  session=$!
  while :; do
    interrupted='' status=0
    wait "$session" || status=$?
    [[ -n $interrupted ]] || break # else a signal had ended the wait, not the session
  done
  if ((status == 0)) || [[ -n $asked ]]; then
    exit "$status"
  fi
  # What becomes of a preempted slice is known a little later.
  for ((wait = 0; wait < 8; wait++)); do
    [[ $(state) == READY ]] || break
    sleep "$POLL"
  done
  if [[ $(state) == READY ]]; then
    echo "tpu_vm.sh: a worker failed with status $status and the slice is well: its first message is above" >&2
    exit "$status"
  fi
  echo "tpu_vm.sh: the slice was preempted; attempt $((attempt + 1)) goes on from the last checkpoint" >&2
done
fail "gave up after $ATTEMPTS attempts"
