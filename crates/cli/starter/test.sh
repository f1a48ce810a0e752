#!/bin/sh
# Runs the script on the cluster and compares its result with the expected one. Give options for kubectl paddock, such as -n NAMESPACE.
set -eu
cd "$(dirname "$0")"
kubectl paddock run {{script}} --policy {{name}} --input @input.json --name "{{name}}-test-$$" --ttl 600 "$@" > /dev/null
kubectl paddock result "{{name}}-test-$$" "$@" > result.json
canonical() { python3 -c 'import json, sys; print(json.dumps(json.load(open(sys.argv[1])), sort_keys=True))' "$1"; }
if [ "$(canonical result.json)" = "$(canonical expected.json)" ]; then echo "as expected"; else echo "result.json is not expected.json" >&2; exit 1; fi
