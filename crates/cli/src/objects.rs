//! What a run asks for, read as whoever asks: the answer is the operator's only as far as both may read the same.

use std::collections::BTreeMap;

use anyhow::Result;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, ResourceExt as _};
use paddock_crds::Capabilities;
use paddock_policy::{Found, Object, ObjectKind, Objects, asked_objects, data_hash};

use crate::cluster::{Cluster, explained};

/// Labels of the objects, and hashes of the ConfigMaps by name.
pub(crate) type Known = (Objects, BTreeMap<String, String>);

/// Reads what is asked for.
pub(crate) async fn read(cluster: &Cluster, asked: Option<&Capabilities>) -> Result<Known> {
    let (mut objects, mut hashes) = Known::default();
    for object in asked.map(asked_objects).unwrap_or_default() {
        let found = match object.kind {
            ObjectKind::Secret => {
                let api: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
                found(&object, api.get_metadata_opt(&object.name).await.map(|found| found.map(|secret| secret.labels().clone())))?
            }
            ObjectKind::ConfigMap => {
                let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
                let read = api.get_opt(&object.name).await;
                if let Ok(Some(config_map)) = &read {
                    let (text, bytes) = (config_map.data.clone().unwrap_or_default(), config_map.binary_data.clone().unwrap_or_default());
                    hashes.insert(object.name.clone(), data_hash(&text, &bytes));
                }
                found(&object, read.map(|found| found.map(|config_map| config_map.labels().clone())))?
            }
            // Tenants have no rights in a sandbox namespace: nothing is known of it.
            ObjectKind::PersistentVolumeClaim => continue,
        };
        objects.insert(object, found);
    }
    Ok((objects, hashes))
}

fn found(object: &Object, read: Result<Option<BTreeMap<String, String>>, kube::Error>) -> Result<Found> {
    match read {
        Ok(Some(labels)) => Ok(Found::Labels(labels)),
        Ok(None) => Ok(Found::absent(object)),
        Err(kube::Error::Api(answer)) if answer.code == 403 => Ok(Found::forbidden_to_the_requester(object)),
        Err(error) => Err(explained(error, "read what the run asks for")),
    }
}
