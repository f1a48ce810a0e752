//! The result file, which the script may have made into anything.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use paddock_protocol::Output;

/// The size of a regular file and at most its first `limit` bytes, without following a link and without waiting for a writer of a FIFO.
pub(crate) fn read(path: &Path, limit: u64) -> (Output, Vec<u8>) {
    let unusable = |why: String| (Output::Unusable { why }, Vec::new());
    let file = match OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return (Output::Absent {}, Vec::new());
        }
        Err(error) => return unusable(format!("the result file cannot be opened: {error}")),
    };
    let size = match file.metadata() {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        Ok(_) => return unusable("the result is not a regular file".into()),
        Err(error) => return unusable(format!("the result file cannot be read: {error}")),
    };
    let mut bytes = Vec::new();
    match file.take(limit).read_to_end(&mut bytes) {
        Err(error) => unusable(format!("the result file cannot be read: {error}")),
        Ok(read) => (Output::Present { bytes: size.max(read as u64) }, bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_is_a_result_and_no_more_than_the_limit_is_read() {
        let folder = std::env::temp_dir().join(format!("paddock-result-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("result");
        assert_eq!(read(&path, 4).0, Output::Absent {});
        std::fs::write(&path, "1234").unwrap();
        assert_eq!(read(&path, 4), (Output::Present { bytes: 4 }, b"1234".to_vec()));
        assert_eq!(read(&path, 3), (Output::Present { bytes: 4 }, b"123".to_vec()));
        let link = folder.join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(read(&link, 4).0, Output::Unusable { .. }));
        assert!(matches!(read(&folder, 4).0, Output::Unusable { .. }));
        let fifo = folder.join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(&fifo, 4).0, Output::Unusable { .. }));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
