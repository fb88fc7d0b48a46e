// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A started `coracle`, watched while it runs.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long any one run may take: emulated machines are slow, hung ones must still end.
const PATIENCE: Duration = Duration::from_secs(120);

/// A run that goes on. Its standard error is gathered from the start.
pub struct Running {
    child: Child,
    /// Dropped when the run has ended: until then, the watchdog kills it after a while.
    watched: Sender<()>,
    stdout: Option<BufReader<ChildStdout>>,
    stderr: JoinHandle<String>,
}

/// A run that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit status as a shell would see it.
    pub status: i32,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: String,
}

impl Running {
    pub(crate) fn start(mut command: Command, group: &Path) -> Self {
        let mut group = OpenOptions::new()
            .write(true)
            .open(group)
            .expect("the group takes processes");
        // SAFETY: between fork and exec the closure only makes a system call.
        unsafe {
            command.pre_exec(move || group.write_all(b"0"));
        }
        let mut child = command.spawn().expect("coracle can be executed");
        let stdout = child.stdout.take().map(BufReader::new);
        let mut stderr = child.stderr.take().expect("standard error is a pipe");
        let stderr = thread::spawn(move || {
            let mut text = Vec::new();
            stderr.read_to_end(&mut text).expect("a pipe can be read");
            String::from_utf8_lossy(&text).into_owned()
        });
        Self {
            watched: watch(child.id().cast_signed()),
            child,
            stdout,
            stderr,
        }
    }

    /// Its standard input, to be dropped for the end of it.
    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("standard input is a pipe")
    }

    /// The next line of its standard output.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout
            .as_mut()
            .expect("standard output is a pipe")
            .read_line(&mut line)
            .expect("output is text");
        line.trim_end().to_owned()
    }

    /// Closes our end of its standard output.
    pub fn close_output(mut self) -> Self {
        self.stdout = None;
        self
    }

    /// The number of its own process.
    pub fn id(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the process is a child that has not been waited for, so the number is its own.
        let sent = unsafe { libc::kill(self.id(), signal) };
        assert_eq!(sent, 0, "the run can be signalled");
    }

    /// Writes `bytes` to its standard input from now on, and closes that.
    pub(crate) fn write(&mut self, bytes: Vec<u8>) {
        let mut stdin = self.stdin();
        // It ends with the run, at the latest: a reader that stops reading is a test's subject.
        thread::spawn(move || stdin.write_all(&bytes));
    }

    /// Waits for the end.
    pub fn finish(mut self) -> Finished {
        let mut stdout = Vec::new();
        if let Some(mut pipe) = self.stdout.take() {
            pipe.read_to_end(&mut stdout).expect("a pipe can be read");
        }
        let status = self.child.wait().expect("a child can be waited for");
        drop(self.watched);
        let status = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Finished {
            status,
            stdout,
            stderr: self.stderr.join().expect("the reader does not panic"),
        }
    }
}

/// Kills a process after [`PATIENCE`], unless what this returns is dropped before.
fn watch(process: i32) -> Sender<()> {
    let (alive, ended) = mpsc::channel::<()>();
    thread::spawn(move || {
        if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            // SAFETY: the process has not been waited for, so the number is its own.
            unsafe { libc::kill(process, libc::SIGKILL) };
        }
    });
    alive
}

impl Finished {
    /// Its standard output as text, without the end of the last line.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Fails unless the run ended with `status`.
    #[track_caller]
    pub fn expect(self, status: i32) -> Self {
        assert_eq!(
            self.status,
            status,
            "stdout: {}\nstderr: {}",
            String::from_utf8_lossy(&self.stdout),
            self.stderr
        );
        self
    }

    /// Fails unless `words` are in its standard error.
    #[track_caller]
    pub fn says(self, words: &str) -> Self {
        assert!(
            self.stderr.contains(words),
            "'{words}' is not in: {}",
            self.stderr
        );
        self
    }

    /// Fails unless its standard error is one line that has all `words`.
    #[track_caller]
    pub fn says_once(self, words: &[&str]) -> Self {
        assert_eq!(self.stderr.trim_end().lines().count(), 1, "{}", self.stderr);
        words.iter().fold(self, |run, words| run.says(words))
    }
}
