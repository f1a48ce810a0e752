// Waits until there is a script, and then leaves nothing of itself. Workers of the script load it too.
import fs from "node:fs";
import { isMainThread } from "node:worker_threads";
if (isMainThread) {
  const descriptor = Number(process.env.PADDOCK_WAITS_AT);
  delete process.env.PADDOCK_WAITS_AT;
  delete process.env.NODE_OPTIONS;
  fs.writeSync(1, "\0");
  const told = fs.readFileSync(descriptor, "utf8");
  fs.closeSync(descriptor);
  if (told === "") process.reallyExit(1);
  const [, run, given, ...args] = told.split("\0");
  process.env.PADDOCK_RUN = run;
  process.env.PADDOCK_INPUT = given;
  if (given === "") {
    delete process.env.PADDOCK_INPUT;
  } else {
    fs.closeSync(0);
    if (fs.openSync(given, "r") !== 0) process.reallyExit(1);
  }
  process.argv.push(...args);
}
