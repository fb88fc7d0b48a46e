// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Programs that are started to do something: each has a deadline, and what it says is bounded.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

/// Of what a program says as its error, this much is kept.
const MAX_STDERR: usize = 16 << 10;

/// What a program answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    Start(io::Error),
    /// It was killed at its deadline.
    Deadline,
    /// It was killed when it had said more than is taken.
    TooLong,
    Io(io::Error),
}

/// Runs a program in a process group of its own, which is killed whole if it does not end in time. It does not outlive this
/// thread.
pub(crate) fn run(
    command: &mut Command,
    stdin: &[u8],
    deadline: Duration,
    max_stdout: usize,
) -> Result<Answer, Failure> {
    let ends = Instant::now() + deadline;
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    // SAFETY: between fork and exec there is one system call, without memory allocated or locks taken.
    unsafe {
        command.pre_exec(|| {
            Ok(rustix::process::set_parent_process_death_signal(Some(
                Signal::KILL,
            ))?)
        });
    }
    let mut running =
        Running::new(command.spawn().map_err(Failure::Start)?).map_err(Failure::Io)?;
    let result = running.converse(stdin, ends, max_stdout);
    if result.is_err() {
        running.kill();
    }
    let status = running.child.wait().map_err(Failure::Io)?;
    result.map(|(stdout, stderr)| Answer {
        status,
        stdout,
        stderr,
    })
}

struct Running {
    child: Child,
    pidfd: OwnedFd,
}

impl Running {
    fn new(mut child: Child) -> io::Result<Self> {
        let opened = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        match opened {
            Ok(pidfd) => Ok(Self { child, pidfd }),
            Err(error) => {
                // It is ours and not waited for, so the number is still its own.
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    fn kill(&self) {
        // Its group may be gone already.
        let _ = rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::KILL);
    }

    /// Writes and reads until the program has ended; what its own children still hold open is not waited for.
    fn converse(
        &mut self,
        input: &[u8],
        ends: Instant,
        max_stdout: usize,
    ) -> Result<(Vec<u8>, Vec<u8>), Failure> {
        let mut stdin = self.child.stdin.take();
        let mut stdout = self.child.stdout.take();
        let mut stderr = self.child.stderr.take();
        for fd in [
            stdin.as_ref().map(AsFd::as_fd),
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
        ]
        .into_iter()
        .flatten()
        {
            rustix::io::ioctl_fionbio(fd, true).map_err(|error| Failure::Io(error.into()))?;
        }
        let mut rest = input;
        let mut said = Vec::new();
        let mut complained = Vec::new();
        loop {
            if rest.is_empty() {
                stdin = None;
            }
            let has_ended =
                self.wait_for_any(stdin.as_ref(), stdout.as_ref(), stderr.as_ref(), ends)?;
            if let Some(pipe) = &mut stdin {
                match pipe.write(rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // It does not want to read: that is its right.
                    Err(_) => rest = &[],
                }
            }
            if drain(&mut stdout, &mut said, max_stdout).map_err(Failure::Io)? {
                return Err(Failure::TooLong);
            }
            drain(&mut stderr, &mut complained, MAX_STDERR).map_err(Failure::Io)?;
            complained.truncate(MAX_STDERR);
            if has_ended {
                return Ok((said, complained));
            }
        }
    }

    /// Whether the program has ended.
    fn wait_for_any(
        &self,
        stdin: Option<&impl AsFd>,
        stdout: Option<&impl AsFd>,
        stderr: Option<&impl AsFd>,
        ends: Instant,
    ) -> Result<bool, Failure> {
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        fds.extend(stdin.map(|fd| PollFd::new(fd, PollFlags::OUT)));
        fds.extend(stdout.map(|fd| PollFd::new(fd, PollFlags::IN)));
        fds.extend(stderr.map(|fd| PollFd::new(fd, PollFlags::IN)));
        let left = ends.saturating_duration_since(Instant::now());
        // Not left to the time that nothing comes: that never comes to one that talks without end.
        if left.is_zero() {
            return Err(Failure::Deadline);
        }
        let timeout = Timespec::try_from(left).map_err(|_| Failure::Deadline)?;
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) => Err(Failure::Deadline),
            Ok(_) => Ok(!fds[0].revents().is_empty()),
            // A signal: the deadline is the next call's.
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(Failure::Io(error.into())),
        }
    }
}

/// Reads what there is; closes at the end. Whether it is more than may be.
fn drain(pipe: &mut Option<impl Read>, into: &mut Vec<u8>, limit: usize) -> io::Result<bool> {
    let Some(open) = pipe else { return Ok(false) };
    let mut part = [0; 16 << 10];
    loop {
        match open.read(&mut part) {
            Ok(0) => {
                *pipe = None;
                return Ok(false);
            }
            Ok(read) => {
                into.extend_from_slice(&part[..read]);
                if into.len() > limit {
                    return Ok(true);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn program_reads_and_answers() {
        let answer = run(
            &mut shell("cat; echo oh >&2; exit 3"),
            b"hello",
            LONG,
            1 << 20,
        )
        .unwrap();

        assert_eq!(answer.stdout, b"hello");
        assert_eq!(answer.stderr, b"oh\n");
        assert_eq!(answer.status.code(), Some(3));
    }

    #[test]
    fn more_than_a_pipe_holds_goes_both_ways() {
        let input = vec![b'x'; 1 << 20];

        let answer = run(&mut shell("cat"), &input, LONG, 2 << 20).unwrap();

        assert_eq!(answer.stdout.len(), input.len());
    }

    #[test]
    fn program_that_does_not_read_is_no_failure() {
        let answer = run(
            &mut shell("exec 0<&-; echo done"),
            &vec![b'x'; 1 << 20],
            LONG,
            1 << 20,
        )
        .unwrap();

        assert_eq!(answer.stdout, b"done\n");
    }

    #[test]
    fn program_that_hangs_is_killed_with_its_children() {
        let started = Instant::now();

        let failure = run(
            &mut shell("sleep 1000 & sleep 1000"),
            b"",
            Duration::from_millis(200),
            1 << 20,
        )
        .unwrap_err();

        assert!(matches!(failure, Failure::Deadline), "{failure:?}");
        assert!(started.elapsed() < LONG);
    }

    #[test]
    fn program_that_talks_without_end_is_killed() {
        let failure = run(&mut shell("yes"), b"", LONG, 1 << 20).unwrap_err();

        assert!(matches!(failure, Failure::TooLong), "{failure:?}");
    }

    #[test]
    fn deadline_comes_though_there_is_always_something_to_read() {
        let (flood, mut writer) = io::pipe().unwrap();
        writer.write_all(b"x").unwrap();
        let mut sleeping =
            Running::new(Command::new("sleep").arg("1000").spawn().unwrap()).unwrap();

        let result = sleeping.wait_for_any(
            None::<&OwnedFd>,
            None::<&OwnedFd>,
            Some(&flood),
            Instant::now(),
        );
        sleeping.child.kill().unwrap();
        sleeping.child.wait().unwrap();

        assert!(matches!(result, Err(Failure::Deadline)), "{result:?}");
    }

    #[test]
    fn complaints_without_end_are_cut() {
        let answer = run(
            &mut shell("head -c 1000000 /dev/zero >&2"),
            b"",
            LONG,
            1 << 20,
        )
        .unwrap();

        assert_eq!(answer.stderr.len(), MAX_STDERR);
    }

    #[test]
    fn child_that_holds_the_pipe_is_not_waited_for() {
        let started = Instant::now();

        let answer = run(&mut shell("sleep 5 & echo done"), b"", LONG, 1 << 20).unwrap();

        assert_eq!(answer.stdout, b"done\n");
        assert!(started.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn program_that_does_not_exist_is_told() {
        let failure = run(&mut Command::new("/nonexistent"), b"", LONG, 1).unwrap_err();

        assert!(matches!(failure, Failure::Start(_)), "{failure:?}");
    }
}
