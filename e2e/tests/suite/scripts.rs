//! What scripts do, and what becomes of it.

use crate::harness::{Script, assert_end, eventually, status, stderr, stdout, tenant};
use kube::ResourceExt as _;
use kube::api::DeleteParams;
use paddock_crds::{ConditionType, Phase, Reason, RunPath};
use serde_json::{Value, json};

#[tokio::test]
async fn python_runs_in_gvisor_with_input_and_result() {
    tenant("python", |tenant| async move {
        let text = "import json, os, sys\n\
                    print('hello', json.load(open(os.environ['PADDOCK_INPUT']))['name'], sys.argv[1:], json.load(sys.stdin)['name'])\n\
                    json.dump({'answer': 42}, open(os.environ['PADDOCK_RESULT'], 'w'))\n";
        let script = json!({ "script": { "input": { "name": "world" }, "args": ["a b", "$HOME", "'"] } });
        let run = tenant.run(Script::python(text).with(script)).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(stdout(&run), "hello world ['a b', '$HOME', \"'\"] world\n");
        let status = status(&run);
        assert_eq!(status.result.unwrap().output, Some(json!({ "answer": 42 })));
        assert!(status.usage.unwrap().peak_memory_bytes > 1 << 20);
        assert_eq!(status.requester.unwrap().username, "kubernetes-admin");
        assert_eq!(status.policies[0].name, "baseline");
    })
    .await;
}

/// A body that the operator does not keep in memory, and nearly the largest that it takes.
#[tokio::test]
async fn a_large_script_and_input_arrive_whole() {
    tenant("large", |tenant| async move {
        let padding = format!("# {}\n", "x".repeat(64_000));
        let text = format!("{padding}import json, sys\nprint(len(open(sys.argv[0]).read()), len(json.load(sys.stdin)))\n");
        let input = "y".repeat(500_000);
        let run = tenant.run(Script::python(&text).with(json!({ "script": { "input": input } }))).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(stdout(&run), format!("{} 500000\n", text.len()));
        // The operator's writes leave the spec as it was.
        assert_eq!(run.spec.script.source.inline.as_deref(), Some(text.as_str()));
        assert_eq!(run.spec.script.input, Some(json!(input)));
    })
    .await;
}

#[tokio::test]
async fn shell_runs() {
    tenant("shell", |tenant| async move {
        let run = tenant.run(Script::shell("echo \"hello $1\"; uname -r").with(json!({ "script": { "args": ["shell"] } }))).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(stdout(&run), "hello shell\n4.19.0-gvisor\n");
    })
    .await;
}

#[tokio::test]
async fn exit_codes_signals_and_errors_are_told() {
    tenant("exit", |tenant| async move {
        let run = tenant.run(Script::shell("echo out; echo err >&2; exit 7")).await;
        assert_end(&run, &Phase::Failed, &Reason::Failed);
        assert_eq!(status(&run).result.unwrap().exit_code, Some(7));
        assert_eq!((stdout(&run).as_str(), stderr(&run).as_str()), ("out\n", "err\n"));

        let run = tenant.run(Script::shell("kill -SEGV $$")).await;
        assert_end(&run, &Phase::Failed, &Reason::Failed);
        assert_eq!(status(&run).result.unwrap().signal, Some(11));

        let run = tenant.run(Script::python("print('unclosed'")).await;
        assert_end(&run, &Phase::Failed, &Reason::Failed);
        assert!(stderr(&run).contains("SyntaxError"), "{}", stderr(&run));
    })
    .await;
}

#[tokio::test]
async fn output_is_bounded_and_made_visible() {
    tenant("output", |tenant| async move {
        let text = "import sys\n\
                    sys.stdout.buffer.write(b'begin\\x1b[31m\\xff\\x00' + b'x' * 5_000_000 + b'end')\n\
                    open('/workspace/.paddock-result.json', 'w').write('[' * 10000)\n";
        let run = tenant.run(Script::python(text)).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        let result = status(&run).result.unwrap();
        assert!(result.output.is_none() && result.output_error.is_some());
        let stream = result.stdout.unwrap();
        assert!(stream.text.starts_with("begin\\x1b[31m\\xff\\x00xxx"), "{}", &stream.text[..40]);
        assert!(stream.tail.unwrap().ends_with("xend"));
        assert_eq!(stream.bytes, 5_000_015);
        assert!(stream.truncated_bytes.unwrap() > 4_900_000);
    })
    .await;
}

#[tokio::test]
async fn a_script_that_takes_too_long_gets_term_and_then_kill() {
    tenant("timeout", |tenant| async move {
        let polite = "trap 'echo bye; exit 3' TERM; echo begin; while :; do sleep 0.1; done";
        let stubborn = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('begin')\nwhile True: time.sleep(1)\n";
        let limits = json!({ "timeoutSeconds": 2, "gracePeriodSeconds": 2 });
        let polite = tenant.create(Script::shell(polite).with(limits.clone())).await;
        let stubborn = tenant.create(Script::python(stubborn).with(limits)).await;

        let polite = tenant.finished(&polite).await;
        assert_end(&polite, &Phase::TimedOut, &Reason::TimedOut);
        assert_eq!(stdout(&polite), "begin\nbye\n");

        let stubborn = tenant.finished(&stubborn).await;
        assert_end(&stubborn, &Phase::TimedOut, &Reason::TimedOut);
        let result = status(&stubborn).result.unwrap();
        assert_eq!((stdout(&stubborn).as_str(), result.signal), ("begin\n", Some(9)));
    })
    .await;
}

/// TERM does what it does outside of a sandbox: it runs a handler, and without one it ends the script.
#[tokio::test]
async fn term_reaches_a_script_as_anywhere() {
    tenant("term", |tenant| async move {
        let limits = || json!({ "timeoutSeconds": 2, "gracePeriodSeconds": 20 });
        let plain = "import signal, time\nprint(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))\ntime.sleep(60)\n";
        let handled = "import signal, sys, time\ndef bye(*_):\n    print('bye')\n    sys.exit(3)\nsignal.signal(signal.SIGTERM, bye)\ntime.sleep(60)\n";
        let (plain, handled, shell) = tokio::join!(
            tenant.run(Script::python(plain).with(limits())),
            tenant.run(Script::python(handled).with(limits())),
            tenant.run(Script::shell("sleep 60 & wait; echo never").with(limits())),
        );
        for run in [&plain, &handled, &shell] {
            assert_end(run, &Phase::TimedOut, &Reason::TimedOut);
            let wall = status(run).usage.unwrap().wall_milliseconds;
            assert!((2000..10_000).contains(&wall), "ended after {wall} ms: not when TERM came");
        }
        let result = |run| status(run).result.unwrap();
        assert_eq!((stdout(&plain).as_str(), result(&plain).signal), ("[]\n", Some(15)));
        assert_eq!((stdout(&handled).as_str(), result(&handled).exit_code), ("bye\n", Some(3)));
        assert_eq!((stdout(&shell).as_str(), result(&shell).signal), ("", Some(15)));
    })
    .await;
}

#[tokio::test]
async fn too_much_memory_ends_as_out_of_memory() {
    tenant("memory", |tenant| async move {
        let run = tenant.run(Script::python("print('begin')\nx = []\nwhile True: x.append('x' * 1_000_000 + str(len(x)))\n")).await;
        assert_end(&run, &Phase::OutOfMemory, &Reason::OutOfMemory);
    })
    .await;
}

#[tokio::test]
async fn a_fork_bomb_ends_with_its_sandbox() {
    tenant("fork", |tenant| async move {
        let text = "import os, time\n\
                    while True:\n    \
                        try: os.fork()\n    \
                        except OSError: time.sleep(0.1)\n";
        let run = tenant.run(Script::python(text).with(json!({ "timeoutSeconds": 5, "gracePeriodSeconds": 1 }))).await;
        let phase = status(&run).phase.unwrap();
        assert!(matches!(phase, Phase::TimedOut | Phase::OutOfMemory | Phase::RunnerKilled), "{:#?}", run.status);
    })
    .await;
}

#[tokio::test]
async fn a_full_scratch_directory_is_enospc_at_once() {
    tenant("scratch", |tenant| async move {
        let text = "import errno\n\
                    try:\n    \
                        with open('/workspace/big', 'wb') as file:\n        \
                            while True: file.write(b'x' * 65536)\n\
                    except OSError as error:\n    \
                        print(errno.errorcode[error.errno])\n";
        let run = tenant.run(Script::python(text).with(json!({ "resources": { "scratch": "4Mi" } }))).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert!(["ENOSPC\n", "EFBIG\n"].contains(&stdout(&run).as_str()), "{}", stdout(&run));
        // Several files together: no limit on one file can be the cause.
        let text = "import errno\n\
                    try:\n    \
                        for number in range(100):\n        \
                            open(f'/workspace/{number}', 'wb').write(b'x' * 1_000_000)\n\
                    except OSError as error:\n    \
                        print(errno.errorcode[error.errno], number)\n";
        let run = tenant.run(Script::python(text).with(json!({ "resources": { "scratch": "4Mi" } }))).await;
        assert_eq!(stdout(&run), "ENOSPC 4\n");
    })
    .await;
}

#[tokio::test]
async fn nothing_but_the_scratch_directory_can_be_written() {
    tenant("readonly", |tenant| async move {
        let text = "import os\n\
                    for path in ['/x', '/etc/x', '/usr/bin/python3', '/paddock/job/script', '/paddock/job/job.json', '/paddock/job/x',\n            \
                                 '/paddock/runner/paddock-runner', '/paddock/runner/x', '/tmp/x', '/proc/sys/kernel/hostname']:\n    \
                        try: open(path, 'w').close(); print('wrote', path)\n    \
                        except OSError: pass\n\
                    open('/workspace/x', 'w').close()\n\
                    print('done', os.getuid(), os.getgid(), os.getgroups())\n";
        let run = tenant.run(Script::python(text)).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        // The files of a job that came to a sandbox which waited are its script's own.
        let own = if status(&run).path == Some(RunPath::Warm) { "wrote /paddock/job/x\n" } else { "" };
        assert_eq!(stdout(&run), format!("{own}done 65532 65532 [65532]\n"));
    })
    .await;
}

#[tokio::test]
async fn the_sandbox_has_only_loopback_no_token_and_no_environment() {
    tenant("inside", |tenant| async move {
        let text = "import os, socket\n\
                    print(sorted(name for _, name in socket.if_nameindex()) in (['lo'], []))\n\
                    print(os.path.exists('/var/run/secrets/kubernetes.io'))\n\
                    print(sorted(os.environ))\n\
                    try: socket.create_connection(('10.214.0.1', 443), 2); print('reached the API server')\n\
                    except OSError as error: print('no network')\n";
        let run = tenant.run(Script::python(text)).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        let expected = "True\nFalse\n['HOME', 'LANG', 'PADDOCK_RESULT', 'PADDOCK_RUN', 'PATH', 'TMPDIR']\nno network\n";
        assert_eq!(stdout(&run), expected);
    })
    .await;
}

#[tokio::test]
async fn a_script_cannot_become_its_runner() {
    tenant("pid1", |tenant| async move {
        let text = "for path in ['/proc/1/fd/0', '/proc/1/fd/1', '/proc/1/mem', '/proc/1/environ']:\n    \
                        try: open(path, 'r+b', buffering=0); print('opened', path)\n    \
                        except OSError: pass\n\
                    print('alive')\n";
        let run = tenant.run(Script::python(text)).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert_eq!(stdout(&run), "alive\n");
    })
    .await;
}

#[tokio::test]
async fn a_script_that_signals_its_runner_harms_its_own_run_alone() {
    tenant("signals", |tenant| async move {
        // gVisor lets a process of the same user kill PID 1: the sandbox ends with it.
        let killed = tenant.create(Script::shell("echo begin; sleep 1; kill -KILL 1; sleep 20")).await;
        // TERM is how anybody asks the runner to end. Nobody in the cluster did, and nobody is said to have.
        let asked = tenant.create(Script::shell("echo begin; sleep 1; kill -TERM 1; sleep 20")).await;
        // A stopped runner tells nothing any more; the operator's clock and the pod's deadline end the run.
        let limits = json!({ "timeoutSeconds": 2, "gracePeriodSeconds": 1 });
        let stopped = tenant.create(Script::shell("echo begin; kill -STOP 1; sleep 60").with(limits)).await;

        let killed = tenant.finished(&killed).await;
        assert_end(&killed, &Phase::RunnerKilled, &Reason::RunnerKilled);
        assert_eq!(stdout(&killed), "begin\n");
        let asked = tenant.finished(&asked).await;
        assert_end(&asked, &Phase::RunnerKilled, &Reason::RunnerKilled);
        assert_eq!((stdout(&asked).as_str(), status(&asked).result.unwrap().signal), ("begin\n", Some(15)));
        let stopped = tenant.finished(&stopped).await;
        assert_end(&stopped, &Phase::TimedOut, &Reason::TimedOut);
    })
    .await;
}

/// Namespaces of its own would make it root in them: it could mount over what it was given, and reach parts of gVisor that nobody needs.
#[tokio::test]
async fn a_script_cannot_make_itself_root_in_namespaces_of_its_own() {
    tenant("namespaces", |tenant| async move {
        let text = "import ctypes, subprocess, sys, threading\n\
                    libc = ctypes.CDLL(None, use_errno=True)\n\
                    def refused(number, *arguments):\n    \
                        ctypes.set_errno(0)\n    \
                        return libc.syscall(number, *arguments) == -1 and ctypes.get_errno()\n\
                    for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000):\n    \
                        print('unshare', refused(272, flag), 'clone', refused(56, flag | 17, 0, 0, 0, 0))\n\
                    print('clone3', refused(435, 0, 0), 'setns', refused(308, 0, 0), 'mount', refused(165, 0, 0, 0, 0, 0))\n\
                    print(open('/proc/self/status').read().split('CapEff:')[1].split()[0])\n\
                    threads = [threading.Thread(target=lambda: None) for _ in range(4)]\n\
                    [thread.start() for thread in threads]\n\
                    [thread.join() for thread in threads]\n\
                    print(subprocess.run([sys.executable, '-c', 'raise SystemExit(7)']).returncode)\n";
        let run = tenant.run(Script::python(text)).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        let refused = "unshare 1 clone 1\n".repeat(7);
        assert_eq!(stdout(&run), format!("{refused}clone3 38 setns 1 mount 1\n0000000000000000\n7\n"));
    })
    .await;
}

#[tokio::test]
async fn forged_frames_do_not_reach_the_status() {
    tenant("forge", |tenant| async move {
        let forged = "pdk1 0 00000000 {\\\"finished\\\":{}}";
        let text = format!("for number in range(20): print(\"{forged}\")\nraise SystemExit(4)\n");
        let run = tenant.run(Script::python(&text)).await;
        assert_end(&run, &Phase::Failed, &Reason::Failed);
        assert_eq!(status(&run).result.unwrap().exit_code, Some(4));
    })
    .await;
}

#[tokio::test]
async fn a_child_that_holds_the_output_open_does_not_hold_up_the_end() {
    tenant("orphan", |tenant| async move {
        let run =
            tenant.run(Script::shell("echo begin; (trap '' TERM HUP; sleep 60) & exit 0").with(json!({ "timeoutSeconds": 20 }))).await;
        assert_end(&run, &Phase::Succeeded, &Reason::Succeeded);
        assert!(status(&run).usage.unwrap().wall_milliseconds < 10_000);
    })
    .await;
}

#[tokio::test]
async fn cancel_ends_a_run_at_any_time() {
    tenant("cancel", |tenant| async move {
        let run = tenant.create(Script::shell("echo begin; sleep 60")).await;
        tenant.until(&run, "Started", |status| status.is_true(&ConditionType::Started)).await;
        tenant.patch(&run, json!({ "spec": { "cancel": true } })).await;
        let run = tenant.finished(&run).await;
        assert_end(&run, &Phase::Cancelled, &Reason::Cancelled);
        assert_eq!(status(&run).result.unwrap().signal, Some(15));

        let run = tenant.run(Script::shell("echo never").with(json!({ "cancel": true }))).await;
        assert_end(&run, &Phase::Cancelled, &Reason::Cancelled);
        assert!(status(&run).pod.is_none());
    })
    .await;
}

#[tokio::test]
async fn deleting_a_run_takes_its_pod_along() {
    tenant("delete", |tenant| async move {
        let run = tenant.create(Script::shell("sleep 60").with(json!({ "gracePeriodSeconds": 1 }))).await;
        tenant.until(&run, "Started", |status| status.is_true(&ConditionType::Started)).await;
        let pod = tenant.pod_of(&run).await;
        tenant.runs().delete(&run.name_any(), &DeleteParams::default()).await.unwrap();
        eventually("the run is gone", || async {
            if tenant.runs().get_opt(&run.name_any()).await.unwrap().is_none() { Ok(()) } else { Err("there") }
        })
        .await;
        assert!(tenant.pods().get_opt(&pod.name_any()).await.unwrap().is_none(), "the run was released before its pod was gone");
    })
    .await;
}

#[tokio::test]
async fn a_finished_run_goes_when_its_time_is_over_and_leaves_nothing() {
    tenant("ttl", |tenant| async move {
        let run = tenant.run(Script::shell("true").with(json!({ "ttlSecondsAfterFinished": 2 }))).await;
        eventually("the run is gone", || async {
            if tenant.runs().get_opt(&run.name_any()).await.unwrap().is_none() { Ok(()) } else { Err("there") }
        })
        .await;
        eventually("nothing is left", || async {
            let pods = tenant.pods().list(&kube::api::ListParams::default().labels("!paddock.dev/pool-uid")).await.unwrap().items;
            let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> = kube::Api::namespaced(tenant.client.clone(), &tenant.sandbox());
            let jobs = maps.list(&kube::api::ListParams::default().labels("paddock.dev/run-uid")).await.unwrap().items;
            if pods.is_empty() && jobs.is_empty() { Ok(()) } else { Err((pods.len(), jobs.len())) }
        })
        .await;
    })
    .await;
}

/// Starts the runner again and again beside itself, once only to be told how it is used, and once up to the line that says it is ready.
/// The difference is its own: both are loaded alike.
const MEASURE: &str = "
import json, os, subprocess, time
runner = '/paddock/runner/paddock-runner'
def first_line(command):
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    line = process.stdout.readline().decode()
    took = (time.perf_counter() - begin) * 1000
    process.kill()
    process.wait()
    return took, line
pairs = [(first_line([runner]), first_line([runner, 'run', '/paddock/job'])) for _ in range(30)]
status = dict(line.split(':', 1) for line in open('/proc/1/status'))
json.dump({
    'ready': all(ready[1].startswith('pdk1 ready ') for _, ready in pairs),
    'start_ms': min(ready[0] for _, ready in pairs) - min(usage[0] for usage, _ in pairs),
    'memory_kib': int(status['VmRSS'].split()[0]), 'bytes': os.stat(runner).st_size,
}, open(os.environ['PADDOCK_RESULT'], 'w'))
";

#[tokio::test]
async fn the_runner_is_small_and_ready_at_once() {
    tenant("small", |tenant| async move {
        // gVisor maps more of a file around what is needed, sometimes all of it: what the runner itself needs is the least of several runs.
        let runs = futures::future::join_all((0..4).map(|_| tenant.run(Script::python(MEASURE)))).await;
        let measured: Vec<Value> = runs
            .iter()
            .map(|run| {
                assert_end(run, &Phase::Succeeded, &Reason::Succeeded);
                status(run).result.unwrap().output.unwrap()
            })
            .collect();
        println!("{measured:?}");
        let least = |field: &str| measured.iter().map(|one| one[field].as_f64().unwrap()).fold(f64::INFINITY, f64::min);
        assert!(measured.iter().all(|one| one["ready"] == true), "{measured:?}");
        assert!(least("start_ms") <= 5.0, "{measured:?}");
        assert!(least("memory_kib") <= 4096.0, "{measured:?}");
        assert!(least("bytes") <= 3.0 * 1024.0 * 1024.0, "{measured:?}");
    })
    .await;
}
