//! Each runtime of the chart's baseline does what its language promises, without anything hidden around the script.

use crate::harness::{Script, Tenant, assert_end, status, stderr, stdout, tenant};
use paddock_crds::{Phase, Reason, ScriptRun};
use serde_json::json;

/// The same program in each language: a greeting from input and argument, a result, a line on standard error, exit code 3.
struct Program {
    runtime: &'static str,
    text: &'static str,
    /// A program that fails in the way of its language, and what is then on standard error.
    broken: &'static str,
    complaint: &'static str,
}

const PROGRAMS: [Program; 5] = [
    Program {
        runtime: "python",
        text: "import json, os, sys\nname = json.load(open(os.environ['PADDOCK_INPUT']))['name']\nprint('hello', name, sys.argv[1])\n\
               print('oh', file=sys.stderr)\njson.dump({'name': name}, open(os.environ['PADDOCK_RESULT'], 'w'))\nsys.exit(3)\n",
        broken: "print('before')\nraise ValueError('no such thing')\n",
        complaint: "line 2, in <module>\n    raise ValueError('no such thing')\nValueError: no such thing\n",
    },
    Program {
        runtime: "shell",
        text: "name=$(jq -r .name \"$PADDOCK_INPUT\")\necho \"hello $name $1\"\necho oh >&2\nprintf '{\"name\":\"%s\"}' \"$name\" > \"$PADDOCK_RESULT\"\nexit 3\n",
        broken: "set -u\necho before\necho \"$missing\"\n",
        complaint: ": 3: missing: parameter not set\n",
    },
    Program {
        runtime: "bash",
        text: "declare -A who=([name]=\"$(jq -r .name \"$PADDOCK_INPUT\")\")\necho \"hello ${who[name]} $1\"\necho oh >&2\n\
               printf '{\"name\":\"%s\"}' \"${who[name]}\" > \"$PADDOCK_RESULT\"\nexit 3\n",
        broken: "set -u\necho before\necho \"$missing\"\n",
        complaint: ": line 3: missing: unbound variable\n",
    },
    Program {
        runtime: "javascript",
        text: "import { readFileSync, writeFileSync } from 'node:fs';\nconst { name } = JSON.parse(readFileSync(process.env.PADDOCK_INPUT, 'utf8'));\n\
               console.log('hello', name, process.argv[2]);\nconsole.error('oh');\nwriteFileSync(process.env.PADDOCK_RESULT, JSON.stringify({ name }));\nprocess.exitCode = 3;\n",
        broken: "console.log('before');\nthrow new Error('no such thing');\n",
        complaint: "Error: no such thing\n    at file:///paddock/job/script.mjs:2:7\n",
    },
    Program {
        runtime: "typescript",
        text: "import { readFileSync, writeFileSync } from 'node:fs';\ninterface Input { name: string }\n\
               const { name }: Input = JSON.parse(readFileSync(process.env.PADDOCK_INPUT!, 'utf8'));\nconsole.log('hello', name, process.argv[2]);\n\
               console.error('oh');\nwriteFileSync(process.env.PADDOCK_RESULT!, JSON.stringify({ name }));\nprocess.exitCode = 3;\n",
        broken: "const what: string = 'no such thing';\nconsole.log('before');\nthrow new Error(what);\n",
        complaint: "Error: no such thing\n    at file:///paddock/job/script.mts:3:7\n",
    },
];

async fn run(tenant: &Tenant, runtime: &str, text: &str) -> ScriptRun {
    let input = json!({ "script": { "runtime": runtime, "input": { "name": "world" }, "args": ["again"] } });
    tenant.run(Script::shell(text).with(input)).await
}

#[tokio::test]
async fn each_runtime_reads_its_input_and_writes_its_result() {
    tenant("languages", |tenant| async move {
        for program in PROGRAMS {
            let ended = run(&tenant, program.runtime, program.text).await;
            assert_end(&ended, &Phase::Failed, &Reason::Failed);
            assert_eq!((stdout(&ended), stderr(&ended)), ("hello world again\n".into(), "oh\n".into()), "{}", program.runtime);
            let result = status(&ended).result.unwrap();
            assert_eq!((result.exit_code, result.output), (Some(3), Some(json!({ "name": "world" }))), "{}", program.runtime);
        }
    })
    .await;
}

#[tokio::test]
async fn each_runtime_says_where_a_script_went_wrong() {
    tenant("wrong", |tenant| async move {
        for program in PROGRAMS {
            let ended = run(&tenant, program.runtime, program.broken).await;
            assert_end(&ended, &Phase::Failed, &Reason::Failed);
            assert_eq!(stdout(&ended), "before\n", "{}", program.runtime);
            assert!(stderr(&ended).contains(program.complaint), "{}: {}", program.runtime, stderr(&ended));
        }
    })
    .await;
}
