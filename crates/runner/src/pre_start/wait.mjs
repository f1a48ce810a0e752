// Waits until there is a script, and then leaves nothing of itself. Workers of the script load it too.
import fs from "node:fs";
import { isMainThread } from "node:worker_threads";
if (isMainThread) {
  const descriptor = Number(process.env.PADDOCK_WAITS_AT);
  delete process.env.PADDOCK_WAITS_AT;
  delete process.env.NODE_OPTIONS;
  fs.writeSync(1, "\0");
  const told = fs.readFileSync(descriptor);
  fs.closeSync(descriptor);
  // Whoever was to tell it may have ended in the middle.
  const head = told.indexOf(0);
  if (head < 0 || told.toString("utf8", 0, head) !== String(told.length - head - 1)) process.reallyExit(1);
  const [, run, given, ...args] = told.toString("utf8", head + 1).split("\0");
  process.env.PADDOCK_RUN = run;
  process.env.PADDOCK_INPUT = given;
  if (given === "") {
    delete process.env.PADDOCK_INPUT;
  } else {
    fs.closeSync(0);
    if (fs.openSync(given, "r") !== 0) {
      fs.writeSync(2, "the input cannot be put on standard input\n");
      process.reallyExit(1);
    }
  }
  process.argv.push(...args);
}
