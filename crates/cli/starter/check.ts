// Accepts an order, or says what is wrong with it. It exits with 1 if it does not accept.
import { readFileSync, writeFileSync } from "node:fs";

interface Line { article: string; count: number }

function problems(lines: Line[]): string[] {
  return lines.flatMap((line, index) =>
    line.count < 1 ? [`line ${index + 1}: the count of ${line.article} is not positive`] : [],
  );
}

const asked: { order: { lines: Line[] } } = JSON.parse(readFileSync(process.env.PADDOCK_INPUT!, "utf8"));
const found = problems(asked.order.lines);
for (const problem of found) console.error(problem);
writeFileSync(process.env.PADDOCK_RESULT!, JSON.stringify({ accepted: found.length === 0, problems: found }));
process.exitCode = found.length === 0 ? 0 : 1;
