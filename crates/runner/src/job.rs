//! The job as it lies in a folder: mounted, or put there by a sandbox that waited for it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use paddock_protocol::{INPUT_FILE, JOB_FILE, Job, JobFiles, RefusedReason, VERSION, script_file};

use crate::report::Refusal;

/// A ConfigMap cannot be larger.
pub(crate) const MAX_FILE: u64 = 1024 * 1024;

/// A job, checked, with the paths that the script sees.
#[derive(Debug)]
pub(crate) struct LoadedJob {
    pub(crate) job: Job,
    pub(crate) digest: String,
    pub(crate) script: PathBuf,
    pub(crate) input: Option<PathBuf>,
}

/// Reads the job from a mounted folder.
pub(crate) fn from_folder(folder: &Path) -> Result<LoadedJob, Refusal> {
    let mismatch = |detail: String| Refusal::new(RefusedReason::JobMismatch, detail);
    let read = |name: &str| read_bounded(&folder.join(name)).map_err(|error| mismatch(format!("cannot read {name}: {error}")));
    let input = match read_bounded(&folder.join(INPUT_FILE)) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(mismatch(format!("cannot read {INPUT_FILE}: {error}"))),
    };
    let text = read(JOB_FILE)?;
    let job: Job = serde_json::from_slice(&text).map_err(|error| mismatch(format!("{JOB_FILE} is not a job: {error}")))?;
    if job.version != VERSION {
        return Err(mismatch(format!("the job is of version {}, this runner speaks {VERSION}", job.version)));
    }
    if job.command.is_empty() {
        return Err(mismatch("the job names no interpreter".into()));
    }
    // It becomes part of a path.
    if job.extension.as_ref().is_some_and(|extension| !extension.chars().all(|c| c.is_ascii_alphanumeric())) {
        return Err(mismatch("the extension of the script is none".into()));
    }
    let script = script_file(job.extension.as_deref());
    let files = JobFiles { job: text, script: read(&script)?, input };
    Ok(LoadedJob {
        digest: files.digest(),
        script: folder.join(script),
        input: files.input.is_some().then(|| folder.join(INPUT_FILE)),
        job,
    })
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok(bytes)
}
