//! `kubectl paddock doctor`: whether this cluster keeps what Paddock promises. It runs scripts that try what must not be possible, with the rights of
//! whoever calls, and looks at what became of them.

use anyhow::{Result, ensure};
use kube::Api;
use paddock_crds::{CheckVerdict, DIAGNOSIS, Diagnosis};
use paddock_doctor::{Doctor, Finding, Network};
use serde_json::{Value, json};

use crate::arguments::{Doctor as Arguments, Output};
use crate::cluster::{Cluster, MANAGER, explained};
use crate::exit::Exit;
use crate::manifest::policy_ref;
use crate::show::document;
use crate::table::{Cell, plain, table};
use crate::terminal::{Progress, Tone, has_colours, printable};

pub(crate) async fn doctor(cluster: &Cluster, arguments: &Arguments) -> Result<Exit> {
    let findings = if arguments.stored { stored(cluster).await? } else { examine(cluster, arguments).await? };
    match arguments.output {
        Output::Table => {
            let rows: Vec<Vec<Cell>> = findings.iter().map(row).collect();
            print!("{}", table(&["CHECK", "VERDICT", "WHAT WAS SEEN"], &rows, has_colours()));
        }
        Output::Json | Output::Yaml => {
            let checks: Vec<Value> = findings.iter().map(as_json).collect();
            print!("{}", document(&json!({ "checks": checks }), arguments.output == Output::Json)?);
        }
    }
    Ok(if findings.iter().all(|finding| finding.verdict == CheckVerdict::Holds) { Exit::Done } else { Exit::Failed })
}

async fn examine(cluster: &Cluster, arguments: &Arguments) -> Result<Vec<Finding>> {
    // What a tenant may be granted leads where it likes, and from a desk nobody knows what answers beside a sandbox.
    let network = arguments.network.clone().map(|granted| Network { granted, ..Network::default() });
    let doctor = Doctor {
        client: cluster.client.clone(),
        namespace: cluster.namespace.clone(),
        policy: policy_ref(&arguments.policy)?,
        runtime: arguments.runtime.clone(),
        privileged_pod: None,
        has_interface: false,
        network,
        manager: MANAGER,
    };
    let mut progress = Progress::new();
    progress.tell(&format!("{} scripts try what must not be possible", doctor.probes()));
    let examined = doctor.examine().await;
    progress.end();
    examined.map_err(|error| match error.downcast::<kube::Error>() {
        Ok(error) => explained(error, "examine the cluster"),
        Err(error) => error,
    })
}

/// What the cluster was found to be when it was examined last.
async fn stored(cluster: &Cluster) -> Result<Vec<Finding>> {
    let api: Api<Diagnosis> = Api::all(cluster.client.clone());
    let diagnosis = api.get(DIAGNOSIS).await.map_err(|error| explained(error, "read the diagnosis"))?;
    let checks = diagnosis.status.unwrap_or_default().checks;
    ensure!(!checks.is_empty(), "the cluster was not examined yet");
    Ok(checks.into_iter().map(|result| Finding { check: result.name, verdict: result.verdict, seen: result.message }).collect())
}

fn row(finding: &Finding) -> Vec<Cell> {
    let tone = match finding.verdict {
        CheckVerdict::Holds => Tone::Good,
        CheckVerdict::NotSeen => Tone::Faint,
        CheckVerdict::Fails | CheckVerdict::Unknown(_) => Tone::Bad,
    };
    vec![plain(finding.check.as_str()), (finding.verdict.to_string(), tone), plain(printable(&finding.seen))]
}

fn as_json(finding: &Finding) -> Value {
    json!({ "name": finding.check, "verdict": finding.verdict, "seen": finding.seen })
}
