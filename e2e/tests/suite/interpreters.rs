//! Interpreters that wait in a pool for their script: a script meets what it meets where its interpreter begins with it.

use crate::harness::{Script, Tenant, assert_end, eventually, namespace, status, stderr, stdout, tenant};
use crate::pool::{WARM, filled, make_pool, path, pool_is, reason};
use paddock_crds::{ConditionStatus, Phase, PoolReason, Reason, ScriptRun};
use serde_json::{Value, json};

/// All that can be asked of a Python that has just begun, but identifiers and times.
const PYTHON_LOOKS: &str = r#""""What it is."""
import sys
loaded = sorted(sys.modules)
names = sorted(globals())
import os, resource, signal, threading, time
print(loaded, names)
print(__name__, __file__, __doc__, __spec__, __loader__.name, __loader__.path, __package__, __cached__, __builtins__, __annotations__)
print(sys.argv, sys.orig_argv, sys.flags, sys.path, sys.path_importer_cache.keys(), sys.executable, sys.prefix, sys.warnoptions, sys._xoptions)
print(sys.meta_path, len(sys.path_hooks), sys.excepthook, sys.displayhook, sys.getrecursionlimit(), sys.gettrace(), sys.getprofile())
print({name: value for name, value in os.environ.items() if name != 'PADDOCK_RUN'}, len(os.environ['PADDOCK_RUN']))
print(sorted(os.listdir('/proc/self/fd')), os.listdir('/workspace'), sorted(name for name in os.listdir('/paddock/job') if name[0] != '.'), os.getcwd(), os.umask(0))
print(os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid(), os.getppid(), os.getgroups(), os.isatty(0))
print([signal.getsignal(number) for number in signal.valid_signals() if number < 32], signal.pthread_sigmask(signal.SIG_BLOCK, []))
print([resource.getrlimit(limit) for limit in range(16)])
print(threading.active_count(), threading.current_thread().name, time.tzname, time.timezone)
print(sys.stdin, sys.stdin.seekable(), sys.stdin.tell(), sys.stdin.read(), sys.stdin.buffer.raw, sys.stdout, sys.stdout.line_buffering, sys.stderr)
"#;

const PYTHON: [&str; 12] = [
    PYTHON_LOOKS,
    "import atexit, threading\n\
     raised = 'mine'\n\
     atexit.register(lambda: print(raised, sorted(set(globals()) - {'__file__', '__cached__'})))\n\
     def inner(): 1 / 0\n\
     def outer():\n    try:\n        inner()\n    except ZeroDivisionError as error:\n        raise ValueError('twice') from error\n\
     outer()",
    "import sys; sys.exit(7)",
    "import sys; sys.exit('with words')",
    "x = (",
    "raise KeyboardInterrupt",
    "import os, signal; print('first', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
    "import sys\n\
     def hook(kind, error, trace):\n    print('hook', error, trace.tb_frame.f_code.co_filename, trace.tb_next)\n\
     sys.excepthook = hook\n\
     raise RuntimeError('seen')",
    "from __future__ import annotations\n\
     import pickle, dataclasses\n\
     @dataclasses.dataclass\nclass Kept:\n    one: NoSuchName = 1\n\
     print(pickle.loads(pickle.dumps(Kept(2))), Kept.__module__, __import__('__main__').Kept is Kept, Kept.__annotations__)",
    "import json, os, subprocess, sys\n\
     print(sum(json.load(sys.stdin)['numbers']))\n\
     print(subprocess.run([sys.executable, '-c', 'import os, sys; print(sorted(os.environ), sys.stdin.read())'], capture_output=True))\n\
     json.dump({'of': sys.argv}, open(os.environ['PADDOCK_RESULT'], 'w'))",
    "import signal, sys, time\n\
     def end(number, frame):\n    print('asked by', number, frame.f_code.co_name); sys.exit(9)\n\
     signal.signal(signal.SIGTERM, end)\n\
     print('ready', flush=True)\n\
     time.sleep(60)",
    "import inspect, warnings\n\
     warnings.warn('shown')\n\
     def here(): return inspect.getsource(here)\n\
     print(here())\n\
     exec('raise LookupError(1)')",
];

/// All that can be asked of a Node.js that has just begun, but identifiers and times.
const NODE_LOOKS: &str = r"
import fs from 'node:fs';
import { createRequire } from 'node:module';
const { PADDOCK_RUN, ...env } = process.env;
console.log(process.argv, process.argv0, process.execArgv, process.execPath, process.title, env, PADDOCK_RUN.length);
console.log(import.meta, Object.getOwnPropertyNames(globalThis).sort(), process.cwd(), process.umask(), process.exitCode);
console.log(process.eventNames(), Object.keys(createRequire(import.meta.url).cache), process.features, process._preload_modules);
console.log(fs.readdirSync('/proc/self/fd'), fs.readdirSync('/workspace'), fs.readdirSync('/paddock/job').filter((name) => name[0] !== '.'), fs.fstatSync(0).isFile());
console.log(process.stdin.constructor.name, fs.readFileSync(0, 'utf8'), process.stdin.isTTY, new Date(0).getTimezoneOffset());
";

const NODE: [&str; 9] = [
    NODE_LOOKS,
    "function inner() { throw new Error('seen'); }\nprocess.on('exit', (code) => console.log('exit', code));\ninner();",
    "process.exit(7);",
    "let x = (;",
    "await new Promise(() => {});",
    "Promise.reject(new TypeError('nobody caught it'));",
    "let text = ''; for await (const piece of process.stdin) text += piece;\n\
     const { writeFileSync } = await import('node:fs');\n\
     writeFileSync(process.env.PADDOCK_RESULT, JSON.stringify({ of: process.argv, text }));",
    "import { Worker } from 'node:worker_threads';\n\
     import { execFileSync } from 'node:child_process';\n\
     const look = 'console.log(process.argv, process.execArgv, process.env.NODE_OPTIONS)';\n\
     console.log(execFileSync(process.execPath, ['-e', look], { encoding: 'utf8' }));\n\
     new Worker(look, { eval: true }).on('exit', (code) => console.log('worker', code));",
    "process.on('SIGTERM', (signal) => { console.log('asked by', signal); process.exit(9); });\n\
     console.log('ready'); setTimeout(() => {}, 60000);",
];

/// What a platform sees of a run that is over.
fn told(run: &ScriptRun) -> Value {
    let status = status(run);
    let result = status.result.clone().unwrap();
    json!({
        "phase": status.phase, "exitCode": result.exit_code, "signal": result.signal, "output": result.output,
        "stdout": stdout(run), "stderr": stderr(run),
    })
}

/// Each of these with an interpreter that waited, and with one that did not.
async fn compare(tenant: &Tenant, runtime: &str, texts: &[&str]) {
    make_pool(tenant, runtime, 3, json!({})).await;
    let script = |text: &str| {
        let given = json!({ "input": { "numbers": [1, 2, 3] }, "args": ["one", "zwei drei", "", "ø"], "runtime": runtime });
        let spec = if text.contains("SIGTERM") { json!({ "timeoutSeconds": 3 }) } else { json!({}) };
        Script::python(text).with(json!({ "script": given })).with(spec)
    };
    for texts in texts.chunks(3) {
        filled(tenant, runtime).await;
        let both = texts.iter().map(|text| async move {
            let other = script(text).with(json!({ "resources": { "memory": "130Mi" } }));
            tokio::join!(tenant.run(script(text)), tenant.run(other))
        });
        for (text, (waited, began)) in texts.iter().zip(futures::future::join_all(both).await) {
            assert_eq!((path(&waited), path(&began) == WARM), (WARM, false), "{text}");
            assert_eq!(told(&waited), told(&began), "{text}");
            let is_look = [PYTHON_LOOKS, NODE_LOOKS].contains(text);
            assert!(!is_look || status(&began).phase == Some(Phase::Succeeded), "{}", stderr(&began));
        }
    }
}

/// Without this both would be the same also where no interpreter waits.
async fn asks_how_it_was_started(tenant: &Tenant, runtime: &str, text: &str, expected: [&str; 2]) {
    let pool = filled(tenant, runtime).await;
    assert!(pool.status.unwrap().pre_start.is_some());
    let script = || Script::python(text).with(json!({ "script": { "runtime": runtime } }));
    let (waited, began) = tokio::join!(tenant.run(script()), tenant.run(script().with(json!({ "resources": { "memory": "130Mi" } }))));
    assert_eq!([stdout(&waited).trim_end(), stdout(&began).trim_end()], expected, "{} {}", stderr(&waited), stderr(&began));
}

#[tokio::test]
async fn a_python_that_waited_is_as_one_that_began_with_its_script() {
    tenant("python-waits", |tenant| async move {
        compare(&tenant, "python", &PYTHON).await;
        // Each has seeds of its own.
        filled(&tenant, "python").await;
        let seeds = || Script::python("import random, secrets; print(random.random(), hash('x'), secrets.token_hex(8))");
        let (one, other) = tokio::join!(tenant.run(seeds()), tenant.run(seeds()));
        assert_eq!([path(&one), path(&other)], [WARM, WARM]);
        let words = |run: &ScriptRun| stdout(run).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert!(words(&one).iter().zip(words(&other)).all(|(one, other)| *one != other), "{} {}", stdout(&one), stdout(&other));
        asks_how_it_was_started(&tenant, "python", "print('PADDOCK_WAITS_AT' in open('/proc/self/environ').read())", ["True", "False"])
            .await;
        // The one thing that is left of its waiting is below the script's own frame.
        filled(&tenant, "python").await;
        let stack = "import traceback\nprint([frame.filename for frame in traceback.extract_stack()])";
        assert_eq!(stdout(&tenant.run(Script::python(stack)).await), "['<string>', '/paddock/job/script']\n");
    })
    .await;
}

#[tokio::test]
async fn a_node_that_waited_is_as_one_that_began_with_its_script() {
    tenant("node-waits", |tenant| async move {
        compare(&tenant, "javascript", &NODE).await;
        let looks = "import fs from 'node:fs'; console.log(fs.readFileSync('/proc/self/environ', 'utf8').includes('PADDOCK_WAITS_AT'))";
        asks_how_it_was_started(&tenant, "javascript", looks, ["true", "false"]).await;
        let typed = "const words: string[] = process.argv.slice(2);\nconsole.log(words satisfies string[], import.meta.url);\nthrow new Error('typed');";
        compare(&tenant, "typescript", &[typed]).await;
    })
    .await;
}

#[tokio::test]
async fn an_interpreter_that_does_not_wait_keeps_nobody_waiting_and_is_told() {
    namespace("not-waiting", json!({}), |tenant| async move {
        let runtime = |name: &str, command: Value| {
            json!({ "name": name, "image": "docker.io/paddock/shell:12", "command": command, "preStart": "Python" })
        };
        tenant
            .cluster_policy(json!({ "runtimes": [
                runtime("other", json!(["/bin/sh", "-c", "echo no interpreter >&2; exit 3"])),
                runtime("ends", json!(["/bin/sh", "-c", "printf '\\0'; sleep 3"])),
                runtime("absent", json!(["/no/such/python"])),
            ] }))
            .await;
        let of_policy = json!({ "policyRef": { "kind": "ClusterSandboxPolicy", "name": tenant.name } });
        for (name, expected) in [
            ("other", "does not wait for a script: no interpreter"),
            ("ends", "the interpreter that waited for a script has ended"),
            ("absent", "No such file or directory"),
        ] {
            make_pool(&tenant, name, 1, of_policy.clone()).await;
            let pool = pool_is(&tenant, name, "it fails", |pool| {
                reason(pool) == Some((ConditionStatus::False, PoolReason::SandboxesFail))
            })
            .await;
            let message = &pool.status.unwrap().conditions[0].message;
            assert!(message.contains(expected), "{message}");
        }
        // A run begins as if there were no pool.
        let run = eventually("no sandbox of the pool is free", || async {
            let run = Script::shell("true").with(of_policy.clone()).with(json!({ "script": { "runtime": "other" } }));
            let run = tenant.run(run).await;
            if path(&run) == WARM { Err(run.status) } else { Ok(run) }
        })
        .await;
        assert_end(&run, &Phase::Failed, &Reason::Failed);
        assert_eq!((status(&run).result.unwrap().exit_code, stderr(&run).as_str()), (Some(3), "no interpreter\n"));
    })
    .await;
}
