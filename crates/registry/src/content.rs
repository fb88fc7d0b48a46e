// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A blob as it comes: over as many connections as it takes, each going on where the last was cut.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use coracle_oci::digest::{ContentError, Verified};
use coracle_oci::image::Descriptor;
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE};

use crate::error::RegistryError;
use crate::http::Answer;
use crate::progress::{Progress, State};
use crate::retry::{Attempts, Stop};
use crate::session::Session;

/// Bytes after which a blob has gone on, and failures are forgotten.
const PROGRESS: u64 = 1 << 20;
/// How many times a blob's size may come again, from a host that knows no ranges, before failures are forgotten no more.
const AGAIN: u64 = 2;
/// Fewest bytes in the time of a stall, lest single bytes keep a pull alive.
const TRICKLE: u64 = 4 << 10;

/// What all blobs of a pull share.
pub(crate) struct Pull<'p> {
    pub(crate) session: &'p Session<'p>,
    pub(crate) progress: &'p dyn Progress,
    pub(crate) stop: Stop,
    pub(crate) retry: crate::options::Retry,
    pub(crate) stall: Duration,
}

impl Pull<'_> {
    /// Waits after a failure that may pass; gives the failure to report where it is not waited.
    pub(crate) fn pause(
        &self,
        attempts: &mut Attempts,
        error: RegistryError,
    ) -> Result<(), RegistryError> {
        let (wait, error) = attempts.next(error)?;
        tracing::debug!("trying again after {wait:?}: {error}");
        self.progress.retrying(&error, wait);
        self.stop.wait(wait)
    }
}

/// A blob's content, checked: it ends only where size and digest are right. What failed is kept, since those who read
/// it pass on an `io::Error` at best.
pub(crate) struct Content<'p> {
    inner: Verified<Resuming<'p>>,
    host: &'p str,
    blob: &'p Descriptor,
    has_ended: bool,
    failure: Option<RegistryError>,
}

impl<'p> Content<'p> {
    pub(crate) fn new(
        pull: &'p Pull<'p>,
        blob: &'p Descriptor,
        progress: &'p dyn Progress,
    ) -> Self {
        let resuming = Resuming::new(pull, blob, progress);
        Self {
            inner: Verified::new(resuming, blob.digest.clone(), blob.size),
            host: pull.session.host(),
            blob,
            has_ended: false,
            failure: None,
        }
    }

    /// Whether all of it was read, and was right.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Why reading failed.
    pub(crate) fn into_failure(self) -> Option<RegistryError> {
        self.failure
    }

    fn fail(&mut self, error: io::Error) -> io::Error {
        let kind = error.kind();
        let Some(inner) = error.into_inner() else {
            return io::Error::from(kind);
        };
        self.failure = match inner.downcast::<RegistryError>() {
            Ok(error) => Some(*error),
            Err(inner) => {
                inner
                    .downcast::<ContentError>()
                    .ok()
                    .map(|source| RegistryError::Content {
                        host: self.host.to_owned(),
                        what: format!("blob {}", self.blob.digest),
                        source: *source,
                    })
            }
        };
        io::Error::new(kind, "the blob cannot be read to its end")
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.failure.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        match self.inner.read(buffer) {
            Ok(0) if !buffer.is_empty() => {
                self.has_ended = true;
                Ok(0)
            }
            Ok(count) => Ok(count),
            Err(error) => Err(self.fail(error)),
        }
    }
}

/// A blob's bytes, unchecked.
struct Resuming<'p> {
    pull: &'p Pull<'p>,
    blob: &'p Descriptor,
    /// Is told of each byte.
    progress: &'p dyn Progress,
    what: String,
    /// Bytes given so far.
    position: u64,
    /// Where the tries last began to count.
    mark: u64,
    /// Bytes that came although they had come before.
    again: u64,
    answer: Option<Answer>,
    attempts: Attempts,
    pace: Pace,
}

impl<'p> Resuming<'p> {
    fn new(pull: &'p Pull<'p>, blob: &'p Descriptor, progress: &'p dyn Progress) -> Self {
        Self {
            pull,
            blob,
            progress,
            what: format!("blob {}", blob.digest),
            position: 0,
            mark: 0,
            again: 0,
            answer: None,
            attempts: Attempts::new(pull.retry),
            pace: Pace::default(),
        }
    }

    fn some(&mut self, buffer: &mut [u8]) -> Result<usize, RegistryError> {
        if self.position >= self.blob.size {
            return Ok(0);
        }
        loop {
            self.pull.stop.check()?;
            let error = match self.once(buffer) {
                Ok(count) => {
                    self.position += count as u64;
                    if self.position - self.mark >= PROGRESS {
                        self.mark = self.position;
                        // Else each megabyte could cost all that comes before it, without an end.
                        if self.again <= self.blob.size.saturating_mul(AGAIN) {
                            self.attempts.progressed();
                        }
                    }
                    self.progress
                        .blob(self.blob, State::Received(self.position));
                    return Ok(count);
                }
                Err(error) => error,
            };
            self.answer = None;
            self.pull.pause(&mut self.attempts, error)?;
        }
    }

    /// One or more bytes, from one connection.
    fn once(&mut self, buffer: &mut [u8]) -> Result<usize, RegistryError> {
        let mut answer = match self.answer.take() {
            Some(answer) => answer,
            None => self.open()?,
        };
        let count = self.receive(&mut answer, self.position, buffer)?;
        self.answer = Some(answer);
        Ok(count)
    }

    /// What comes next of an answer, which stands at `position`.
    fn receive(
        &mut self,
        answer: &mut Answer,
        position: u64,
        buffer: &mut [u8],
    ) -> Result<usize, RegistryError> {
        let at = Some((position, self.blob.size));
        let started = Instant::now();
        let count = answer.read(buffer, at)?;
        self.pace.add(started.elapsed(), count);
        if count == 0 {
            // A host that closes without saying how much there is ends like this, too.
            return Err(RegistryError::Cut {
                host: answer.host().to_owned(),
                what: self.what.clone(),
                at,
            });
        }
        if self.pace.is_too_slow(self.pull.stall) {
            return Err(RegistryError::Stalled {
                host: answer.host().to_owned(),
                what: self.what.clone(),
                waited: self.pull.stall,
            });
        }
        Ok(count)
    }

    /// An answer that goes on where the blob stands.
    fn open(&mut self) -> Result<Answer, RegistryError> {
        let digest = self.blob.digest.to_string();
        self.pace = Pace::default();
        let mut answer = self
            .pull
            .session
            .get("blobs", &digest, &self.what, &[], self.position)?;
        let is_part = answer.status() == 206;
        let start = if is_part {
            answer.header(CONTENT_RANGE).and_then(range_start)
        } else {
            Some(0)
        };
        let (Some(start), true) = (start, start.is_some_and(|start| start <= self.position)) else {
            return Err(RegistryError::Protocol {
                host: answer.host().to_owned(),
                reason: format!(
                    "it was asked for {} from byte {}, and gives another part",
                    self.what, self.position
                ),
            });
        };
        let length = answer
            .header(CONTENT_LENGTH)
            .and_then(|length| length.parse().ok());
        if let Some(length) = length
            && start.checked_add(length) != Some(self.blob.size)
        {
            return Err(RegistryError::Content {
                host: answer.host().to_owned(),
                what: self.what.clone(),
                source: ContentError::Size {
                    digest: self.blob.digest.clone(),
                    expected: self.blob.size,
                    found: start.saturating_add(length),
                },
            });
        }
        // What came before comes again where the host does not know ranges.
        self.pass_over(&mut answer, self.position - start)?;
        Ok(answer)
    }

    fn pass_over(&mut self, answer: &mut Answer, mut count: u64) -> Result<(), RegistryError> {
        let mut buffer = [0; 16 << 10];
        while count > 0 {
            self.pull.stop.check()?;
            let most = usize::try_from(count).map_or(buffer.len(), |count| count.min(buffer.len()));
            let position = self.position - count;
            let read = self.receive(answer, position, &mut buffer[..most])?;
            count -= read as u64;
            self.again = self.again.saturating_add(read as u64);
        }
        Ok(())
    }
}

impl Read for Resuming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.some(buffer).map_err(io::Error::other)
    }
}

/// How fast bytes come, by the time spent waiting for them: a slow disk is nobody's stall.
#[derive(Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn add(&mut self, waited: Duration, bytes: usize) {
        self.waited += waited;
        self.bytes += bytes as u64;
    }

    /// Whether the last stretch of time brought next to nothing; then the next begins.
    fn is_too_slow(&mut self, stretch: Duration) -> bool {
        if self.waited < stretch {
            return false;
        }
        let bytes = self.bytes;
        *self = Self::default();
        bytes < TRICKLE
    }
}

/// First byte of `bytes 5-9/10` (RFC 9110, 14.4).
fn range_start(header: &str) -> Option<u64> {
    header
        .strip_prefix("bytes ")?
        .split_once('-')?
        .0
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("bytes 5-9/10", Some(5))]
    #[case("bytes 0-0/*", Some(0))]
    #[case("bytes */10", None)]
    #[case("5-9/10", None)]
    #[case("bytes 99999999999999999999-1/2", None)]
    #[case("", None)]
    fn start_of_a_range_is_read(#[case] header: &str, #[case] expected: Option<u64>) {
        assert_eq!(range_start(header), expected);
    }

    #[rstest]
    #[case::trickle(1, true)]
    #[case::flow(4096, false)]
    fn pace_is_measured_over_a_stretch(#[case] bytes: usize, #[case] slow: bool) {
        let stretch = Duration::from_secs(10);
        let mut pace = Pace::default();
        pace.add(stretch / 2, 0);
        assert!(!pace.is_too_slow(stretch));

        pace.add(stretch / 2, bytes);

        assert_eq!(pace.is_too_slow(stretch), slow);
    }
}
