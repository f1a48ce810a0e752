//! The connection to the cluster, with the rights of whoever calls.

use anyhow::{Context as _, Result};
use kube::api::{PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use paddock_crds::ScriptRun;

use crate::arguments::Connection;

pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

impl Cluster {
    pub(crate) async fn connect(connection: &Connection) -> Result<Self> {
        let options = KubeConfigOptions { context: connection.context.clone(), ..KubeConfigOptions::default() };
        let kubeconfig = match &connection.kubeconfig {
            Some(path) => Some(Kubeconfig::read_from(path).with_context(|| format!("cannot read the kubeconfig {}", path.display()))?),
            // kubectl takes the same two places, and a pod its own account.
            None if connection.context.is_some() => Some(Kubeconfig::read().context("cannot read the kubeconfig")?),
            None => None,
        };
        let mut config = match kubeconfig {
            Some(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await.context("cannot use the kubeconfig")?,
            None => Config::infer().await.context("cannot find a cluster: set KUBECONFIG, or give --kubeconfig")?,
        };
        if connection.as_user.is_some() {
            config.auth_info.impersonate.clone_from(&connection.as_user);
        }
        if !connection.as_group.is_empty() {
            config.auth_info.impersonate_groups = Some(connection.as_group.clone());
        }
        let namespace = connection.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        Ok(Self { client: Client::try_from(config).context("cannot connect to the cluster")?, namespace })
    }

    pub(crate) fn runs(&self) -> Api<ScriptRun> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// One run, or what to do if there is none.
    pub(crate) async fn run(&self, name: &str) -> Result<ScriptRun> {
        let found = self.runs().get_opt(name).await.map_err(|error| explained(error, "read the run"))?;
        found.with_context(|| {
            format!("there is no run {name} in the namespace {}: kubectl paddock get -A lists all that you may see", self.namespace)
        })
    }
}

/// What the API server said, with what to do about it.
pub(crate) fn explained(error: kube::Error, what: &str) -> anyhow::Error {
    let answer = if let kube::Error::Api(status) = &error { Some((status.code, status.message.clone())) } else { None };
    match answer {
        Some((401, _)) => anyhow::anyhow!("cannot {what}: the cluster does not know you; log in anew"),
        Some((403, message)) => anyhow::anyhow!("cannot {what}: {message}"),
        Some((404, message)) if message.contains("could not find the requested resource") || message.contains("page not found") => {
            anyhow::anyhow!("cannot {what}: Paddock is not installed on this cluster")
        }
        Some((_, message)) => anyhow::anyhow!("cannot {what}: {message}"),
        None => anyhow::Error::from(error).context(format!("cannot {what}")),
    }
}

/// By this name others see who has written a field.
pub(crate) const MANAGER: &str = "kubectl-paddock";

/// What every creation and replacement is made with.
pub(crate) fn posting() -> PostParams {
    PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() }
}

/// The same of a patch.
pub(crate) fn patching() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}
