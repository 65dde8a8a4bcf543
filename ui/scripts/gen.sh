#!/bin/sh
# Makes src/gen from proto/. With --check: into a temporary folder, and fails where the committed files differ.
set -eu
cd "$(dirname "$0")/../.."
buf=ui/node_modules/.bin/buf
if [ "${1:-}" != --check ]; then
  exec "$buf" generate
fi
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
"$buf" generate --output "$fresh"
if ! diff -r ui/src/gen "$fresh/ui/src/gen"; then
  echo 'ui/src/gen does not match proto/: run `npm run gen` in ui/' >&2
  exit 1
fi
