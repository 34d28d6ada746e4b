#!/usr/bin/env bash
# Runs on all workers of a Cloud TPU slice until the run is finished, through preemptions.
#
#   TPU=my-slice ZONE=us-east5-b launch/tpu_vm.sh train --config=quickstart --workdir=runs/first \
#     --config.checkpoint.directory=gs://bucket/runs/first
#
# Each worker has its own run folder; only the checkpoints in the bucket outlive a preemption.
#
# What to edit: nothing. Set these variables:
#   TPU, ZONE         the slice (gcloud compute tpus tpu-vm list); PROJECT if it is not gcloud's default
#   SETUP             a command to run on each worker before the first start (default: pip install -q "mmjax[tpu,gcs]")
#   MMJAX             the command to run on each worker (default: ~/.local/bin/mmjax)
#   ATTEMPTS          maximum number of starts (default: 100)
#   POLL              seconds between checks of the slice's state (default: 15)
#   CREATE            a command that recreates the slice after a preemption, for example
#                     CREATE='gcloud compute tpus tpu-vm create my-slice --zone=… --accelerator-type=v5litepod-16 …'
#
# SIGTERM and Ctrl-C are passed on to all workers, which save at the same step. Run the same command again to resume.
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
  # Not through the run's own ssh session: when that ends, the remote command gets no signal.
  everywhere "test ! -f /tmp/mmjax.pid || kill -TERM \$(cat /tmp/mmjax.pid)" >/dev/null || true
}
trap pass_on TERM INT

# setsid: Ctrl-C reaches this script alone, which then signals the workers.
# When a worker fails, its command ends, and the other workers notice within a minute.
# A stopped run has its own exit status, because a preempted machine sends SIGTERM to its processes too.
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
    [[ -n $interrupted ]] || break # otherwise a signal ended the wait, not the session
  done
  if ((status == 0)) || [[ -n $asked ]]; then
    exit "$status"
  fi
  # The state of a preempted slice changes a little later.
  for ((wait = 0; wait < 8; wait++)); do
    [[ $(state) == READY ]] || break
    sleep "$POLL"
  done
  if [[ $(state) == READY ]]; then
    echo "tpu_vm.sh: a worker failed with status $status and the slice is well: its first message is above" >&2
    exit "$status"
  fi
  echo "tpu_vm.sh: the slice was preempted; attempt $((attempt + 1)) resumes from the last checkpoint" >&2
done
fail "gave up after $ATTEMPTS attempts"
