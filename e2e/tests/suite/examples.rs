//! The examples in the repository are what a cluster takes, and the runs among them succeed.

use crate::harness::{self, assert_end, eventually, status, tenant};
use kube::api::PostParams;
use paddock_crds::{Phase, Reason, SandboxPolicy, ScriptRun};
use paddock_e2e::cluster::command::run as call;

#[tokio::test]
async fn every_example_works() {
    tenant("examples", |tenant| async move {
        let layout = harness::layout();
        // Policies first: a run that names one must find it.
        let folder = layout.clone.join("manifests/examples");
        let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort_by_key(|path| !path.to_string_lossy().contains("policy"));
        assert!(files.len() >= 6);
        let readme = std::fs::read_to_string(layout.clone.join("README.md")).unwrap();
        assert!(
            readme.contains(&std::fs::read_to_string(folder.join("readme.yaml")).unwrap()),
            "the README shows another run than readme.yaml"
        );
        let policies: kube::Api<SandboxPolicy> = kube::Api::namespaced(tenant.client.clone(), &tenant.name);
        for file in files {
            let create = ["--namespace", &tenant.name, "create", "--output=json", "--filename", &file.to_string_lossy()];
            let json = harness::kubectl(&create, "").unwrap_or_else(|error| panic!("{}: {error:#}", file.display()));
            let mut objects = serde_json::Deserializer::from_str(&json).into_iter::<serde_json::Value>().map(Result::unwrap);
            let Some(run) = objects.find_map(|object| serde_json::from_value::<ScriptRun>(object).ok()) else {
                assert!(policies.get_opt("small").await.unwrap().is_some(), "{json}");
                continue;
            };
            // The operator may see a run before the policy that was made just before it.
            let mut end = tenant.finished(&run).await;
            if status(&end).phase == Some(Phase::Refused) {
                end = eventually("the policy is seen", || async {
                    let mut again = ScriptRun::new("", run.spec.clone());
                    again.metadata.name = None;
                    again.metadata.generate_name = Some("again-".into());
                    let again = tenant.runs().create(&PostParams::default(), &again).await.unwrap();
                    let again = tenant.finished(&again).await;
                    if status(&again).phase == Some(Phase::Refused) { Err(status(&again).message) } else { Ok(again) }
                })
                .await;
            }
            assert_end(&end, &Phase::Succeeded, &Reason::Succeeded);
        }
    })
    .await;
}

/// Each of the worked policies has a file of cases that comes out as it says, and is taken by a cluster.
#[test]
fn every_worked_policy_holds_its_cases() {
    let clone = harness::layout().clone;
    let mut files: Vec<_> = std::fs::read_dir(clone.join("manifests/policies")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let (cases, policies): (Vec<_>, Vec<_>) = files.into_iter().partition(|path| path.to_string_lossy().ends_with(".cases.yaml"));
    assert_eq!((cases.len(), policies.len()), (6, 6));
    for (cases, policy) in cases.iter().zip(&policies) {
        let told = call(std::process::Command::new(clone.join("target/debug/kubectl-paddock")).args(["policy", "test"]).arg(cases));
        let told = told.unwrap_or_else(|error| panic!("{error:#}"));
        assert!(told.contains("cases as expected"), "{told}");
        let guide = std::fs::read_to_string(clone.join("docs/policies.md")).unwrap();
        assert!(guide.contains(policy.file_name().unwrap().to_str().unwrap()), "{} is not in the guide", policy.display());
        // What is meant for a namespace of its own is tried in one that is there.
        let text = std::fs::read_to_string(policy).unwrap().replace("namespace: tools", "namespace: default");
        harness::kubectl(&["apply", "--dry-run=server", "--validate=strict", "--filename=-"], &text).unwrap();
    }
}
