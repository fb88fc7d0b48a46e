// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the guest's output goes.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

use coracle_devices::{BoundedLog, LogError};

/// The most of a guest's output that is kept in a file, in bytes: a kernel log and a stack trace, many times over.
const LIMIT: u64 = 1 << 20;

/// The logs that were opened. One file that is opened twice is one log, or each would overwrite the other's part.
pub(super) struct Logs {
    open: Vec<((u64, u64), BoundedLog)>,
}

impl Logs {
    pub(super) fn new() -> Self {
        Self { open: Vec::new() }
    }

    /// An output to `file`, which is kept within a limit if it is a regular file.
    pub(super) fn open(&mut self, file: File) -> Result<Box<dyn Write + Send>, LogError> {
        let metadata = file.metadata().map_err(LogError::Examine)?;
        if !metadata.is_file() {
            return Ok(Box::new(file));
        }
        let identity = (metadata.dev(), metadata.ino());
        if let Some((_, log)) = self.open.iter().find(|(open, _)| *open == identity) {
            return Ok(Box::new(log.clone()));
        }
        let log = BoundedLog::in_file(file, LIMIT)?;
        self.open.push((identity, log.clone()));
        Ok(Box::new(log))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn two_outputs_to_one_file_are_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, "").unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let mut logs = Logs::new();
        let mut serial = logs.open(open()).unwrap();
        let mut console = logs.open(open()).unwrap();

        serial.write_all(b"early ").unwrap();
        console.write_all(b"middle ").unwrap();
        serial.write_all(b"late").unwrap();

        assert_eq!(std::fs::read(&path).unwrap(), b"early middle late");
    }

    #[test]
    fn output_to_a_pipe_goes_through() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut log = Logs::new()
            .open(File::from(std::os::fd::OwnedFd::from(writer)))
            .unwrap();

        log.write_all(b"text").unwrap();
        drop(log);

        let mut found = String::new();
        reader.read_to_string(&mut found).unwrap();
        assert_eq!(found, "text");
    }
}
