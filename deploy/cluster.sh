#!/usr/bin/env bash
# Three controllers on this machine to play with. `make cluster` builds first; ONCE=1 exits at the end. Cleans up
# whatever happens.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
bin=${CARGO_TARGET_DIR:-$root/target}/debug
api_port=${CLUSTER_API_PORT:-8443} node_port=${CLUSTER_NODE_PORT:-8444}
cluster_port=${CLUSTER_PORT:-8445} metrics_port=${CLUSTER_METRICS_PORT:-9443}
work=$(mktemp -d "${TMPDIR:-/tmp}/cvlan-cluster.XXXXXX")
export CVLAN_CONTEXT_DIR=$work/context

bold=$(tput bold 2>/dev/null || true) plain=$(tput sgr0 2>/dev/null || true)
now_ms() { date +%s%3N; }
ok() { printf '  ✓ %s\n' "$1"; }
fail() {
  printf '\n  ✗ %s\n' "$1" >&2
  for log in "$work"/*.log; do [ -s "$log" ] && { printf '\n--- %s\n' "$(basename "$log")"; tail -n 25 "$log"; } >&2; done
  exit 1
}
until_true() { # seconds, what, command…
  local end=$(($(now_ms) + $1 * 1000)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ "$(now_ms)" -lt $end ] || fail "not within time: $what"; sleep 0.05; done
}
# shellcheck source=deploy/members.sh
. "$root/deploy/members.sh"

cleanup() {
  local code=$?
  trap - EXIT INT TERM
  members_stop
  sleep 1
  members_end
  wait 2>/dev/null
  rm -rf "$work"
  exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

printf '%s▸ Three controllers, each with a data folder of its own%s\n' "$bold" "$plain"
founder_start
ok "founder is ready on $url"
others_join
ok "m2 and m3 have joined, caught up, and vote"
echo
ctl cluster status | sed 's/^/  /'
cat <<TXT

  ${bold}Web UI${plain}     $url   https://127.0.0.1:$(port "$api_port" 2)   https://127.0.0.1:$(port "$api_port" 3)
             user admin, password $password
  Processes  founder ${member_pid[1]}   m2 ${member_pid[2]}   m3 ${member_pid[3]}
  Logs       $work/api1.log   $work/api2.log   $work/api3.log

  Try, in another terminal:
    export CVLAN_CONTEXT_DIR=$CVLAN_CONTEXT_DIR PATH=$bin:\$PATH
    cvlanctl cluster status
    cvlanctl tenant create acme
    kill -9 ${member_pid[1]} && cvlanctl tenant create other     # another one leads, cvlanctl asks it
    cvlanctl cluster transfer m3
TXT
[ -n "${ONCE:-}" ] && exit 0
printf '\n  Everything stays up until Ctrl-C.\n'
while :; do sleep 1; done
