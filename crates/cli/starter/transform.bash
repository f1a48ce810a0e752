# Keeps the rows whose amount is large enough. jq is in the image.
set -euo pipefail

jq '(.rows | map(select(.amount >= $asked.least))) as $kept | {rows: $kept, left_out: ((.rows | length) - ($kept | length))}' \
  --argjson asked "$(cat "$PADDOCK_INPUT")" "$PADDOCK_INPUT" > "$PADDOCK_RESULT"
jq -r '"\(.rows | length) rows are kept"' "$PADDOCK_RESULT"
