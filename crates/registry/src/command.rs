// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs of the host that are asked something: bounded in time and in what they say.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use thiserror::Error;

/// How often an ending program is looked at.
const POLL: Duration = Duration::from_millis(2);

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
    TooLong { program: String, limit: u64 },
    /// Its pipe broke.
    #[error("{program} cannot be talked to: {source}")]
    Talk { program: String, source: io::Error },
}

/// Runs a program with `input`, which has to fit a pipe's buffer (4 KiB); gives how it ended and what it said.
pub(crate) fn ask(
    command: &mut Command,
    input: &[u8],
    limit: u64,
    deadline: Duration,
) -> Result<(ExitStatus, Vec<u8>), CommandError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let started = Instant::now();
    // A group of its own, so that what it starts ends with it.
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
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
    let (sender, receiver) = mpsc::sync_channel(1);
    if let Some(stdout) = child.0.stdout.take() {
        // Nobody can wait for a pipe with a deadline through std; the thread ends when the group does.
        thread::spawn(move || {
            let mut output = Vec::new();
            let read = stdout
                .take(limit.saturating_add(1))
                .read_to_end(&mut output);
            let _ = sender.send(read.map(|_| output));
        });
    }
    let late = || CommandError::Deadline {
        program: program.clone(),
        waited: deadline,
    };
    let output = receiver
        .recv_timeout(deadline)
        .map_err(|_| late())?
        .map_err(talk)?;
    if output.len() as u64 > limit {
        return Err(CommandError::TooLong { program, limit });
    }
    loop {
        if let Some(status) = child.0.try_wait().map_err(talk)? {
            return Ok((status, output));
        }
        if started.elapsed() > deadline {
            return Err(late());
        }
        thread::sleep(POLL);
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
        let (status, output) = ask(&mut shell("cat; exit 3"), b"hello", 100, 20 * SECOND).unwrap();

        assert_eq!((status.code(), output), (Some(3), b"hello".to_vec()));
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
