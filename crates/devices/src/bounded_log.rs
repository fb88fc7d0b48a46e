// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A log of what a guest printed that never grows past a limit.
//!
//! A guest decides how much it prints, so whatever keeps its output needs a bound: without one, a
//! flood fills the host's disk or memory. The end is what tells why a guest died, so the end is
//! what is kept. The file is plain text at all times (no ring whose start a reader has to find):
//! when it is full, its newer part moves to the front behind a line that says how much is gone.
//! That costs a second write for each byte at worst, since only half of the limit is kept.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;

/// The smallest limit of a [`BoundedLog`], in bytes: room for a message beside the marker line.
pub const MIN_LIMIT: u64 = 4096;

/// Bytes moved at a time when a full log is shortened.
const BLOCK: usize = 8192;

/// A log that cannot be kept in the file it was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// A pipe or terminal cannot be shortened: it needs no bound of ours, write to it directly.
    #[error("the log is not a regular file, so it cannot be kept within a limit")]
    NotRegular,
    /// With `O_APPEND` the kernel ignores the offset of each write.
    #[error("the log file is open for appending, so its older part cannot be overwritten")]
    Append,
    /// The file could not be examined.
    #[error("cannot examine the log file")]
    Examine(#[source] io::Error),
    /// The file was longer than the limit and could not be made shorter.
    #[error("cannot shorten the log file")]
    Shorten(#[source] io::Error),
}

/// A [`Write`] that keeps the last bytes written, in a file or in memory.
///
/// Clones write to the same log: a serial port and a console can share one, in order. Bytes are
/// the guest's as they came: whoever shows them on a terminal has to escape them first.
///
/// ```
/// use std::io::Write;
///
/// use coracle_devices::BoundedLog;
///
/// let mut log = BoundedLog::in_memory(4096);
/// for line in 0..10_000 {
///     writeln!(log, "line {line}")?;
/// }
/// let kept = String::from_utf8(log.contents()?).unwrap();
/// assert!(kept.len() <= 4096);
/// assert!(kept.starts_with("[earlier output dropped: "));
/// assert!(kept.ends_with("line 9998\nline 9999\n"));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct BoundedLog(Arc<Mutex<Log>>);

impl fmt::Debug for BoundedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = self.lock();
        f.debug_struct("BoundedLog")
            .field("len", &log.len)
            .field("limit", &log.limit)
            .field("dropped", &log.dropped)
            .finish_non_exhaustive()
    }
}

impl BoundedLog {
    /// A log in `file`, after what the file holds already, of at most `limit` bytes (at least
    /// [`MIN_LIMIT`]). Nothing else may write to the file; it can be read at any time.
    ///
    /// # Errors
    ///
    /// [`LogError`] when `file` is no regular file or is open for appending.
    pub fn in_file(file: File, limit: u64) -> Result<Self, LogError> {
        let metadata = file.metadata().map_err(LogError::Examine)?;
        if !metadata.is_file() {
            return Err(LogError::NotRegular);
        }
        let flags = rustix::fs::fcntl_getfl(&file).map_err(|e| LogError::Examine(e.into()))?;
        if flags.contains(OFlags::APPEND) {
            return Err(LogError::Append);
        }
        let log = Self::new(Store::File(file), metadata.len(), limit);
        log.lock().append(&[]).map_err(LogError::Shorten)?;
        Ok(log)
    }

    /// A log in memory of at most `limit` bytes (at least [`MIN_LIMIT`]).
    pub fn in_memory(limit: u64) -> Self {
        Self::new(Store::Memory(Vec::new()), 0, limit)
    }

    fn new(store: Store, len: u64, limit: u64) -> Self {
        BoundedLog(Arc::new(Mutex::new(Log {
            store,
            len,
            limit: limit.max(MIN_LIMIT),
            dropped: 0,
        })))
    }

    /// What the log holds now.
    ///
    /// # Errors
    ///
    /// The error of reading the file; a log in memory cannot fail.
    pub fn contents(&self) -> io::Result<Vec<u8>> {
        let log = self.lock();
        let mut contents = vec![0; usize::try_from(log.len).map_err(io::Error::other)?];
        log.store.read_at(&mut contents, 0)?;
        Ok(contents)
    }

    /// How many bytes were dropped to stay within the limit.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        // A writer that panicked leaves at worst a torn line.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for BoundedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().append(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Log {
    store: Store,
    len: u64,
    limit: u64,
    dropped: u64,
}

impl Log {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let incoming = bytes.len() as u64;
        if self.len.saturating_add(incoming) <= self.limit {
            return self.push(bytes);
        }
        let keep = self.limit / 2;
        // More than the log keeps may come at once: only its end counts.
        let skip = incoming.saturating_sub(keep);
        self.dropped = self.dropped.saturating_add(skip);
        self.shorten(keep.saturating_sub(incoming))?;
        self.push(&bytes[usize::try_from(skip).unwrap_or(bytes.len())..])
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.store.write_at(bytes, self.len)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Moves the last `keep` bytes, less a torn first line, to the front behind a marker.
    fn shorten(&mut self, keep: u64) -> io::Result<()> {
        let mut from = self.len.saturating_sub(keep);
        from += self.rest_of_line(from)?;
        self.dropped = self.dropped.saturating_add(from);

        let marker = format!("[earlier output dropped: {} bytes]\n", self.dropped);
        let end = self.len;
        self.store.truncate_front(from, end, marker.as_bytes())?;
        self.len = marker.len() as u64 + (end - from);
        Ok(())
    }

    /// How many bytes from `at` belong to a line that began before; 0 if no line ends soon.
    fn rest_of_line(&self, at: u64) -> io::Result<u64> {
        let mut block = [0; BLOCK];
        let available = usize::try_from(self.len - at).unwrap_or(BLOCK).min(BLOCK);
        self.store.read_at(&mut block[..available], at)?;
        let newline = block[..available].iter().position(|&byte| byte == b'\n');
        Ok(newline.map_or(0, |position| position as u64 + 1))
    }
}

enum Store {
    File(File),
    Memory(Vec<u8>),
}

impl Store {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Store::File(file) => file.read_exact_at(bytes, offset),
            Store::Memory(memory) => {
                let start = usize::try_from(offset).map_err(io::Error::other)?;
                let source = start
                    .checked_add(bytes.len())
                    .and_then(|end| memory.get(start..end))
                    .ok_or(io::ErrorKind::UnexpectedEof)?;
                bytes.copy_from_slice(source);
                Ok(())
            }
        }
    }

    /// Writes at `offset`, which is the end of what the store holds.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self {
            Store::File(file) => file.write_all_at(bytes, offset),
            Store::Memory(memory) => {
                memory.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Leaves `front` followed by the bytes `from..end`. If any byte is left, `front` is shorter
    /// than `from`, so that the copy never overtakes what it reads.
    fn truncate_front(&mut self, mut from: u64, end: u64, front: &[u8]) -> io::Result<()> {
        match self {
            Store::File(file) => {
                file.write_all_at(front, 0)?;
                let mut to = front.len() as u64;
                let mut block = [0; BLOCK];
                while from < end {
                    let count = usize::try_from(end - from).unwrap_or(BLOCK).min(BLOCK);
                    file.read_exact_at(&mut block[..count], from)?;
                    file.write_all_at(&block[..count], to)?;
                    from += count as u64;
                    to += count as u64;
                }
                file.set_len(to)
            }
            Store::Memory(memory) => {
                let from = usize::try_from(from).map_err(io::Error::other)?;
                memory.splice(..from.min(memory.len()), front.iter().copied());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const LIMIT: u64 = MIN_LIMIT;

    fn in_file() -> (BoundedLog, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = BoundedLog::in_file(file.reopen().unwrap(), LIMIT).unwrap();
        (log, file)
    }

    #[test]
    fn output_within_the_limit_is_kept_whole() {
        let (mut log, file) = in_file();

        log.write_all(b"first\n").unwrap();
        log.clone().write_all(b"second\n").unwrap();

        assert_eq!(fs::read(file.path()).unwrap(), b"first\nsecond\n");
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn full_log_keeps_its_newest_whole_lines() {
        let (mut log, file) = in_file();

        (0..1000).for_each(|n| writeln!(log, "line {n}").unwrap());

        let text = fs::read_to_string(file.path()).unwrap();
        let mut lines = text.lines();
        assert!(lines.next().unwrap().starts_with("[earlier output dropped"));
        assert!(lines.all(|line| line.starts_with("line ")));
        assert!(text.ends_with("line 998\nline 999\n"));
    }

    #[test]
    fn one_write_larger_than_the_limit_keeps_its_end() {
        let (mut log, file) = in_file();
        let flood = [vec![b'x'; 1 << 20], b"the end".to_vec()].concat();

        log.write_all(b"before\n").unwrap();
        log.write_all(&flood).unwrap();

        let kept = fs::read(file.path()).unwrap();
        assert!(kept.len() as u64 <= LIMIT);
        assert!(kept.ends_with(b"the end"));
        assert_eq!(
            log.dropped(),
            (b"before\n".len() + flood.len()) as u64 - LIMIT / 2
        );
    }

    #[test]
    fn file_that_is_too_long_already_is_shortened() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "old line\n".repeat(10_000)).unwrap();

        let log = BoundedLog::in_file(file.reopen().unwrap(), LIMIT).unwrap();

        let kept = fs::read(file.path()).unwrap();
        assert!(kept.len() as u64 <= LIMIT);
        assert!(kept.ends_with(b"\nold line\n"));
        assert_eq!(log.contents().unwrap(), kept);
    }

    #[rstest]
    #[case::zero(0)]
    #[case::one(1)]
    fn tiny_limit_is_raised_to_the_smallest(#[case] limit: u64) {
        let mut log = BoundedLog::in_memory(limit);

        log.write_all(&[b'a'; MIN_LIMIT as usize]).unwrap();

        assert_eq!(log.contents().unwrap().len() as u64, MIN_LIMIT);
    }

    #[test]
    fn pipe_is_refused() {
        let (_reader, writer) = rustix::pipe::pipe().unwrap();

        let error = BoundedLog::in_file(File::from(writer), LIMIT).unwrap_err();

        assert!(matches!(error, LogError::NotRegular));
    }

    #[test]
    fn appending_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let appending = File::options().append(true).open(file.path()).unwrap();

        let error = BoundedLog::in_file(appending, LIMIT).unwrap_err();

        assert!(matches!(error, LogError::Append));
    }

    proptest! {
        #[test]
        fn log_is_bounded_ends_with_the_newest_and_is_the_same_in_both_stores(
            writes in vec((0usize..3000, 1usize..5000), 0..12),
        ) {
            let writes: Vec<Vec<u8>> = writes
                .iter()
                .map(|&(len, line)| (1..=len).map(|at| if at % line == 0 { b'\n' } else { (at % 251) as u8 }).collect())
                .collect();
            let (mut in_file, file) = in_file();
            let mut in_memory = BoundedLog::in_memory(LIMIT);

            for write in &writes {
                in_file.write_all(write).unwrap();
                in_memory.write_all(write).unwrap();
            }

            let kept = fs::read(file.path()).unwrap();
            prop_assert_eq!(&kept, &in_memory.contents().unwrap());
            prop_assert_eq!(&kept, &in_file.contents().unwrap());
            prop_assert!(kept.len() as u64 <= LIMIT);
            let all = writes.concat();
            let dropped = usize::try_from(in_file.dropped()).unwrap();
            prop_assert!(kept.ends_with(&all[dropped..]));
            prop_assert_eq!(dropped == 0, kept == all);
        }
    }
}
