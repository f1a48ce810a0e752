//! The files of a job. Pure, and the same for the same run and grant: the digest in the status stands for them.

use paddock_crds::{LargeResult, ScriptRun};
use paddock_policy::{Grant, OutputGrant};
use paddock_protocol::{Egress, Interfaces, Job, JobFiles, VERSION};
use sha2::{Digest as _, Sha256};

/// Bytes beyond each end that is shown of what a script put out: whatever is masked and no longer than this is seen whole.
pub(crate) const MARGIN: u32 = 4 * 1024;
/// Largest result that is stored elsewhere: with both streams it fits what a runner may write.
pub(crate) const STORED_BYTES: u32 = 2 * 1024 * 1024;
/// Deepest nesting of a result.
pub(crate) const RESULT_DEPTH: usize = 64;

/// What is in a job whatever was asked for and granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fixed {
    pub(crate) start_budget_seconds: u32,
    /// Public key of the run.
    pub(crate) seal_to: String,
    /// Where the egress gateway is, if there is one.
    pub(crate) egress: Option<Egress>,
    /// Every sandbox has an interface, so that each has to show what it reaches.
    pub(crate) has_interface: bool,
}

/// The files for a run that was granted `grant`.
pub(crate) fn files(run: &ScriptRun, input: Option<&str>, script: Vec<u8>, grant: &Grant, output: &OutputGrant, fixed: &Fixed) -> JobFiles {
    let egress = fixed.egress.clone().filter(|_| fixed.has_interface || !grant.capabilities.network.is_empty());
    let job = Job {
        version: VERSION,
        run: run.metadata.uid.clone().unwrap_or_default(),
        command: grant.runtime.command.clone(),
        extension: grant.runtime.extension.clone(),
        args: run.spec.script.args.clone(),
        interfaces: if egress.is_some() { Interfaces::Any } else { Interfaces::LoopbackOnly },
        start_budget_seconds: fixed.start_budget_seconds,
        timeout_seconds: grant.timeout_seconds,
        grace_seconds: grant.grace_seconds,
        seal_to: fixed.seal_to.clone(),
        stream_bytes: output.stream_bytes + 2 * MARGIN,
        result_bytes: result_bytes(output),
        file_bytes: grant.scratch_bytes,
        egress,
    };
    let input = input.map(|text| text.as_bytes().to_vec());
    JobFiles { job: serde_json::to_vec(&job).unwrap_or_default(), script, input }
}

fn result_bytes(output: &OutputGrant) -> u32 {
    match output.large_result {
        LargeResult::Refuse => output.result_bytes,
        // All of it, also where only its beginning is shown: it is masked as JSON, value by value.
        LargeResult::Truncate | LargeResult::Store => STORED_BYTES,
    }
}

/// Stands for everything that was decided on: the files, the image and the limits of the pod.
pub(crate) fn digest_of(files_digest: &str, grant: &Grant) -> String {
    let objects: String = grant.capabilities.objects.iter().map(|object| format!("{} {}\n", object.kind.as_str(), object.name)).collect();
    let limits = format!("{}\n{}\n{}", grant.memory_bytes, grant.cpu_milli, grant.scratch_bytes);
    let network: String = grant.capabilities.destinations().iter().map(|to| format!("network {to}\n")).collect();
    hash(format!("{files_digest}\n{}\n{limits}\n{objects}{network}", grant.runtime.image).as_bytes())
}

/// SHA-256 in hexadecimal.
pub(crate) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
