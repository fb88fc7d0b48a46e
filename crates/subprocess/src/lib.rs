// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![doc = include_str!("../README.md")]

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, kill_process_group, pidfd_open,
    set_parent_process_death_signal,
};
use thiserror::Error;

/// What a program may take and say.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'b> {
    /// How long it may take, from its start to its end.
    pub deadline: Duration,
    /// The most bytes of its standard output. Where it says more, that is no answer.
    pub stdout: usize,
    /// How many bytes of its standard error are kept. What comes after them is read and forgotten.
    pub stderr: usize,
    /// The program is killed once this is readable: a pipe that a signal handler writes to, for one.
    pub cancel: Option<BorrowedFd<'b>>,
}

/// How a program ended, and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether it succeeded.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// The beginning of its standard error.
    pub stderr: Vec<u8>,
}

/// A program gave no answer. Nothing of it runs any more.
#[derive(Debug, Error)]
#[error("{program} {cause}")]
pub struct Failure {
    /// The program, as it was called.
    pub program: String,
    /// Why not.
    pub cause: Cause,
}

/// Why there is no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Cause {
    /// It is not there, or cannot be started.
    #[error("cannot be started: {0}")]
    Start(io::Error),
    /// It was killed at its deadline, which was so long.
    #[error("did not answer within {:.1} s", .0.as_secs_f64())]
    Deadline(Duration),
    /// It was killed when it had said more than so many bytes.
    #[error("says more than {0} bytes")]
    TooLong(usize),
    /// It was killed, or not even started, because nobody wants its answer any more.
    #[error("gives no answer, as none is wanted any more")]
    Cancelled,
    /// Its pipes broke, or the kernel lacks what is needed to wait for it.
    #[error("cannot be talked to: {0}")]
    Talk(io::Error),
}

/// Starts a program, gives it `input` as its standard input, and waits for its end. Its process group is its own; its three
/// standard streams are pipes, whatever `command` says of them.
///
/// It may leave its input unread. What it starts and leaves running is not waited for.
///
/// # Errors
///
/// It could not be started, or did not keep to its bounds; then it is killed, with all of its process group.
pub fn run(command: Command, input: &[u8], bounds: &Bounds<'_>) -> Result<Answer, Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    if bounds.cancel.is_some_and(is_readable) {
        let cause = Cause::Cancelled;
        return Err(Failure { program, cause });
    }
    start(command)
        .and_then(|running| running.converse(input, bounds))
        .map_err(|cause| Failure { program, cause })
}

fn is_readable(descriptor: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    let now = Timespec::default();
    matches!(poll(&mut fds, Some(&now)), Ok(1))
}

fn start(mut command: Command) -> Result<Running, Cause> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let starter = getpid();
    // SAFETY: between fork and exec there are two system calls, without memory allocated or locks taken.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // Whoever ended before that call sends no signal. (None is one in another PID namespace.)
            match getppid() {
                Some(parent) if parent != starter => Err(Errno::SRCH.into()),
                _ => Ok(()),
            }
        });
    }
    command
        .spawn()
        .map(|child| Running {
            child,
            has_answered: false,
        })
        .map_err(Cause::Start)
}

/// A program that does not outlive its question, nor does what it has started, unless there is an answer.
struct Running {
    child: Child,
    has_answered: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.has_answered {
            // Until it is waited for, its number is no other's, though it may have ended.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

impl Running {
    /// Writes and reads until the program has ended; what its own children still hold open is not waited for.
    fn converse(mut self, input: &[u8], bounds: &Bounds<'_>) -> Result<Answer, Cause> {
        let started = Instant::now();
        let talk = |error: Errno| Cause::Talk(error.into());
        let ended = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).map_err(talk)?;
        let mut stdin = self.child.stdin.take();
        if let Some(pipe) = &stdin {
            ioctl_fionbio(pipe, true).map_err(talk)?;
        }
        let mut stdout = Output::new(self.child.stdout.take()).map_err(talk)?;
        let mut stderr = Output::new(self.child.stderr.take()).map_err(talk)?;
        let mut rest = input;
        loop {
            if rest.is_empty() {
                stdin = None;
            }
            let left = bounds.deadline.saturating_sub(started.elapsed());
            // Not left to the time that nothing comes: that never comes to one that talks without end.
            if left.is_zero() {
                return Err(Cause::Deadline(bounds.deadline));
            }
            let cancel = bounds.cancel.unwrap_or(ended.as_fd());
            let mut fds = vec![
                PollFd::new(&ended, PollFlags::IN),
                PollFd::from_borrowed_fd(cancel, PollFlags::IN),
            ];
            fds.extend(stdin.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
            fds.extend(stdout.poll());
            fds.extend(stderr.poll());
            // What is more than the kernel can count is as good as for ever.
            let timeout = Timespec::try_from(left).ok();
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(talk(error)),
            }
            let [has_ended, is_cancelled] = [0, 1].map(|place| !fds[place].revents().is_empty());
            if bounds.cancel.is_some() && is_cancelled && !has_ended {
                return Err(Cause::Cancelled);
            }
            if let Some(pipe) = &mut stdin {
                match pipe.write(rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // It does not want to read: that is its right.
                    Err(_) => rest = &[],
                }
            }
            // All that it said is there once it has ended.
            if stdout.take(bounds.stdout).map_err(Cause::Talk)? {
                return Err(Cause::TooLong(bounds.stdout));
            }
            if stderr.take(bounds.stderr).map_err(Cause::Talk)? {
                stderr.said.truncate(bounds.stderr);
            }
            if has_ended {
                self.has_answered = true;
                return Ok(Answer {
                    status: self.child.wait().map_err(Cause::Talk)?,
                    stdout: stdout.said,
                    stderr: stderr.said,
                });
            }
        }
    }
}

/// One of a program's outputs.
struct Output<P> {
    /// Until its end.
    pipe: Option<P>,
    said: Vec<u8>,
}

impl<P: AsFd + Read> Output<P> {
    fn new(pipe: Option<P>) -> Result<Self, Errno> {
        if let Some(pipe) = &pipe {
            ioctl_fionbio(pipe, true)?;
        }
        Ok(Self {
            pipe,
            said: Vec::new(),
        })
    }

    fn poll(&self) -> Option<PollFd<'_>> {
        let pipe = self.pipe.as_ref()?;
        Some(PollFd::new(pipe, PollFlags::IN))
    }

    /// Takes what there is, until that is more than `limit`; whether it is.
    fn take(&mut self, limit: usize) -> io::Result<bool> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(false);
        };
        let mut part = [0; 16 << 10];
        loop {
            match pipe.read(&mut part) {
                Ok(0) => {
                    self.pipe = None;
                    return Ok(false);
                }
                Ok(count) => {
                    self.said.extend_from_slice(&part[..count]);
                    if self.said.len() > limit {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::thread;

    use rstest::rstest;

    use super::*;

    /// Never reached, but by a test that is about to fail.
    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(200);

    fn ask(script: &str, input: &[u8], deadline: Duration) -> Result<Answer, Cause> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let bounds = Bounds {
            deadline,
            stdout: 100_000,
            stderr: 1000,
            cancel: None,
        };
        run(command, input, &bounds).map_err(|failure| failure.cause)
    }

    #[test]
    fn what_a_program_started_goes_with_its_failure_though_that_has_ended() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 1000 & echo $!"]);
        let mut running = start(command).unwrap();
        let ended = pidfd_open(Pid::from_child(&running.child), PidfdFlags::empty()).unwrap();
        let mut said = [0; 16];
        let count = running
            .child
            .stdout
            .take()
            .unwrap()
            .read(&mut said)
            .unwrap();
        let started: i32 = str::from_utf8(&said[..count])
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let started = pidfd_open(Pid::from_raw(started).unwrap(), PidfdFlags::empty()).unwrap();
        while !is_readable(ended.as_fd()) {
            thread::yield_now();
        }

        drop(running);

        let mut fds = [PollFd::new(&started, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&LONG.try_into().unwrap())), Ok(1));
    }

    #[test]
    fn program_reads_and_answers() {
        let answer = ask("cat; echo oh >&2; exit 3", b"hello", LONG).unwrap();

        assert_eq!(answer.status.code(), Some(3));
        assert_eq!(answer.stdout, b"hello");
        assert_eq!(answer.stderr, b"oh\n");
    }

    #[test]
    fn more_than_a_pipe_holds_goes_both_ways() {
        let input = vec![b'x'; 100_000];

        let answer = ask("cat", &input, LONG).unwrap();

        assert_eq!(answer.stdout, input);
    }

    #[rstest]
    #[case::not_at_all("exec 0<&-; echo done")]
    #[case::not_to_the_end("read -r word; echo done")]
    fn program_need_not_read(#[case] script: &str) {
        let mut input = b"word\n".to_vec();
        input.resize(1 << 20, b'x');

        let answer = ask(script, &input, LONG).unwrap();

        assert_eq!(answer.stdout, b"done\n");
    }

    #[rstest]
    #[case::hangs_with_a_child("sleep 60 & sleep 60")]
    #[case::has_said_all("exec >&- 2>&-; sleep 60")]
    #[case::complains_without_end("exec cat /dev/zero >&2")]
    #[case::does_not_read("exec sleep 60")]
    fn program_is_killed_at_its_deadline(#[case] script: &str) {
        let started = Instant::now();

        let cause = ask(script, &[b'x'; 1 << 20], SHORT).unwrap_err();

        assert!(matches!(cause, Cause::Deadline(SHORT)), "{cause:?}");
        assert!(started.elapsed() < LONG);
    }

    #[test]
    fn what_a_killed_program_started_is_killed() {
        let (mut alive, held) = io::pipe().unwrap();
        let own = std::process::id();
        let script = format!(
            "exec 9>/proc/{own}/fd/{}; sleep 60 & sleep 60",
            held.as_raw_fd()
        );

        let cause = ask(&script, b"", SHORT).unwrap_err();
        drop(held);

        assert!(matches!(cause, Cause::Deadline(_)), "{cause:?}");
        // The end comes once nobody has the pipe open.
        assert_eq!(alive.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn program_whose_answer_is_not_wanted_any_more_is_killed() {
        let (cancel, mut canceller) = io::pipe().unwrap();
        let late = thread::spawn(move || {
            thread::sleep(SHORT);
            canceller.write_all(b"x").unwrap();
            canceller
        });
        let bounds = Bounds {
            deadline: LONG,
            stdout: 1,
            stderr: 1,
            cancel: Some(cancel.as_fd()),
        };
        let mut command = Command::new("sleep");
        command.arg("60");

        let failure = run(command, b"", &bounds).unwrap_err();

        assert!(matches!(failure.cause, Cause::Cancelled), "{failure:?}");
        late.join().unwrap();
    }

    #[test]
    fn program_whose_answer_is_not_wanted_is_not_started() {
        let (cancel, canceller) = io::pipe().unwrap();
        drop(canceller);
        let bounds = Bounds {
            deadline: LONG,
            stdout: 1,
            stderr: 1,
            cancel: Some(cancel.as_fd()),
        };

        let failure = run(Command::new("/nonexistent"), b"", &bounds).unwrap_err();

        assert!(matches!(failure.cause, Cause::Cancelled), "{failure:?}");
    }

    #[test]
    fn endless_answer_is_none() {
        let cause = ask("exec cat /dev/zero", b"", LONG).unwrap_err();

        assert!(matches!(cause, Cause::TooLong(100_000)), "{cause:?}");
    }

    #[test]
    fn answer_that_just_fits_is_whole() {
        let answer = ask("head -c 100000 /dev/zero", b"", LONG).unwrap();

        assert_eq!(answer.stdout.len(), 100_000);
    }

    #[test]
    fn long_complaint_is_cut_and_holds_nothing_up() {
        let answer = ask("head -c 1000000 /dev/zero >&2; echo yes", b"", LONG).unwrap();

        assert_eq!(
            (answer.stdout.as_slice(), answer.stderr.len()),
            (&b"yes\n"[..], 1000)
        );
    }

    #[rstest]
    #[case::of_its_group("sleep 60 & echo yes")]
    #[case::of_another("setsid sleep 60 & echo yes")]
    fn child_that_holds_the_pipe_is_not_waited_for(#[case] script: &str) {
        let started = Instant::now();

        let answer = ask(script, b"", LONG).unwrap();

        assert_eq!(answer.stdout, b"yes\n");
        assert!(started.elapsed() < LONG);
    }

    #[test]
    fn program_that_does_not_exist_is_named() {
        let bounds = Bounds {
            deadline: LONG,
            stdout: 1,
            stderr: 1,
            cancel: None,
        };

        let failure = run(Command::new("/nonexistent/x"), b"", &bounds).unwrap_err();

        assert!(
            failure
                .to_string()
                .starts_with("/nonexistent/x cannot be started: No such file"),
            "{failure}"
        );
    }

    #[test]
    fn deadline_without_end_is_none() {
        let answer = ask("echo yes", b"", Duration::MAX).unwrap();

        assert_eq!(answer.stdout, b"yes\n");
    }

    #[test]
    fn program_does_not_outlive_the_process_that_waits_for_it() {
        const AGAIN: &str = "CORACLE_TEST_IS_KILLED";
        let own_name = "tests::program_does_not_outlive_the_process_that_waits_for_it";
        // Another process of this test asks, and is killed.
        if let Some(told) = env::var_os(AGAIN) {
            let script = format!("echo $$ >{}; exec sleep 60", told.display());
            let _ = ask(&script, b"", LONG);
            return;
        }
        let told = env::temp_dir().join(format!("coracle-subprocess-{}", std::process::id()));
        let mut again = Command::new(env::current_exe().unwrap())
            .args([own_name, "--exact"])
            .env(AGAIN, &told)
            .spawn()
            .unwrap();
        let started = Instant::now();
        let program = loop {
            let said = fs::read_to_string(&told).unwrap_or_default();
            if said.ends_with('\n') {
                break Pid::from_raw(said.trim().parse().unwrap()).unwrap();
            }
            assert!(started.elapsed() < LONG);
            thread::sleep(Duration::from_millis(10));
        };
        fs::remove_file(&told).unwrap();
        let ended = pidfd_open(program, PidfdFlags::empty()).unwrap();

        again.kill().unwrap();
        again.wait().unwrap();

        let timeout = Timespec::try_from(LONG).unwrap();
        let mut fds = [PollFd::new(&ended, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&timeout)), Ok(1));
    }
}
