//! What the operator and the runner say to each other, version 1. `docs/runner-protocol.md` tells it in prose.
//!
//! The runner shares a user with the script, so **everything it says is untrusted**: every size is bounded, nothing here panics on any
//! input, and a line that is not a frame is counted and dropped.

mod control;
mod frame;
mod job;
mod transcript;

pub use control::{ControlMessage, MAX_CONTROL_LINE};
pub use frame::{Cause, Frame, MAX_CHUNK, MAX_LINE, MAX_TOTAL, Output, Payload, RefusedReason, Report, Stream};
pub use job::{INPUT_FILE, Interfaces, JOB_FILE, Job, JobFiles, SCRIPT_FILE};
pub use transcript::{Captured, Lines, Transcript};

/// Version of the job file, of the frames and of the control messages.
pub const VERSION: u32 = 1;
