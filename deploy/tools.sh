#!/usr/bin/env bash
# Installs the programs that are missing by their Debian package names: deploy/tools.sh ip ping chromium cc
# Elsewhere than on Debian, or without root, it says what is missing and exits with 77.
set -euo pipefail

packages=()
for tool in "$@"; do
  command -v "$tool" >/dev/null && continue
  case $tool in
    ip) packages+=(iproute2) ;;
    ping) packages+=(iputils-ping) ;;
    cc) packages+=(build-essential) ;;
    nft) packages+=(nftables) ;;
    go) packages+=(golang-go) ;;
    mkfs.ext4) packages+=(e2fsprogs) ;;
    *) packages+=("$tool") ;;
  esac
done
[ ${#packages[@]} = 0 ] && exit 0

sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo -n)
if ! command -v apt-get >/dev/null || ! "${sudo[@]}" true 2>/dev/null; then
  echo "Missing here: ${packages[*]} (Debian's names). Install them and start again:" >&2
  echo "    sudo apt-get install ${packages[*]}" >&2
  exit 77
fi
echo "Installing what is missing: ${packages[*]}" >&2
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
