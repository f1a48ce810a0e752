// Keeps the rows whose amount is large enough. Types are stripped, not checked: check them before you submit.
import { readFileSync, writeFileSync } from "node:fs";

interface Row { name: string; amount: number }

function transform(rows: Row[], least: number): { rows: Row[]; left_out: number } {
  const kept = rows.filter((row) => row.amount >= least);
  return { rows: kept, left_out: rows.length - kept.length };
}

const asked: { rows: Row[]; least: number } = JSON.parse(readFileSync(process.env.PADDOCK_INPUT!, "utf8"));
const result = transform(asked.rows, asked.least);
console.log(`${result.rows.length} of ${asked.rows.length} rows are kept`);
writeFileSync(process.env.PADDOCK_RESULT!, JSON.stringify(result));
