//! What the operator and the runner say to each other, version 1. `docs/runner-protocol.md` tells it in prose.
//!
//! The runner shares a user with the script, so **everything it says is untrusted**: every size is bounded, nothing here panics on any
//! input, and a line that is not this runner's is counted and dropped.

mod control;
mod job;
mod line;
mod payload;
mod pre_start;
mod resolver;
mod seal;
mod transcript;

pub use control::{ControlMessage, JobFile, MAX_CONTROL_LINE, pieces};
pub use job::{Egress, Gate, INPUT_FILE, Interfaces, JOB_FILE, Job, JobFiles, script_file};
pub use line::{Line, Lines, MAX_LINE, MAX_TOTAL};
pub use payload::{Cause, MAX_CHUNK, Output, Payload, Refused, RefusedReason, Report, Stream};
pub use pre_start::{Language, PreStart};
pub use resolver::{ROOT_QUESTION, name_servers};
pub use seal::{KEY_BYTES, MAX_TERMINATION_MESSAGE, Opener, RunKey, Sealer, SealingKey, Summary, sandbox};
pub use transcript::{Captured, Reader, Transcript};

/// Exit code of a runner that did not run its job: no script's own, since its lines tell them apart.
pub const NOT_RUN: u8 = 120;

/// Version of the job file, of the lines and of the control messages.
pub const VERSION: u32 = 1;
