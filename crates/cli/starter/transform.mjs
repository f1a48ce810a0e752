// Keeps the rows whose amount is large enough.
import { readFileSync, writeFileSync } from "node:fs";

function transform(rows, least) {
  const kept = rows.filter((row) => row.amount >= least);
  return { rows: kept, left_out: rows.length - kept.length };
}

const asked = JSON.parse(readFileSync(process.env.PADDOCK_INPUT, "utf8"));
const result = transform(asked.rows, asked.least);
console.log(`${result.rows.length} of ${asked.rows.length} rows are kept`);
writeFileSync(process.env.PADDOCK_RESULT, JSON.stringify(result));
