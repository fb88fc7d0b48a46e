// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs of the host that are asked something: bounded in time and in what they say.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use thiserror::Error;

/// Most bytes that are kept of what a program says on standard error.
const STDERR_LIMIT: usize = 1 << 10;

/// A program that gave no answer.
#[derive(Debug, Error)]
pub(crate) enum CommandError {
    /// It is not there, or cannot be started.
    #[error("{program} cannot be started: {source}")]
    Start { program: String, source: io::Error },
    /// It took too long, and was ended.
    #[error("{program} did not answer within {:.1} s", .waited.as_secs_f64())]
    Deadline { program: String, waited: Duration },
    /// It says more than any answer has.
    #[error("{program} says more than {limit} bytes")]
    TooLong { program: String, limit: usize },
    /// Its pipe broke.
    #[error("{program} cannot be talked to: {source}")]
    Talk { program: String, source: io::Error },
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    /// The beginning.
    pub(crate) stderr: Vec<u8>,
}

/// Runs a program with `input`, which has to fit a pipe's buffer (4 KiB), until it ends. What it leaves running is not
/// waited for, even where that keeps its outputs open.
pub(crate) fn ask(
    command: &mut Command,
    input: &[u8],
    limit: usize,
    deadline: Duration,
) -> Result<Answer, CommandError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let started = Instant::now();
    // A group of its own, so that what it starts ends with it where it gives no answer.
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|source| CommandError::Start {
            program: program.clone(),
            source,
        })?;
    let mut child = Running(child);
    let talk = |source| CommandError::Talk {
        program: program.clone(),
        source,
    };
    if let Some(mut stdin) = child.0.stdin.take() {
        match stdin.write_all(input) {
            // It may not care.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(talk(error)),
            _ => {}
        }
    }
    let ended = pidfd_open(Pid::from_child(&child.0), PidfdFlags::empty())
        .map_err(|error| talk(error.into()))?;
    let mut stdout = Output::new(child.0.stdout.take(), limit.saturating_add(1)).map_err(talk)?;
    let mut stderr = Output::new(child.0.stderr.take(), STDERR_LIMIT).map_err(talk)?;
    loop {
        let left = deadline.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(CommandError::Deadline {
                program,
                waited: deadline,
            });
        }
        let has_ended = wait(&ended, [&stdout, &stderr], left).map_err(talk)?;
        for output in [&mut stdout, &mut stderr] {
            output.read_some().map_err(talk)?;
            // All that it said is there once it has ended; others may go on.
            while has_ended && output.is_wanted() && output.read_some().map_err(talk)? {}
        }
        if stdout.content.len() > limit {
            return Err(CommandError::TooLong { program, limit });
        }
        if has_ended {
            return Ok(Answer {
                status: child.0.wait().map_err(talk)?,
                stdout: stdout.content,
                stderr: stderr.content,
            });
        }
    }
}

/// Waits until the program has ended, which is told, or says something, or the time is over.
fn wait(ended: &OwnedFd, outputs: [&Output; 2], left: Duration) -> io::Result<bool> {
    let mut fds = vec![PollFd::new(ended, PollFlags::IN)];
    for pipe in outputs.iter().filter_map(|output| output.pipe.as_ref()) {
        fds.push(PollFd::new(pipe, PollFlags::IN));
    }
    let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) => Ok(!fds[0].revents().is_empty()),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What a program says on one of its outputs.
struct Output {
    pipe: Option<File>,
    content: Vec<u8>,
    /// Bytes that are kept; what comes after them is read and forgotten.
    limit: usize,
}

impl Output {
    fn new(pipe: Option<impl Into<OwnedFd>>, limit: usize) -> io::Result<Self> {
        let pipe = pipe.map(|pipe| File::from(pipe.into()));
        if let Some(pipe) = &pipe {
            ioctl_fionbio(pipe, true)?;
        }
        Ok(Self {
            pipe,
            content: Vec::new(),
            limit,
        })
    }

    /// Whether more of it would be kept.
    fn is_wanted(&self) -> bool {
        self.content.len() < self.limit
    }

    /// Reads once, without waiting; whether there was something.
    fn read_some(&mut self) -> io::Result<bool> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(false);
        };
        let mut buffer = [0; 4 << 10];
        match pipe.read(&mut buffer) {
            Ok(0) => {
                self.pipe = None;
                Ok(false)
            }
            Ok(count) => {
                let kept = count.min(self.limit - self.content.len());
                self.content.extend_from_slice(&buffer[..kept]);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// A program that does not outlive its question.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Once it was waited for, its id can be another's.
        if matches!(self.0.try_wait(), Ok(None)) {
            if let Ok(id) = i32::try_from(self.0.id())
                && let Some(group) = Pid::from_raw(id)
            {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = self.0.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn answer_and_status_come_back() {
        let script = "cat; echo oh >&2; exit 3";

        let answer = ask(&mut shell(script), b"hello", 100, 20 * SECOND).unwrap();

        assert_eq!(answer.status.code(), Some(3));
        assert_eq!(
            (answer.stdout, answer.stderr),
            (b"hello".to_vec(), b"oh\n".to_vec())
        );
    }

    #[test]
    fn program_that_hangs_is_ended_with_what_it_started() {
        let started = Instant::now();

        let error = ask(&mut shell("sleep 60 & sleep 60"), b"", 100, SECOND / 5).unwrap_err();

        assert!(matches!(error, CommandError::Deadline { .. }), "{error}");
        assert!(started.elapsed() < 20 * SECOND);
    }

    #[test]
    fn program_that_stays_after_its_answer_is_ended() {
        let script = "exec >&-; sleep 60";

        let error = ask(&mut shell(script), b"", 100, SECOND / 5).unwrap_err();

        assert!(matches!(error, CommandError::Deadline { .. }), "{error}");
    }

    #[test]
    fn program_that_leaves_another_behind_has_answered() {
        let script = "setsid sleep 60 & echo yes";

        let answer = ask(&mut shell(script), b"", 100, 20 * SECOND).unwrap();

        assert_eq!(answer.stdout, b"yes\n");
    }

    #[test]
    fn answer_that_just_fits_is_whole() {
        let script = "head -c 100000 /dev/zero";

        let answer = ask(&mut shell(script), b"", 100_000, 20 * SECOND).unwrap();

        assert_eq!(answer.stdout.len(), 100_000);
    }

    #[test]
    fn endless_complaint_is_cut_and_ended() {
        let started = Instant::now();

        let error = ask(&mut shell("cat /dev/zero >&2"), b"", 100, SECOND / 5).unwrap_err();

        assert!(matches!(error, CommandError::Deadline { .. }), "{error}");
        assert!(started.elapsed() < 20 * SECOND);
    }

    #[test]
    fn long_complaint_does_not_hold_the_program_up() {
        let script = "head -c 1000000 /dev/zero >&2; echo yes";

        let answer = ask(&mut shell(script), b"", 100, 20 * SECOND).unwrap();

        assert_eq!(
            (answer.stdout.as_slice(), answer.stderr.len()),
            (&b"yes\n"[..], STDERR_LIMIT)
        );
    }

    #[test]
    fn endless_answer_is_refused() {
        let error = ask(&mut shell("cat /dev/zero"), b"", 100, 20 * SECOND).unwrap_err();

        assert!(matches!(error, CommandError::TooLong { .. }), "{error}");
    }

    #[test]
    fn missing_program_is_named() {
        let error = ask(&mut Command::new("/nonexistent/x"), b"", 100, SECOND).unwrap_err();

        assert!(
            error
                .to_string()
                .starts_with("/nonexistent/x cannot be started"),
            "{error}"
        );
    }
}
