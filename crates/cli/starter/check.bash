# Accepts an order, or says what is wrong with it. It exits with 1 if it does not accept.
set -euo pipefail

jq '[.order.lines | to_entries[] | select(.value.count < 1) | "line \(.key + 1): the count of \(.value.article) is not positive"]
    | {accepted: (length == 0), problems: .}' "$PADDOCK_INPUT" > "$PADDOCK_RESULT"
jq -r '.problems[]' "$PADDOCK_RESULT" >&2
jq -e .accepted "$PADDOCK_RESULT" > /dev/null
