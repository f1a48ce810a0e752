//! What a pod in a sandbox namespace can reach when it has an interface: nothing.

use crate::harness::{Script, Tenant, eventually, layout, tenant};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{LogParams, PostParams};
use kube::{Api, ResourceExt as _};
use paddock_e2e::cluster::layout::{API_SERVICE_ADDRESS, NODE_ADDRESS, port};
use paddock_e2e::cluster::{network, process};
use serde_json::json;

const METADATA_ADDRESS: &str = "169.254.169.254";

/// A pod with an interface, in gVisor, of the shape that Pod Security asks for.
pub fn prober(name: &str, command: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "runtimeClassName": "gvisor",
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
            "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "probe", "image": "docker.io/paddock/shell:12", "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", command],
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    }))
    .unwrap()
}

/// What it has said, once it has ended.
pub async fn output(api: &Api<Pod>, pod: Pod) -> String {
    let name = pod.name_any();
    api.create(&PostParams::default(), &pod).await.unwrap();
    eventually("the prober has ended", || async {
        let pod = api.get(&name).await.unwrap();
        let phase = pod.status.clone().and_then(|status| status.phase).unwrap_or_default();
        if phase == "Succeeded" || phase == "Failed" { Ok(()) } else { Err(pod.status) }
    })
    .await;
    api.logs(&name, &LogParams::default()).await.unwrap()
}

/// Listens on the address of cloud metadata services, inside the cluster's own network namespace: a hole shows as a connection to this
/// listener, and no packet can leave the machine.
struct MetadataListener(std::process::Child);

impl MetadataListener {
    fn start() -> Self {
        let _ = network::inside(&["ip", "address", "add", &format!("{METADATA_ADDRESS}/32"), "dev", "lo"]);
        let namespace = format!("--net={}", paddock_e2e::cluster::layout::Layout::network_namespace().display());
        let listener = format!(
            "import socket\ns = socket.socket()\ns.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\ns.bind(('{METADATA_ADDRESS}', 80))\n\
             s.listen(8)\nprint('listening', flush=True)\nwhile True:\n    c, _ = s.accept()\n    c.sendall(b'metadata')\n    c.close()\n"
        );
        let mut child = std::process::Command::new("nsenter")
            .args([namespace.as_str(), "--", "python3", "-c", &listener])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        assert_eq!(line, "listening\n");
        Self(child)
    }
}

impl Drop for MetadataListener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_pod_with_an_interface_reaches_nothing() {
    tenant("confined", |tenant: Tenant| async move {
        // The first run makes the sandbox namespace.
        tenant.run(Script::shell("true")).await;
        let _listener = MetadataListener::start();
        let outside: Api<Pod> = Api::namespaced(tenant.client.clone(), &tenant.name);
        outside.create(&PostParams::default(), &prober("server", "while :; do echo hello | nc.openbsd -l -p 8080; done")).await.unwrap();
        let server = eventually("the server has an address", || async {
            let pod = outside.get("server").await.unwrap();
            let status = pod.status.clone().unwrap_or_default();
            status.pod_ip.filter(|_| status.phase.as_deref() == Some("Running")).ok_or(pod.status)
        })
        .await;
        let targets = [
            (API_SERVICE_ADDRESS.to_owned(), 443),
            (NODE_ADDRESS.to_owned(), port::API),
            (NODE_ADDRESS.to_owned(), port::KUBELET),
            (NODE_ADDRESS.to_owned(), port::ETCD),
            (server, 8080),
            (METADATA_ADDRESS.to_owned(), 80),
        ];
        let mut probes = String::from("ip -o link | wc -l;");
        for (address, port) in &targets {
            probes += &format!("nc.openbsd -z -w 2 {address} {port} && echo {address}:{port};");
        }
        // The same probes where nothing confines them: each target answers, so that silence means something.
        let open = eventually("every target answers", || async {
            let name = format!("open-{}", std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos());
            let seen = output(&outside, prober(&name, &probes)).await;
            let missing: Vec<String> = targets
                .iter()
                .map(|(address, port)| format!("{address}:{port}\n"))
                .filter(|target| !seen.contains(target.as_str()))
                .collect();
            if missing.is_empty() { Ok(seen) } else { Err(missing) }
        })
        .await;
        assert!(open.starts_with("2\n"), "{open}");
        // The controller takes up a pod only when it has an address, moments after it has begun: no script is ever started in such a pod.
        let taken_up = format!("for i in $(seq 60); do nc.openbsd -z -w 2 {API_SERVICE_ADDRESS} 443 || break; sleep 0.5; done;");
        let confined = output(&tenant.pods(), prober("confined", &(taken_up + &probes))).await;
        assert_eq!(confined, "2\n", "only the interfaces are to be seen");
        assert!(process::record(&layout(), "kube-router").is_some_and(|record| record.is_alive()));
    })
    .await;
}
