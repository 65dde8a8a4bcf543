#!/usr/bin/env bash
# The main job on real input: a controller, three machines in network namespaces of their own, tunnels between them.
# Then the controller is killed, a machine restarts without it, everything goes on from its checkpoint, the log is
# verified, a machine is deleted. `make demo` builds first; ONCE=1 exits at the end. Cleans up whatever happens.
# CLUSTER=1: three controllers, and the one that leads is killed: writes and deltas go on without it.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
bin=${CARGO_TARGET_DIR:-$root/target}/debug
api_port=${DEMO_API_PORT:-8443} node_port=${DEMO_NODE_PORT:-8444}
cluster_port=${DEMO_CLUSTER_PORT:-8445} metrics_port=${DEMO_METRICS_PORT:-9443}
node_listen=0.0.0.0 node_host=198.18.1.1
cluster=${CLUSTER:-}

# ---- the right to make namespaces -------------------------------------------------------------------------------
sudo=()
if [ "$(id -u)" != 0 ]; then
  if sudo -n true 2>/dev/null; then sudo=(sudo -n); else
    echo "The demo makes network namespaces, which takes root. Allow sudo for a while and start it again:" >&2
    echo "    sudo -v && make demo" >&2
    exit 77
  fi
fi
"$root/deploy/tools.sh" ip ping || exit 77
id=cv$$
if ! "${sudo[@]}" ip netns add "$id-probe" 2>/dev/null; then
  echo "The demo makes network namespaces, which is not allowed here; run it where it is: sudo make demo" >&2
  exit 77
fi
"${sudo[@]}" ip netns delete "$id-probe"
# Asked before the build, so that nobody waits for what cannot be.
[ "${1:-}" = ready ] && exit 0

work=$(mktemp -d "${TMPDIR:-/tmp}/cvlan-demo.XXXXXX")
export CVLAN_CONTEXT_DIR=$work/context

# ---- talk -------------------------------------------------------------------------------------------------------
bold=$(tput bold 2>/dev/null || true) dim=$(tput dim 2>/dev/null || true) plain=$(tput sgr0 2>/dev/null || true)
now_ms() { date +%s%3N; }
begin_ms=$(now_ms)
step() { printf '%s▸ %s%s\n' "$bold" "$1" "$plain"; }
ok() { printf '  ✓ %s %s(%s s)%s\n' "$1" "$dim" "$(awk -v d=$(($(now_ms) - begin_ms)) 'BEGIN{printf "%.1f", d/1000}')" "$plain"; }
fail() {
  printf '\n  ✗ %s\n' "$1" >&2
  for log in "$work"/*.log; do [ -s "$log" ] && { printf '\n--- %s\n' "$(basename "$log")"; tail -n 25 "$log"; } >&2; done
  exit 1
}
until_true() { # seconds, what, command…
  local end=$(($(now_ms) + $1 * 1000)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ "$(now_ms)" -lt $end ] || fail "not within time: $what"; sleep 0.05; done
}
in_ns() { local ns=$1; shift; "${sudo[@]}" ip netns exec "$id-$ns" "$@"; }
daemon() { # ns name log command…: in the background; its own pid goes into a file
  local ns=$1 name=$2 log=$3; shift 3
  in_ns "$ns" sh -c 'echo $$ >"$0"; exec "$@"' "$work/$ns/$name.pid" "$@" >>"$work/$log" 2>&1 &
}
signal() { "${sudo[@]}" kill "-$3" "$(cat "$work/$1/$2.pid")"; } # ns name signal
gone() { ! "${sudo[@]}" kill -0 "$(cat "$work/$1/$2.pid")" 2>/dev/null; }
# shellcheck source=deploy/members.sh
. "$root/deploy/members.sh"
field() { # JSON on stdin → the value of a top-level field
  sed -n 's/.*"'"$1"'": *"\{0,1\}\([^",}]*\)"\{0,1\}.*/\1/p' | head -n 1
}

cleanup() {
  local code=$?
  trap - EXIT INT TERM
  for file in "$work"/*/*.pid; do [ -s "$file" ] && "${sudo[@]}" kill "$(cat "$file")" 2>/dev/null; done
  members_stop
  sleep 0.5
  for file in "$work"/*/*.pid; do [ -s "$file" ] && "${sudo[@]}" kill -9 "$(cat "$file")" 2>/dev/null; done
  members_end
  wait 2>/dev/null
  for ns in a b c; do "${sudo[@]}" ip netns delete "$id-$ns" 2>/dev/null; "${sudo[@]}" ip link delete "$id-h$ns" 2>/dev/null; done
  "${sudo[@]}" rm -rf "$work"
  exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# ---- a network of our own: 198.18.0.0/15 is set aside for such tests (RFC 2544) -----------------------------------
wire() { # ns addr peer-ns addr: a direct cable
  "${sudo[@]}" ip link add "$id-$1$3" netns "$id-$1" type veth peer name "$id-$3$1" netns "$id-$3"
  in_ns "$1" ip address add "$2/24" dev "$id-$1$3" && in_ns "$1" ip link set "$id-$1$3" up
  in_ns "$3" ip address add "$4/24" dev "$id-$3$1" && in_ns "$3" ip link set "$id-$3$1" up
}
step "Network: a namespace for each of three machines, cables between them and to this host"
n=0
for ns in a b c; do
  n=$((n + 1))
  "${sudo[@]}" ip netns add "$id-$ns" || fail "no namespace $id-$ns"
  "${sudo[@]}" ip link add "$id-h$ns" type veth peer name "$id-up" netns "$id-$ns" || fail "no cable to $ns"
  "${sudo[@]}" ip address add "198.18.$n.1/24" dev "$id-h$ns" && "${sudo[@]}" ip link set "$id-h$ns" up
  in_ns $ns ip link set lo up
  in_ns $ns ip address add "198.18.$n.2/24" dev "$id-up"
  in_ns $ns ip link set "$id-up" up
  in_ns $ns ip route add default via "198.18.$n.1"
done
wire a 198.18.12.1 b 198.18.12.2
wire a 198.18.13.1 c 198.18.13.2
wire b 198.18.23.1 c 198.18.23.2
ok "a, b and c are wired"

# ---- controller ---------------------------------------------------------------------------------------------------
step "Controller: one process, one data folder, nothing else"
founder_start
ok "ready on $url, logged in as admin with the pinned CA"
if [ -n "$cluster" ]; then
  others_join
  ok "two more have joined with a token each, caught up, and vote: any one may be lost"
fi
ctl tenant create acme >/dev/null && ctl context tenant acme >/dev/null 2>&1
ctl -t acme cvlan create office --ipv4 10.20.0.0/24 --ipv6 auto >/dev/null || fail "cvlan create"
token=$(ctl -t acme token create --cvlan office --expires 24h --max-uses 10 -o name) || fail "token create"
ok "tenant acme, CVLAN office (10.20.0.0/24 and an IPv6 /64), a token for ten machines"

# ---- machines -----------------------------------------------------------------------------------------------------
start_cvland() {
  rm -f "$work/$1/cvland.sock"
  daemon "$1" cvland "$1-cvland.log" "$bin/cvland" --socket "$work/$1/cvland.sock" --state-dir "$work/$1/cvland"
  until_true 5 "cvland of $1 listens" test -S "$work/$1/cvland.sock"
}
start_ctrl() {
  daemon "$1" ctrl "$1-ctrl.log" "$bin/cvlan-ctrl" --token "$token" --hostname "$1" --state-dir "$work/$1/ctrl" \
    --cvland-socket "$work/$1/cvland.sock" --ctrl-socket "$work/$1/ctrl.sock"
}
agent() { in_ns "$1" "$bin/cvlan-ctrl" status --state-dir "$work/$1/ctrl" --ctrl-socket "$work/$1/ctrl.sock" -o json; }
node_json() { ctl -t acme node get "$1" -o json; }
one_ping() { in_ns "$1" ping -n -c 1 -W 1 "$2"; }

step "Machines: each makes its own keys, joins with the token, learns of the others by delta"
for ns in a b c; do
  mkdir -p "$work/$ns"
  start_cvland $ns
done
slowest=0
for ns in a b c; do
  at=$(now_ms)
  start_ctrl $ns
  until_true 10 "$ns has an address" node_json $ns
  declare "v4_$ns=$(node_json $ns | field ipv4)" "v6_$ns=$(node_json $ns | field ipv6)"
  if [ $ns != a ]; then until_true 10 "$ns pings a" one_ping $ns "$v4_a"; fi
  took=$(($(now_ms) - at)); [ $took -gt $slowest ] && slowest=$took
done
[ $slowest -le 3000 ] || fail "the slowest machine took $slowest ms from its start to its first ping; 3000 are allowed"
ok "joined; the slowest took $slowest ms from the start of its cvlan-ctrl to its first ping"
for from in a b c; do for to in a b c; do
  [ $from = $to ] && continue
  v4=v4_$to v6=v6_$to
  until_true 5 "$from → $to over IPv4" one_ping $from "${!v4}"
  until_true 5 "$from → $to over IPv6" one_ping $from "${!v6}"
done; done
ok "all ping each other over IPv4 and IPv6 through WireGuard"

daemon a ping ab.ping ping -n -i 0.1 -W 1 "$v4_b"

# ---- the controller dies ------------------------------------------------------------------------------------------
victim=1
[ -n "$cluster" ] && victim=$(leader)
[ -n "$victim" ] || fail "nobody leads: $(roles)"
step "The controller${cluster:+ that leads, ${names[$victim]},} is killed, and nothing stops"
before=$(ctl log checkpoint -o json) || fail "log checkpoint"
seq_before=$(field seq <<<"$before") digest_before=$(field digest <<<"$before")
ok "checkpoint at event $seq_before, state digest ${digest_before:0:16}…"
maps_before=$(for ns in a b; do agent $ns | field full_maps; done | tr '\n' ' ')
member_kill "$victim"
at=$(now_ms)
ok "kill -9 of the controller"
create() {
  ctl -t acme node create --cvlan office "$1" --wg-public-key "$(head -c 32 /dev/urandom | base64)" >/dev/null 2>>"$work/ctl.log"
}
if [ -n "$cluster" ]; then
  until_true 20 "a write without the killed leader" create scanner
  ok "the next write was acknowledged $(($(now_ms) - at)) ms later, by $(leader | xargs -I{} echo member {}), through a controller that cvlanctl found itself"
fi
for name in ctrl cvland; do signal c $name KILL; until_true 5 "$name of c is gone" gone c $name; done
start_cvland c
start_ctrl c
until_true 10 "a → c answers again" one_ping a "$v4_c"
ok "both daemons of c were killed and started again: a → c answers from c's own state"

[ -n "$cluster" ] || member_start "$victim"
create printer || fail "node create"
target=$(ctl status -o json | field checkpoint)
knows_printer() { agent "$1" | grep -q '"printer"'; }
for ns in a b c; do until_true 20 "$ns has the change" knows_printer $ns; done
maps_after=$(for ns in a b; do agent $ns | field full_maps; done | tr '\n' ' ')
[ "$maps_before" = "$maps_after" ] || fail "a or b took a full map after the restart: $maps_before → $maps_after"
[ "$(agent c | field full_maps)" = 0 ] || fail "c took a full map after the restart"
ok "the log is at $target; a, b and c went on from their checkpoints by delta, no full map"
if [ -n "$cluster" ]; then
  member_start "$victim"
  until_true 20 "all three vote" voters_are 3
  ok "${names[$victim]} is back, without a flag, and follows"
fi

verify=$(ctl log verify -o json) || fail "log verify: $verify"
grep -q "$digest_before" <<<"$verify" || fail "log verify does not have the digest of before: $verify"
ok "cvlanctl log verify: every event replayed from the first, digest ${digest_before:0:16}… again"

# ---- a machine is deleted -----------------------------------------------------------------------------------------
step "Machine c is deleted"
forgot_c() { ! agent "$1" | grep -q "$v4_c"; }
at=$(now_ms)
ctl -t acme node delete c --yes >/dev/null || fail "node delete"
for ns in a b; do until_true 5 "$ns forgets c" forgot_c $ns; done
took=$(($(now_ms) - at))
[ $took -le 1000 ] || fail "the deletion took $took ms to reach the others; 1000 are allowed"
one_ping a "$v4_c" >/dev/null 2>&1 && fail "c still answers"
ok "a and b forgot it $took ms after the command; its traffic stopped"

signal a ping INT
until_true 5 "the ping from a to b ends" gone a ping
line=$(grep -o '[0-9]* packets transmitted, [0-9]* received' "$work/ab.ping") || fail "no summary of a ↔ b: $(tail -n 3 "$work/ab.ping")"
read -r sent _ _ received _ <<<"$line"
[ "$sent" = "$received" ] || fail "a ↔ b lost pings: $line"
ok "a ↔ b: $sent pings from beginning to end, 0 lost"

# ---- what remains -------------------------------------------------------------------------------------------------
step "What happened, read from the log"
ctl events --columns seq,time,actor,what 2>/dev/null | sed 's/^/  /'
cat <<TXT

  ${bold}Web UI${plain}     $url   (user admin, password $password)
  Nodes      https://198.18.1.1:$node_port    Metrics  http://127.0.0.1:$metrics_port/metrics
  Machines   a $v4_a  $v6_a    b $v4_b  $v6_b

  Try, in another terminal:
    export CVLAN_CONTEXT_DIR=$CVLAN_CONTEXT_DIR PATH=$bin:\$PATH
    cvlanctl status
    cvlanctl -t acme node list -o wide
    cvlanctl -t acme history node c
TXT
if [ -n "${ONCE:-}" ]; then printf '\n  Done in %s s.\n' "$((($(now_ms) - begin_ms) / 1000))"; exit 0; fi
printf '\n  Everything stays up until Ctrl-C.\n'
while kill -0 "${member_pid[1]}" 2>/dev/null; do sleep 1; done
fail "the controller ended"
