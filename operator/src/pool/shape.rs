//! What the sandboxes of a pool have, and whether that is what a run was granted. Pure.

use paddock_crds::ColdReason;
use paddock_policy::Grant;
use paddock_protocol::{Language, PreStart};

fn pre_start(grant: &Grant) -> Option<PreStart> {
    let language = match grant.runtime.pre_start? {
        paddock_crds::PreStart::Python => Language::Python,
        paddock_crds::PreStart::Node => Language::Node,
        paddock_crds::PreStart::Never => return None,
    };
    let (command, extension) = (grant.runtime.command.clone(), grant.runtime.extension.clone());
    Some(PreStart { language, command, extension, file_bytes: grant.scratch_bytes })
}

/// What is fixed when a sandbox begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) image: String,
    /// The interpreter that waits with it, if one does.
    pub(crate) pre_start: Option<PreStart>,
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_milli: u64,
    pub(crate) scratch_bytes: u64,
    /// The most, in seconds.
    pub(crate) timeout_seconds: u32,
    /// The most, in seconds.
    pub(crate) grace_seconds: u32,
}

impl Shape {
    /// Of the sandbox of a run that was granted this.
    pub(crate) fn of(grant: &Grant) -> Self {
        Self {
            image: grant.runtime.image.clone(),
            pre_start: pre_start(grant),
            memory_bytes: grant.memory_bytes,
            cpu_milli: grant.cpu_milli,
            scratch_bytes: grant.scratch_bytes,
            timeout_seconds: grant.timeout_seconds,
            grace_seconds: grant.grace_seconds,
        }
    }

    /// Why a run that was granted this needs another sandbox, if it does.
    pub(crate) fn misfit(&self, grant: &Grant) -> Option<ColdReason> {
        if !grant.capabilities.network.is_empty() {
            return Some(ColdReason::Network);
        }
        if !grant.capabilities.objects.is_empty() {
            return Some(ColdReason::Data);
        }
        let asked = Self::of(grant);
        let has_time = asked.timeout_seconds <= self.timeout_seconds && asked.grace_seconds <= self.grace_seconds;
        let is_same = Self { timeout_seconds: self.timeout_seconds, grace_seconds: self.grace_seconds, ..asked } == *self;
        (!is_same || !has_time).then_some(ColdReason::Resources)
    }

    /// How many of these take the room of one that was granted this.
    pub(crate) fn times_in(&self, grant: &Grant) -> usize {
        let times = grant.memory_bytes.div_ceil(self.memory_bytes.max(1)).max(grant.cpu_milli.div_ceil(self.cpu_milli.max(1)));
        usize::try_from(times).unwrap_or(usize::MAX).max(1)
    }
}
