//! `kubectl paddock` as a user types it: through kubectl, in a shell, and on a terminal.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::harness::{Script, Tenant, eventually, kubectl, layout, status, tenant};
use futures::TryStreamExt as _;
use kube::ResourceExt as _;
use kube::api::ListParams;
use kube::runtime::watcher;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use paddock_crds::{ConditionType, Phase};
use paddock_e2e::cluster::component;
use serde_json::Value;

/// A folder of one test, with a shell in it that knows kubectl and its plugin.
struct Desk {
    folder: PathBuf,
    namespace: String,
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Desk {
    fn of(tenant: &Tenant) -> Self {
        let folder = std::env::temp_dir().join(format!("paddock-{}", tenant.name));
        std::fs::create_dir_all(&folder).unwrap();
        Self { folder, namespace: tenant.name.clone() }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.join(name), text).unwrap();
    }

    /// A command line in `sh`. `$N` is the namespace.
    fn command(&self, line: &str) -> Command {
        let plugin = layout().clone.join("target/debug");
        let kubectl = component::built(&layout()).unwrap().folder_of("kubectl").unwrap();
        let path = format!("{}:{}:{}", plugin.display(), kubectl.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(&self.folder).env("PATH", path).env("KUBECONFIG", layout().kubeconfig());
        command.env("N", &self.namespace).env_remove("NO_COLOR").stdin(Stdio::null());
        command
    }

    fn type_(&self, line: &str) -> Typed {
        Typed::of(line, &self.command(line).output().unwrap())
    }
}

/// What came of a command line.
#[derive(Debug)]
struct Typed {
    #[expect(dead_code, reason = "shown where a test fails")]
    line: String,
    code: Option<i32>,
    out: String,
    err: String,
}

impl Typed {
    fn of(line: &str, output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { line: line.to_owned(), code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }

    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    fn tells(&self, text: &str) {
        assert!(self.err.contains(text), "{text} is not in {self:#?}");
    }

    fn shows(&self, text: &str) {
        assert!(self.out.contains(text), "{text} is not in {self:#?}");
    }
}

const GREET: &str = "import json, os, sys\nname = json.load(open(os.environ['PADDOCK_INPUT']))['name']\nprint('hello', name, *sys.argv[1:])\n\
                     print('oh', file=sys.stderr)\njson.dump({'greeted': name}, open(os.environ['PADDOCK_RESULT'], 'w'))\nsys.exit(3)\n";

#[tokio::test]
async fn a_script_is_run_and_looked_at() {
    tenant("cli", |tenant| async move {
        let desk = Desk::of(&tenant);
        desk.write("greet.py", GREET);
        let run = desk.type_("kubectl paddock run greet.py -n $N --set name=world -a again --name greet").expect(3);
        assert_eq!(run.out, "hello world again\n{\n  \"greeted\": \"world\"\n}\n");
        run.tells("oh\n");
        run.tells("greet Failed: the script ended with exit code 3");
        assert!(!run.err.contains('\r') && !run.err.contains('\x1b'), "no terminal, no spinner: {run:?}");

        let get = desk.type_("kubectl paddock get -n $N").expect(0);
        assert_eq!(
            get.out.lines().next().unwrap().split_whitespace().collect::<Vec<_>>(),
            ["NAME", "PHASE", "EXIT", "RUNTIME", "TOOK", "AGE"]
        );
        get.shows("greet   Failed   3      python");
        let json: Value = serde_json::from_str(&desk.type_("kubectl paddock get greet -n $N -o json").expect(0).out).unwrap();
        assert_eq!(json["status"]["result"]["exitCode"], 3);
        desk.type_("kubectl paddock get greet -n $N -o yaml").expect(0).shows("kind: ScriptRun\n");
        desk.type_("kubectl paddock get -A").expect(0).shows("NAMESPACE");

        let describe = desk.type_("kubectl paddock describe greet -n $N").expect(0);
        for told in [
            "received",
            "admitted",
            "started",
            "result-ready",
            "finished",
            "runtime:python",
            "Granted",
            "ClusterSandboxPolicy/baseline",
            "exit code 3",
        ] {
            describe.shows(told);
        }
        let logs = desk.type_("kubectl paddock logs greet -n $N").expect(0);
        assert_eq!((logs.out.as_str(), logs.err.as_str()), ("hello world again\n", "oh\n"));
        desk.type_("kubectl paddock result greet -n $N").expect(0).shows("\"greeted\": \"world\"");
        desk.type_("kubectl paddock result greet -n $N -o yaml").expect(0).shows("greeted: world\n");
        desk.type_("kubectl paddock cancel greet -n $N").expect(0).shows("greet is over already");

        desk.type_("echo 'echo $((6 * 7))' | kubectl paddock run - --runtime shell -n $N").expect(0).shows("42\n");
        desk.type_("kubectl paddock run greet.py -n $N --input '{\"name\": \"x\"}' --dry-run -o yaml")
            .expect(0)
            .shows("generateName: greet-");
        desk.write("secret.sh", "echo AKIA${X}QX7PLM2NVB3RT4WZ\nexit 1");
        desk.type_("kubectl paddock run secret.sh -n $N").expect(1).shows("[masked:CloudKey]");
    })
    .await;
}

#[tokio::test]
async fn what_goes_wrong_is_told_with_what_to_do() {
    tenant("cli-wrong", |tenant| async move {
        let desk = Desk::of(&tenant);
        desk.write("greet.py", GREET);
        desk.write("notes.txt", "x");
        let cases = [
            ("kubectl paddock run missing.py -n $N", 1, "cannot read missing.py"),
            ("kubectl paddock run notes.txt -n $N", 1, "give --runtime"),
            ("kubectl paddock run greet.py -n $N --input '{'", 1, "--input is no JSON"),
            ("kubectl paddock run greet.py -n $N --timeout 9000", 120, "ask for less"),
            ("kubectl paddock run greet.py -n $N --policy nothing", 120, "kubectl get sandboxpolicies"),
            ("kubectl paddock run greet.py -n $N --runtime cobol", 120, "--runtime"),
            ("kubectl paddock run greet.py -n default --set name=x", 120, "ask your administrator"),
            ("kubectl paddock get nothing -n $N", 1, "there is no run nothing in the namespace"),
            ("kubectl paddock run greet.py -n $N --as nobody", 1, "User \"nobody\" cannot create"),
            ("kubectl paddock get -n $N --context nowhere", 1, "nowhere"),
            ("KUBECONFIG=/nonexistent kubectl paddock get", 1, "KUBECONFIG"),
            ("kubectl paddock rum greet.py", 2, "unrecognized subcommand"),
            ("kubectl paddock run greet.py --timeout soon", 2, "soon"),
            ("kubectl paddock init Reports", 1, "small letters"),
        ];
        for (line, code, told) in cases {
            desk.type_(line).expect(code).tells(told);
        }
        // The refused one in `default` is nobody's any more.
        kubectl(&["delete", "scriptruns", "--namespace=default", "--all"], "").unwrap();
        desk.write("slow.sh", "sleep 30");
        desk.type_("kubectl paddock run slow.sh -n $N --timeout 1").expect(124).tells("--timeout");
        desk.write("hungry.py", "x = bytearray(1 << 30)");
        desk.type_("kubectl paddock run hungry.py -n $N").expect(137).tells("spec.resources.memory");
        desk.write("killed.sh", "kill -9 $$");
        desk.type_("kubectl paddock run killed.sh -n $N").expect(137).tells("signal 9");
    })
    .await;
}

#[tokio::test]
async fn an_interrupt_ends_the_run() {
    tenant("cli-interrupt", |tenant| async move {
        let desk = Desk::of(&tenant);
        desk.write("slow.sh", "echo begun\nsleep 60");
        let line = "exec kubectl-paddock run slow.sh -n $N --name slow";
        let child = desk.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let api = tenant.runs();
        eventually("the script runs", || async {
            let run = api.get_opt("slow").await.unwrap();
            let has_started = run.as_ref().is_some_and(|run| status(run).is_true(&ConditionType::Started));
            if has_started { Ok(()) } else { Err(run.map(|run| status(&run).message)) }
        })
        .await;
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
        let typed = Typed::of(line, &child.wait_with_output().unwrap()).expect(130);
        typed.tells("ending slow");
        assert_eq!(status(&api.get("slow").await.unwrap()).phase, Some(Phase::Cancelled));

        // Between the creation and the watch is the moment at which nothing waits for an interrupt.
        for attempt in 0..5 {
            let name = format!("at-once-{attempt}");
            let line = format!("exec kubectl-paddock run slow.sh -n $N --name {name}");
            let mut changes = std::pin::pin!(watcher(api.clone(), watcher::Config::default().fields(&format!("metadata.name={name}"))));
            while !matches!(changes.try_next().await.unwrap(), Some(watcher::Event::InitDone)) {}
            let child = desk.command(&line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            while !matches!(changes.try_next().await.unwrap(), Some(watcher::Event::Apply(_))) {}
            kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
            Typed::of(&line, &child.wait_with_output().unwrap()).expect(130);
        }

        desk.type_("kubectl paddock run slow.sh -n $N --name detached --detach").expect(0).shows("scriptrun.paddock.dev/detached");
        desk.type_("kubectl paddock cancel detached -n $N --wait").expect(130).shows("detached Cancelled");
    })
    .await;
}

/// `script` gives a command a terminal and prints what would be seen on it.
#[tokio::test]
async fn a_terminal_shows_colours_and_a_line_that_changes() {
    tenant("cli-terminal", |tenant| async move {
        let desk = Desk::of(&tenant);
        desk.write("quick.sh", "echo done");
        let run = desk.type_("script --quiet --return --command 'kubectl paddock run quick.sh -n '$N /dev/null").expect(0);
        run.shows("\r\x1b[K");
        run.shows("done\r\n");
        let get = "script --quiet --return --command 'kubectl paddock get -n '$N /dev/null";
        desk.type_(get).expect(0).shows("\x1b[32mSucceeded\x1b[0m");
        let plain = desk.type_(&format!("NO_COLOR=1 {get}")).expect(0);
        assert!(plain.out.contains("Succeeded") && !plain.out.contains('\x1b'), "{plain:?}");
    })
    .await;
}

#[tokio::test]
async fn every_starter_kit_passes_its_own_test() {
    tenant("cli-kits", |tenant| async move {
        let desk = Desk::of(&tenant);
        for language in ["python", "javascript", "typescript", "shell", "bash"] {
            for purpose in ["transform", "check"] {
                let kit = format!("{language}-{purpose}");
                desk.type_(&format!("kubectl paddock init {kit} --language {language} --purpose {purpose}")).expect(0).tells("next: ");
                desk.type_(&format!("kubectl apply -n $N -f {kit}/policy.yaml")).expect(0);
                // The operator may see a run before the policy that was made just before it.
                eventually("the policy is seen", || async {
                    let typed = desk.type_(&format!("sh {kit}/test.sh -n $N"));
                    if typed.code == Some(120) { Err(typed) } else { Ok(typed) }
                })
                .await
                .expect(0)
                .shows("as expected");
            }
        }
        desk.type_("kubectl create -n $N -f python-check/run.yaml").expect(0);
        desk.type_("kubectl paddock init python-check").expect(1).tells("exists already");
        assert!(Path::new(&desk.folder).join("python-check/python-check.py").exists());
        assert!(
            tenant.runs().list(&ListParams::default()).await.unwrap().items.iter().any(|run| run.name_any().starts_with("python-check-"))
        );
    })
    .await;
}

#[tokio::test]
async fn a_cluster_is_looked_at_by_who_may_only_run_scripts() {
    tenant("cli-doctor", |tenant| async move {
        let desk = Desk::of(&tenant);
        tenant.bind("doctor", "paddock-edit").await;
        tenant.bind("doctor", "paddock-view").await;
        let seen: Value = serde_json::from_str(&desk.type_("kubectl paddock doctor -n $N --as doctor -o json").out).unwrap();
        let checks = seen["checks"].as_array().unwrap();
        // The two CPUs of this node are busy with other tests, which can keep the limit from being seen.
        let holds = |check: &Value| check["verdict"] == "Holds" || (check["name"] == "CpuLimited" && check["verdict"] == "NotSeen");
        assert!(checks.len() == 13 && checks.iter().all(holds), "{seen:#}");
        assert_eq!((&checks[0]["seen"], &checks[1]["name"]), (&"created by doctor".into(), &"StampProtected".into()));
        // Who may create pods anywhere also learns whether Pod Security would let them.
        let by_admin = desk.type_("kubectl paddock doctor -n $N");
        by_admin.shows("a pod with all privileges was refused");
        // The baseline grants no network.
        desk.type_("kubectl paddock doctor -n $N --network api.example.com:443 | grep Network").expect(0).shows("NotSeen   Refused");
        // What could not be looked at is not called good.
        desk.type_("kubectl paddock doctor -n $N --runtime missing").expect(1).shows("NotSeen   Refused");
        eventually("the runs are deleted", || async {
            let left = desk.type_("kubectl paddock get -n $N").expect(0).out;
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn versions_and_completions_are_there() {
    tenant("cli-version", |tenant| async move {
        let desk = Desk::of(&tenant);
        let version: Value = serde_json::from_str(&desk.type_("kubectl paddock version -o json").expect(0).out).unwrap();
        assert_eq!(
            (&version["client"], &version["server"]["paddock"]),
            (&env!("CARGO_PKG_VERSION").into(), &env!("CARGO_PKG_VERSION").into())
        );
        assert_eq!(version["server"]["newEnough"], true);
        assert!(version["server"]["runtimeClasses"].to_string().contains("gvisor-nonet"), "{version}");
        desk.type_("kubectl paddock version --as nobody").expect(0).shows("you may not read it");
        desk.type_("KUBECONFIG=/nonexistent kubectl paddock version --client").expect(0).shows(env!("CARGO_PKG_VERSION"));
        // As kubectl asks for them, for whichever shell.
        desk.type_("ln -s \"$(command -v kubectl-paddock)\" kubectl_complete-paddock").expect(0);
        let completed = desk.type_("PATH=$PWD:$PATH kubectl __complete paddock desc").expect(0);
        completed.shows("describe\tTell the life of a run: what happened when, what was decided by which rule, and how it ended");
        // Every command that has documents writes both.
        let run = tenant.run(Script::shell("echo 1")).await;
        for command in ["get", &format!("get {}", run.name_any()), "version", "pending", "doctor", "run hello.sh"] {
            for format in ["json", "yaml"] {
                let line = format!("echo true > hello.sh; kubectl paddock -n $N {command} -o {format}");
                let typed = desk.type_(&line);
                // The two CPUs of this node are busy with other tests, which can keep a limit from being seen.
                let written = if command == "doctor" { typed.out } else { typed.expect(0).out };
                let read: Value =
                    if format == "json" { serde_json::from_str(&written).unwrap() } else { serde_saphyr::from_str(&written).unwrap() };
                assert!(read.is_object(), "{line}: {written}");
            }
        }
        for shell in ["bash", "zsh", "fish", "powershell"] {
            desk.type_(&format!("kubectl paddock completion {shell}")).expect(0).shows("describe");
        }
        desk.type_("kubectl paddock completion bash > c.bash && bash -n c.bash").expect(0);
        desk.type_("kubectl paddock run --help").expect(0).shows("124");
    })
    .await;
}

#[tokio::test]
async fn krew_installs_the_plugin() {
    tenant("krew", |tenant| async move {
        let desk = Desk::of(&tenant);
        let krew = component::build_one(&layout(), "krew").unwrap();
        let clone = layout().clone;
        let typed = desk.type_(&format!(
            "{clone}/hack/krew https://plugin.example/paddock.tar.gz target/debug > paddock.yaml && export KREW_ROOT=$PWD/krew && mkdir krew &&
             {krew} install --manifest=paddock.yaml --archive={clone}/target/krew/kubectl-paddock.tar.gz && PATH=$PWD/krew/bin:$PATH kubectl paddock version --client && ls krew/store/paddock/*",
            clone = clone.display(),
            krew = krew.display(),
        ));
        let typed = typed.expect(0);
        typed.shows(env!("CARGO_PKG_VERSION"));
        typed.shows("LICENSE");
    })
    .await;
}

#[tokio::test]
async fn who_may_decide_sees_what_waits_and_decides() {
    tenant("cli-approve", |tenant| async move {
        let desk = Desk::of(&tenant);
        tenant.bind("anna", "paddock-approver").await;
        tenant.bind("joe", "edit").await;
        desk.write(
            "policy.yaml",
            "apiVersion: paddock.dev/v1alpha1\nkind: SandboxPolicy\nmetadata: {name: careful}\nspec: {approvals: [{name: four-eyes}]}\n",
        );
        desk.write("pay.sh", "echo paid $1\n");
        desk.type_("kubectl -n $N apply -f policy.yaml").expect(0);
        let run = "kubectl paddock -n $N run pay.sh --policy careful --arg 7 --input '{\"to\":\"<joe>\",\"sum\":1.5}' --detach --name";
        desk.type_(&format!("{run} one")).expect(0);
        let pending = eventually("it is listed", || async {
            let pending = desk.type_("kubectl paddock -n $N pending").expect(0);
            if pending.out.contains("one") { Ok(pending) } else { Err(pending) }
        })
        .await;
        assert!(pending.out.contains("0 of 1") && pending.out.contains("SandboxPolicy/careful: approvals[four-eyes]"), "{pending:?}");
        // The digest can be computed before there is a run, and by whoever has only the files.
        let stored = desk.type_("kubectl paddock -n $N digest one").expect(0).out;
        desk.type_(&format!("{run} x --dry-run > x.yaml; kubectl get clustersandboxpolicy baseline -o yaml > baseline.yaml")).expect(0);
        let computed = desk
            .type_("kubectl paddock digest x.yaml --policy policy.yaml --policy baseline.yaml --label paddock.dev/tenant=true")
            .expect(0);
        assert_eq!(computed.out, stored);
        // The administrator wrote the policy and created the run, so their own approval does not count.
        let approve = "kubectl paddock -n $N approve one --comment fine";
        desk.type_(approve).expect(1).tells("give --digest with the digest that you have seen, or --yes");
        let own = desk.type_(&format!("{approve} --yes")).expect(0);
        assert!(own.out.contains("note:       you asked for this run; this approval will not count"), "{own:?}");
        assert!(own.out.contains("script:\n  echo paid $1\n") && own.out.contains("\"to\": \"<joe>\""), "{own:?}");
        desk.type_("kubectl paddock -n $N --as joe approve one --yes").expect(1).tells("cannot decide");
        desk.type_(&format!("{approve} --as anna --digest {}", "0".repeat(64))).expect(1).tells("and not what you have seen");
        // On a terminal it is asked, and whoever does not say yes has decided nothing.
        let asked = |answer: &str| format!("echo {answer} | script --quiet --return --command '{approve} --as anna' /dev/null").replace("$N", &tenant.name);
        desk.type_(&asked("n")).expect(1).shows("Approve this? [y/N]");
        assert_eq!(desk.type_("kubectl -n $N get scriptapprovals -o name").expect(0).out.lines().count(), 1, "the administrator's own");
        desk.type_(&format!("{approve} --as anna --digest {stored}")).expect(0);
        desk.type_("kubectl -n $N wait --for=condition=Finished --timeout=120s scriptrun/one").expect(0);
        assert_eq!(desk.type_("kubectl paddock -n $N logs one").expect(0).out, "paid 7\n");
        desk.type_(approve).expect(1).tells("is over");
        // What was approved was that run alone.
        desk.type_(&format!("{run} two")).expect(0);
        let listed = eventually("it waits", || async {
            let listed: Value = serde_json::from_str(&desk.type_("kubectl paddock -n $N pending -o json").expect(0).out).unwrap();
            if listed["items"].as_array().is_some_and(|items| !items.is_empty()) { Ok(listed) } else { Err("nothing does yet") }
        })
        .await;
        assert_eq!(listed["items"].as_array().map(Vec::len), Some(1), "{listed:#}");
        let is_waiting = |status: &paddock_crds::ScriptRunStatus| status.phase == Some(Phase::AwaitingApproval);
        let two = tenant.runs().get("two").await.unwrap();
        tenant.until(&two, "it waits", is_waiting).await;
        desk.type_("kubectl paddock -n $N deny two --as anna --every-run --comment no --yes").expect(0);
        tenant.finished(&two).await;
        desk.type_("kubectl paddock -n $N run pay.sh --policy careful --arg 7 --input '{\"to\":\"<joe>\",\"sum\":1.5}'").expect(120);
        let denial = desk
            .type_("kubectl -n $N get scriptapprovals -o jsonpath='{.items[?(@.spec.decision==\"Deny\")].metadata.name}'")
            .expect(0)
            .out;
        desk.type_(&format!("kubectl paddock -n $N revoke {denial} --as anna")).expect(0);
        assert_eq!(desk.type_("kubectl paddock -n $N pending").expect(0).out, "nothing waits for an approval\n");
        // A run that no parser can read to its end hides nothing, and can be denied.
        let deep = "[".repeat(300) + &"]".repeat(300);
        desk.write("deep.json", &format!(
            r#"{{"apiVersion":"paddock.dev/v1alpha1","kind":"ScriptRun","metadata":{{"name":"deep"}},"spec":{{"policyRef":{{"kind":"SandboxPolicy","name":"careful"}},"script":{{"runtime":"shell","source":{{"inline":"true"}},"input":{deep}}}}}}}"#
        ));
        desk.type_("kubectl -n $N create -f deep.json").expect(0);
        eventually("it is listed", || async {
            let pending = desk.type_("kubectl paddock -n $N pending").expect(0);
            if pending.out.contains("deep") { Ok(()) } else { Err(pending) }
        })
        .await;
        desk.type_("kubectl paddock -n $N approve deep --as anna --yes").expect(1).tells("what cannot be seen is not approved");
        desk.type_("kubectl paddock -n $N deny deep --as anna --yes").expect(0);
        desk.type_("kubectl -n $N wait --for=condition=Finished --timeout=60s scriptrun/deep").expect(0);
    })
    .await;
}

#[tokio::test]
async fn policies_are_tried_stopped_and_resumed() {
    tenant("cli-policy", |tenant| async move {
        let desk = Desk::of(&tenant);
        tenant.policy(serde_json::json!({ "maxTimeoutSeconds": 20 })).await;
        desk.write("hello.sh", "echo hello\n");
        let explained = desk.type_("kubectl paddock -n $N explain hello.sh --under limited").expect(0);
        assert!(explained.out.contains("runtime:shell") && explained.out.ends_with("allowed\n"), "{explained:?}");
        // Without a cluster: who would ask, where and when.
        desk.write("office.yaml", "apiVersion: paddock.dev/v1alpha1\nkind: ClusterSandboxPolicy\nmetadata: {name: baseline}\nspec:\n  namespaceSelector: {}\n  runtimes: [{name: shell, image: i, command: [/bin/sh]}]\n  rules: [{name: hours, expression: \"now.getHours('Europe/Berlin') < 18 && requester.username == 'jane' && tenant.name == 'shop'\"}]\n");
        let offline = "KUBECONFIG=/nonexistent kubectl paddock explain hello.sh --policy office.yaml -n shop --as jane --now";
        desk.type_(&format!("{offline} 2026-11-27T16:00:00Z")).expect(0).shows("allowed");
        desk.type_(&format!("{offline} 2026-11-27T17:00:00Z")).expect(120).shows("RuleNotSatisfied");
        desk.type_("KUBECONFIG=/nonexistent kubectl paddock explain hello.sh --policy office.yaml -n shop --now 2026-11-27T16:00:00Z").expect(120);
        desk.type_("kubectl paddock -n $N suspend limited").expect(0);
        let explained = desk.type_("kubectl paddock -n $N explain hello.sh --under limited").expect(120);
        assert!(explained.out.contains("waits: Suspended"), "{explained:?}");
        desk.type_("kubectl paddock -n $N run hello.sh --policy limited --name waits --detach").expect(0);
        let waits = tenant.runs().get("waits").await.unwrap();
        tenant.until(&waits, "it waits", |status| status.phase == Some(Phase::Queued)).await;
        desk.type_("kubectl paddock -n $N resume limited").expect(0);
        tenant.finished(&waits).await;
        assert!(desk.type_("kubectl paddock -n $N explain waits").expect(0).out.ends_with("allowed\n"));
        desk.type_("kubectl paddock -n $N suspend nothing").expect(1).tells("not found");

        let effective = desk.type_("kubectl paddock -n $N policy effective limited").expect(0).out;
        let timeout = effective.lines().find(|line| line.starts_with("timeoutSeconds")).unwrap();
        assert!(timeout.contains("at most 20") && timeout.ends_with("SandboxPolicy/limited: limits.maxTimeoutSeconds"), "{effective}");
        assert!(effective.ends_with("policies: ClusterSandboxPolicy/baseline, SandboxPolicy/limited\n"), "{effective}");

        // Written, suspended and resumed: three revisions, of which the first and the last say the same.
        let history = eventually("all is seen", || async {
            let history = desk.type_("kubectl paddock -n $N policy history limited").expect(0).out;
            if history.contains("3 (holds)") { Ok(history) } else { Err(history) }
        })
        .await;
        assert_eq!(history.matches("kubernetes-admin").count(), 3, "{history}");
        let diff = desk.type_("kubectl paddock -n $N policy diff limited --from 1 --to 2").expect(0).out;
        assert!(diff.contains("+suspend: Queue\n") && diff.contains("--- limited revision 1"), "{diff}");
        assert_eq!(desk.type_("kubectl paddock -n $N policy diff limited --from 1").expect(0).out, "");
        let back = desk.type_("kubectl paddock -n $N policy rollback limited").expect(0).out;
        assert_eq!(back, "SandboxPolicy/limited says what it said in revision 2, as revision 4\n");
        assert!(desk.type_("kubectl -n $N get sandboxpolicy limited -o jsonpath={.spec.suspend}").expect(0).out == "Queue");
        desk.type_("kubectl paddock -n $N policy rollback limited --to 9").expect(1).tells("revision 9 of limited is not kept");
        assert!(desk.type_("kubectl paddock policy history cluster/baseline").expect(0).out.contains("(holds)"));
    })
    .await;
}
