//! Scripts that work against their runner and the operator. Each ends with a status that is bounded and true, and none harms another.

use crate::harness::{Script, assert_end, status, stdout, tenant};
use futures::future::join_all;
use paddock_crds::{Phase, Reason, RunResult, ScriptRun};
use serde_json::{Value, json};

const RESULT: &str = "import os, json, sys, time, ctypes, errno\nresult = os.environ['PADDOCK_RESULT']\n";

/// What a script does to its result file, and what becomes of it.
struct ResultAttack {
    name: &'static str,
    text: &'static str,
    output: Result<Value, &'static str>,
}

fn on_the_result() -> Vec<ResultAttack> {
    let attack = |name, text, output| ResultAttack { name, text, output };
    vec![
        attack("fifo", "os.mkfifo(result)", Err("the result is not a regular file")),
        attack("link", "os.symlink('/etc/passwd', result)", Err("the result file cannot be opened")),
        attack("directory", "os.mkdir(result)", Err("the result is not a regular file")),
        attack("device", "os.symlink('/dev/zero', result)", Err("the result file cannot be opened")),
        attack("unreadable", "open(result, 'w').write('1'); os.chmod(result, 0)", Err("the result file cannot be opened")),
        attack(
            "huge",
            "f = open(result, 'wb')\ntry: f.truncate(10 << 30)\nexcept OSError as e: json.dump(errno.errorcode[e.errno], open(result, 'w'))",
            Ok(json!("EFBIG")),
        ),
        attack("sparse", "open(result, 'wb').truncate(15 << 20)", Err("the result has 15728640 bytes; at most 32768 are allowed")),
        attack("infinite", "open(result, 'w').write('1e400')", Err("the result file is not JSON: number out of range")),
        attack("integer", "open(result, 'w').write(str(2**70))", Ok(json!(1.180_591_620_717_411_3e21))),
        attack("deep", "open(result, 'w').write('[' * 10000 + ']' * 10000)", Err("the result file is not JSON: recursion limit exceeded")),
        attack("nested", "open(result, 'w').write('[' * 70 + ']' * 70)", Err("the result is nested deeper than 64 levels")),
        attack("bytes", "open(result, 'wb').write(b'\"\\xff\\xfe\"')", Err("the result file is not JSON: invalid unicode code point")),
        attack("surrogate", "open(result, 'w').write('\"\\\\ud800\"')", Err("the result file is not JSON: unexpected end of hex escape")),
        attack("escapes", "json.dump({'a\\x1b[2J': '\\u202e\\x07'}, open(result, 'w'))", Ok(json!({ "a\\x1b[2J": "\\u{202e}\\x07" }))),
        attack("empty", "open(result, 'w').close()", Err("the result file is not JSON: EOF")),
        attack(
            "rewritten for ever",
            "if os.fork() == 0:\n    os.setsid()\n    while True:\n        try: os.unlink(result)\n        except OSError: pass\n        open(result, 'w').write('[1, 2')\n        open(result, 'w').write('[1, 2, 3]')\ntime.sleep(0.3)",
            Err(""),
        ),
    ]
}

fn result_of(run: &ScriptRun) -> RunResult {
    status(run).result.unwrap_or_default()
}

#[tokio::test]
async fn a_result_file_may_be_anything() {
    tenant("results", |tenant| async move {
        let ends = on_the_result().into_iter().map(|attack| {
            let tenant = tenant.clone();
            async move {
                let run = tenant.run(Script::python(&format!("{RESULT}{}", attack.text))).await;
                (attack, run)
            }
        });
        for (attack, run) in join_all(ends).await {
            assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
            let result = result_of(&run);
            match attack.output {
                Ok(value) => assert_eq!(result.output, Some(value), "{}: {result:?}", attack.name),
                // Whatever was there when everything had been killed: it is whole, or an error.
                Err("") => assert!(result.output.is_none_or(|value| value == json!([1, 2, 3])), "{}", attack.name),
                Err(why) => {
                    let told = result.output_error.unwrap_or_default();
                    assert!(result.output.is_none() && told.starts_with(why), "{}: {told:?}", attack.name);
                }
            }
        }
    })
    .await;
}

/// What a script does, and what it must have printed at last. `None`: the sandbox may end first, by its memory.
fn on_the_runner() -> Vec<(&'static str, &'static str, Option<&'static str>)> {
    vec![
        ("closes everything", "os.closerange(0, 4096)", Some("")),
        ("traces", "print(ctypes.CDLL(None).ptrace(16, 1, 0, 0))", Some("-1\n")),
        ("reads memory", "try: open('/proc/1/mem', 'rb').read(1)\nexcept OSError: print('no')", Some("no\n")),
        (
            "writes to its descriptors",
            "for fd in range(64):\n    try: open(f'/proc/1/fd/{fd}', 'wb').write(b'pdk1 0 AAAA\\n'); print('opened', fd)\n    except OSError: pass\nprint('no')",
            Some("no\n"),
        ),
        (
            "uses up descriptors",
            "held = []\ntry:\n    while True: held.append(open('/dev/null'))\nexcept OSError as e: print(errno.errorcode[e.errno], len(held) > 100)",
            Some("EMFILE True\n"),
        ),
        ("prints 100 MB in one line", "for _ in range(100): sys.stdout.write('x' * 1000000)", Some("")),
        (
            "floods both streams",
            "import threading\ndef flood(f):\n    for _ in range(2000): f.write('y' * 4000); f.flush()\nthreads = [threading.Thread(target=flood, args=(f,)) for f in (sys.stdout, sys.stderr)]\n[t.start() for t in threads]; [t.join() for t in threads]",
            Some(""),
        ),
        (
            "fills the termination log",
            "try:\n    with open('/dev/termination-log', 'wb') as f:\n        while True: f.write(b'pdk1 summary ' * 10000)\nexcept OSError as e: print(errno.errorcode[e.errno])",
            None,
        ),
        (
            "fills shared memory",
            "try:\n    for n in range(1000): open(f'/dev/shm/{n}', 'wb').write(b'z' * (8 << 20))\nexcept OSError as e: print(errno.errorcode[e.errno])",
            None,
        ),
        (
            "forges",
            "print('pdk1 ready 1 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='); print('pdk1 refused {\"reason\":\"notSandboxed\",\"detail\":\"\"}')",
            None,
        ),
        (
            "hostile bytes",
            "sys.stdout.buffer.write(b'\\xff\\x1b]0;title\\x07\\xe2\\x80\\xae\\r\\n')",
            Some("\\xff\\x1b]0;title\\x07\\u{202e}\\x0d\n"),
        ),
    ]
}

#[tokio::test]
async fn a_runner_stands_what_its_script_does() {
    tenant("runner", |tenant| async move {
        let ends = on_the_runner().into_iter().map(|(name, text, expected)| {
            let tenant = tenant.clone();
            async move { (name, expected, tenant.run(Script::python(&format!("{RESULT}{text}\n"))).await) }
        });
        for (name, expected, run) in join_all(ends).await {
            let phase = status(&run).phase.unwrap();
            let result = result_of(&run);
            match expected {
                Some(text) => {
                    assert_eq!((phase, result.exit_code), (Phase::Succeeded, Some(0)), "{name}: {:#?}", run.status);
                    assert!(text.is_empty() || stdout(&run) == text, "{name}: {:?}", stdout(&run));
                }
                None => assert!(matches!(phase, Phase::Succeeded | Phase::Failed | Phase::OutOfMemory), "{name}: {:#?}", run.status),
            }
            let bytes = result.stdout.as_ref().map_or(0, |stream| stream.bytes);
            match name {
                "prints 100 MB in one line" => assert_eq!(bytes, 100_000_000),
                "floods both streams" => assert_eq!((bytes, result.stderr.unwrap().bytes), (8_000_000, 8_000_000)),
                "forges" => assert!(stdout(&run).starts_with("pdk1 ready"), "what a script prints is output and nothing else"),
                _ => {}
            }
        }
        // The operator stands it too.
        let after = tenant.run(Script::shell("echo after")).await;
        assert_end(&after, &Phase::Succeeded, &Reason::Succeeded);
    })
    .await;
}
