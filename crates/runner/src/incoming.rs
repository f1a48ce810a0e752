//! A job that comes over standard input, piece by piece, to a sandbox that waited for one.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paddock_protocol::{INPUT_FILE, JOB_FILE, Job, JobFile, script_file};

use crate::job::MAX_FILE;

/// Holds that nothing was ever put here.
pub(crate) fn is_new(folder: &Path) -> io::Result<()> {
    match fs::read_dir(folder)?.next() {
        None => Ok(()),
        Some(_) => Err(io::ErrorKind::DirectoryNotEmpty.into()),
    }
}

/// What has come. Whoever has got anything is nobody else's any more.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    job: Option<Vec<u8>>,
    script: Option<Vec<u8>>,
    input: Option<Vec<u8>>,
    is_touched: bool,
}

impl Incoming {
    /// Takes a piece. One that does not fit is dropped: what is missing shows in the digest.
    pub(crate) fn take(&mut self, file: JobFile, offset: usize, data: &str) {
        self.is_touched = true;
        let slot = match file {
            JobFile::Job => &mut self.job,
            JobFile::Script => &mut self.script,
            JobFile::Input => &mut self.input,
        };
        let Ok(bytes) = STANDARD.decode(data) else { return };
        let is_there = slot.as_ref().and_then(|taken| taken.get(offset..offset + bytes.len())).is_some_and(|there| there == bytes);
        if is_there {
            // From another leader, while the first one's may still be coming.
        } else if offset == 0 {
            *slot = Some(bytes);
        } else if let Some(taken) = slot.as_mut().filter(|taken| taken.len() == offset && ((offset + bytes.len()) as u64) <= MAX_FILE) {
            taken.extend_from_slice(&bytes);
        }
    }

    /// Whether any piece was ever brought here.
    pub(crate) fn is_touched(&self) -> bool {
        self.is_touched
    }

    /// The job, as far as it can be read.
    pub(crate) fn job(&self) -> Option<Job> {
        serde_json::from_slice(self.job.as_deref()?).ok()
    }

    /// Puts the files where those of a mounted job are. The script owns them, as everything here; that they cannot be written keeps it from mistakes alone.
    pub(crate) fn store(&self, folder: &Path) -> io::Result<()> {
        let (Some(job), Some(script)) = (&self.job, &self.script) else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no job has come"));
        };
        // What it says is checked when the files are read, as of a mounted job.
        let extension = self.job().and_then(|job| job.extension);
        let extension = extension.filter(|extension| extension.chars().all(|c| c.is_ascii_alphanumeric()));
        let files = [
            (JOB_FILE.to_owned(), Some(job)),
            (script_file(extension.as_deref()), Some(script)),
            (INPUT_FILE.to_owned(), self.input.as_ref()),
        ];
        for (name, bytes) in files {
            let Some(bytes) = bytes else { continue };
            let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o444).open(folder.join(name));
            file?.write_all(bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use paddock_protocol::{ControlMessage, JobFiles, pieces};

    use super::*;

    fn bring(incoming: &mut Incoming, messages: Vec<ControlMessage>) {
        for message in messages {
            let ControlMessage::Job { file, offset, data } = message else { panic!("{message:?}") };
            assert!(message_fits(file, offset, &data));
            incoming.take(file, offset, &data);
        }
    }

    fn message_fits(file: JobFile, offset: usize, data: &str) -> bool {
        let line = ControlMessage::Job { file, offset, data: data.to_owned() }.to_line();
        ControlMessage::parse(line.trim_end().as_bytes()).is_some()
    }

    fn files(script: usize, input: Option<usize>) -> JobFiles {
        JobFiles { job: b"{}".to_vec(), script: vec![b'x'; script], input: input.map(|length| vec![0; length]) }
    }

    #[test]
    fn a_job_comes_as_it_was_sent_whatever_was_lost_of_an_earlier_try() {
        for sent in [files(0, None), files(1, Some(0)), files(2880, Some(2881)), files(64 * 1024, Some(600 * 1024))] {
            let mut incoming = Incoming::default();
            assert!(!incoming.is_touched());
            let mut torn = pieces(&sent);
            torn.truncate(torn.len() / 2);
            bring(&mut incoming, torn);
            bring(&mut incoming, pieces(&sent));
            // Once more, and not to its end.
            bring(&mut incoming, pieces(&sent).into_iter().take(2).collect());
            assert!(incoming.is_touched());
            let came = JobFiles { job: incoming.job.unwrap(), script: incoming.script.unwrap(), input: incoming.input };
            assert!(came == sent, "{} bytes", sent.script.len());
        }
    }

    #[test]
    fn a_piece_that_does_not_follow_is_dropped_and_the_sandbox_is_used_all_the_same() {
        let mut incoming = Incoming::default();
        incoming.take(JobFile::Script, 5, "eA==");
        assert!(incoming.is_touched() && incoming.script.is_none());
        incoming.take(JobFile::Script, 0, "no base64!");
        assert_eq!(incoming.script, None);
        incoming.take(JobFile::Script, 0, "eA==");
        incoming.take(JobFile::Script, 0, "eXk=");
        incoming.take(JobFile::Script, 1, "eA==");
        assert_eq!(incoming.script.as_deref(), Some(&b"yy"[..]));
        let whole = usize::try_from(MAX_FILE).unwrap();
        incoming.script = Some(vec![0; whole]);
        incoming.take(JobFile::Script, whole, "eA==");
        assert_eq!(incoming.script.unwrap().len(), whole);
    }

    #[test]
    fn the_files_lie_where_a_mounted_job_has_them() {
        let folder = std::env::temp_dir().join(format!("paddock-incoming-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        assert!(Incoming::default().store(&folder).is_err());
        is_new(&folder).unwrap();
        let mut incoming = Incoming::default();
        bring(&mut incoming, pieces(&files(3, Some(1))));
        incoming.store(&folder).unwrap();
        is_new(&folder).expect_err("a job was here");
        let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!([mode(JOB_FILE), mode("script"), mode(INPUT_FILE)], [0o444; 3]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
