# Controllers on this machine, for demo.sh and cluster.sh: member 1 founds the cluster, the others join it. To be sourced;
# needs $bin, $work, $api_port, $node_port, $cluster_port, $metrics_port, ok, fail, until_true. Member n uses each port
# + 10 (n - 1). $node_listen and $node_host say where machines come in.

declare -A member_pid=()
names=([1]=founder [2]=m2 [3]=m3)
port() { echo $(($1 + 10 * ($2 - 1))); } # base n
ctl() { "$bin/cvlanctl" "$@"; }

member_start() { # n [token]
  local n=$1 base
  for base in "$api_port" "$node_port" "$cluster_port" "$metrics_port"; do
    (exec 3<>"/dev/tcp/127.0.0.1/$(port "$base" "$n")") 2>/dev/null && fail "port $(port "$base" "$n") is taken"
  done
  CVLAN_JOIN_TOKEN=${2:-} "$bin/cvlan-api" --data-dir "$work/data$n" --listen "127.0.0.1:$(port "$api_port" "$n")" \
    --node-listen "${node_listen:-127.0.0.1}:$(port "$node_port" "$n")" \
    --advertise-node "https://${node_host:-127.0.0.1}:$(port "$node_port" "$n")" \
    --cluster-listen "127.0.0.1:$(port "$cluster_port" "$n")" \
    --metrics-listen "127.0.0.1:$(port "$metrics_port" "$n")" >>"$work/api$n.out" 2>>"$work/api$n.log" &
  member_pid[$n]=$!
  until_true 60 "controller ${names[$n]} is ready, or has ended" member_up "$n"
  kill -0 "${member_pid[$n]}" 2>/dev/null || fail "controller ${names[$n]} has ended: $(tail -n 1 "$work/api$n.log")"
}
member_up() { member_ready "$1" || ! kill -0 "${member_pid[$1]}"; } # n
member_ready() { # n
  kill -0 "${member_pid[$1]}" && (exec 3<>"/dev/tcp/127.0.0.1/$(port "$metrics_port" "$1")" &&
    printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && head -n 1 <&3 | grep -q 200)
}
member_kill() { kill -9 "${member_pid[$1]}"; wait "${member_pid[$1]}" 2>/dev/null; unset "member_pid[$1]"; } # n

founder_start() { # the first member, and a login into $CVLAN_CONTEXT_DIR
  member_start 1
  url=https://127.0.0.1:$api_port
  pin=$(grep -o 'sha256:[0-9a-f]*' "$work/api1.out" | head -n 1)
  password=$(awk '$1 == "superadmin" { print $3; exit }' "$work/api1.out")
  [ -n "$pin" ] && [ -n "$password" ] || fail "the controller printed no pin or password: $(cat "$work/api1.out")"
  printf '%s' "$password" | ctl login "$url" --ca-pin "$pin" --name admin --password-stdin >/dev/null || fail "login"
}
others_join() { # two more members, until all three vote and cvlanctl knows them
  local n token
  for n in 2 3; do
    token=$(ctl cluster add ${names[$n]} -o name) || fail "cluster add ${names[$n]}"
    member_start $n "$token"
  done
  until_true 60 "all three vote" voters_are 3
}
roles() { ctl cluster status --no-headers --columns name,role 2>/dev/null; }
voters_are() { [ "$(roles | grep -cE ' (leader|voter)$')" = "$1" ]; } # count
leader() { # its n
  local name; name=$(roles | awk '$2 == "leader" { print $1 }')
  local n; for n in "${!names[@]}"; do [ "${names[$n]}" = "$name" ] && echo "$n"; done
}
members_stop() {
  local n
  for n in "${!member_pid[@]}"; do kill "${member_pid[$n]}" 2>/dev/null; done
}
members_end() { # what did not stop
  local n
  for n in "${!member_pid[@]}"; do kill -9 "${member_pid[$n]}" 2>/dev/null; done
}
