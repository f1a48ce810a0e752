//! `kubectl paddock version`: what is installed, and what the cluster has for it.

use anyhow::Result;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::ListParams;
use paddock_crds::ClusterSandboxPolicy;
use paddock_crds::generate::CRD_VERSION;
use serde::Serialize;

use crate::arguments::Output;
use crate::cluster::Cluster;
use crate::exit::Exit;
use crate::show::document;

/// Oldest minor version of Kubernetes that Paddock runs on.
const OLDEST_MINOR: u32 = 33;

#[derive(Serialize, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Version {
    client: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Server>,
}

#[derive(Serialize, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Server {
    kubernetes: String,
    /// Whether Paddock runs on a cluster of this version.
    new_enough: bool,
    /// The version of Paddock whose CRDs are in the cluster.
    paddock: Known,
    runtime_classes: KnownList,
    cluster_policies: KnownList,
}

/// What the caller may not read is not known, which is not the same as that there is nothing.
#[derive(Serialize, Debug, PartialEq, Eq)]
#[serde(untagged)]
enum Known {
    Is(String),
    Not { unknown: &'static str },
}

#[derive(Serialize, Debug, PartialEq, Eq)]
#[serde(untagged)]
enum KnownList {
    Are(Vec<String>),
    Not { unknown: &'static str },
}

const FORBIDDEN: &str = "you may not read it";

pub(crate) async fn version(cluster: Option<Result<Cluster>>, output: Output) -> Result<Exit> {
    let server = match cluster {
        Some(cluster) => Some(server(&cluster?).await?),
        None => None,
    };
    let version = Version { client: env!("CARGO_PKG_VERSION"), server };
    match output {
        Output::Table => print!("{}", text(&version)),
        Output::Json | Output::Yaml => print!("{}", document(&version, output == Output::Json)?),
    }
    Ok(Exit::Done)
}

async fn server(cluster: &Cluster) -> Result<Server> {
    let client = &cluster.client;
    let info = client.apiserver_version().await.map_err(|error| crate::cluster::explained(error, "ask the cluster"))?;
    let minor: u32 = info.minor.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0);
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let paddock = match crds.get_opt("scriptruns.paddock.dev").await {
        Ok(Some(crd)) => Known::Is(crd.metadata.annotations.unwrap_or_default().remove(CRD_VERSION).unwrap_or_else(|| "0.1.0".into())),
        Ok(None) => Known::Is("not installed".into()),
        Err(_) => Known::Not { unknown: FORBIDDEN },
    };
    let classes: Api<RuntimeClass> = Api::all(client.clone());
    let policies: Api<ClusterSandboxPolicy> = Api::all(client.clone());
    Ok(Server {
        kubernetes: info.git_version,
        new_enough: info.major != "1" || minor >= OLDEST_MINOR,
        paddock,
        runtime_classes: names(classes.list(&ListParams::default()).await.map(|list| list.items)),
        cluster_policies: names(policies.list(&ListParams::default()).await.map(|list| list.items)),
    })
}

fn names<K: kube::ResourceExt>(found: Result<Vec<K>, kube::Error>) -> KnownList {
    match found {
        Ok(items) => KnownList::Are(items.iter().map(kube::ResourceExt::name_any).collect()),
        Err(_) => KnownList::Not { unknown: FORBIDDEN },
    }
}

/// For people. Pure.
fn text(version: &Version) -> String {
    let mut lines = vec![("Client", version.client.to_owned())];
    if let Some(server) = &version.server {
        let list = |list: &KnownList| match list {
            KnownList::Are(names) if names.is_empty() => "none".to_owned(),
            KnownList::Are(names) => names.join(", "),
            KnownList::Not { unknown } => format!("({unknown})"),
        };
        let too_old = if server.new_enough { String::new() } else { format!(", too old: Paddock needs 1.{OLDEST_MINOR} or later") };
        lines.push(("Kubernetes", format!("{}{too_old}", server.kubernetes)));
        lines.push((
            "Paddock",
            match &server.paddock {
                Known::Is(version) => version.clone(),
                Known::Not { unknown } => format!("({unknown})"),
            },
        ));
        lines.push(("RuntimeClasses", list(&server.runtime_classes)));
        lines.push(("Cluster policies", list(&server.cluster_policies)));
    }
    lines.iter().map(|(name, value)| format!("{name:<18}{value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_may_not_read_is_not_called_missing() {
        let server = Server {
            kubernetes: "v1.32.0".into(),
            new_enough: false,
            paddock: Known::Not { unknown: FORBIDDEN },
            runtime_classes: KnownList::Are(Vec::new()),
            cluster_policies: KnownList::Are(vec!["baseline".into(), "strict".into()]),
        };
        insta::assert_snapshot!(text(&Version { client: "0.2.0", server: Some(server) }));
    }
}
