// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM process and its control socket.

use std::fs;
use std::io::{BufRead, BufReader, IoSlice, PipeReader, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use coracle_vmm::Config;
use coracle_vmm::role::{Action, Event, Request};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::{file, kernel};

/// For how long anything is waited for.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A VMM process, killed when dropped.
pub struct Vmm {
    /// The process.
    pub process: Child,
    /// Our end of its control socket.
    pub control: BufReader<UnixStream>,
}

impl Vmm {
    /// Starts a VMM that inherits `descriptors` from 4 on.
    pub fn start(descriptors: Vec<OwnedFd>) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut inherited = vec![OwnedFd::from(theirs)];
        inherited.extend(descriptors);
        let mut command = Command::new(env!("CARGO_BIN_EXE_coracle-vmm"));
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        // SAFETY: between fork and exec only descriptors are duplicated.
        unsafe {
            command.pre_exec(move || {
                // Out of the way first, so that no number is overwritten before it is read.
                let high: Vec<RawFd> = inherited
                    .iter()
                    .map(|fd| libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 100))
                    .collect();
                for (number, fd) in (3..).zip(high) {
                    if libc::dup2(fd, number) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        Self {
            process: command.spawn().unwrap(),
            control: BufReader::new(ours),
        }
    }

    /// Starts a VMM with this kernel code; `change` may add what it inherits as descriptors from 5 on.
    pub fn with_guest(code: &[u8], more: Vec<OwnedFd>, change: impl FnOnce(&mut Config)) -> Self {
        let mut descriptors = vec![OwnedFd::from(file(&kernel(code)))];
        descriptors.extend(more);
        let mut vmm = Self::start(descriptors);
        let mut config = Config::new(1, 16, 4);
        change(&mut config);
        vmm.send(&serde_json::to_vec(&config).unwrap());
        vmm
    }

    /// Sends to its control socket.
    pub fn send(&mut self, bytes: &[u8]) {
        self.control.get_mut().write_all(bytes).unwrap();
    }

    /// The next event, or nothing once the process has closed its end.
    pub fn event(&mut self) -> Option<Event> {
        let mut line = String::new();
        self.control.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }

    /// Sends a request, with these descriptors, and returns its answer.
    pub fn ask(&mut self, action: Action, descriptors: &[BorrowedFd<'_>]) -> Event {
        let line = serde_json::to_string(&Request { id: 7, action }).unwrap();
        self.send_with(format!("{line}\n").as_bytes(), descriptors);
        self.event().unwrap()
    }

    /// Sends to its control socket, with these descriptors.
    pub fn send_with(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        let sent = sendmsg(
            self.control.get_ref(),
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::empty(),
        );
        assert_eq!(sent, Ok(bytes.len()));
    }

    /// All events up to the end, and the status.
    pub fn finish(mut self) -> (Vec<Event>, ExitStatus, String) {
        let events = std::iter::from_fn(|| self.event()).collect();
        let status = self.wait();
        let mut stderr = String::new();
        let mut pipe = self.process.stderr.take().unwrap();
        pipe.read_to_string(&mut stderr).unwrap();
        (events, status, stderr)
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < DEADLINE, "the VMM does not end");
            sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the guest has filled the pipe that its serial port leads to, and its vCPU is inside of a write to it.
    pub fn fill_up(&self, pipe: &PipeReader) {
        let pipe = fs::read_link(format!("/proc/self/fd/{}", pipe.as_raw_fd())).unwrap();
        let begin = Instant::now();
        while !self.waits_for(&pipe) {
            assert!(
                begin.elapsed() < DEADLINE,
                "the guest does not fill its pipe"
            );
            sleep(Duration::from_millis(5));
        }
    }

    /// Whether a thread of it waits in a system call on the file that a descriptor's link names so.
    fn waits_for(&self, link: &Path) -> bool {
        let threads = fs::read_dir(self.proc("task")).unwrap();
        threads.flatten().any(|thread| {
            // Its number and its arguments, or that there is none.
            let call = fs::read_to_string(thread.path().join("syscall")).unwrap_or_default();
            let first = call
                .split(' ')
                .nth(1)
                .and_then(|word| word.strip_prefix("0x"));
            let descriptor = first.and_then(|first| u32::from_str_radix(first, 16).ok());
            let path = descriptor.map(|number| self.proc(&format!("fd/{number}")));
            path.and_then(|path| fs::read_link(path).ok()).as_deref() == Some(link)
        })
    }

    /// Waits until the first vCPU is at this address.
    pub fn wait_until_at(&mut self, address: u64) {
        let begin = Instant::now();
        loop {
            let answer = self.ask(Action::Vcpus, &[]);
            match &answer {
                Event::Vcpus { vcpus, .. } if vcpus[0].rip == address => return,
                _ => assert!(begin.elapsed() < DEADLINE, "{answer:?}"),
            }
        }
    }

    /// Waits until so many of its threads, of those whose names are picked, are confined by a filter: what `/proc` says
    /// of them.
    pub fn confined_threads(&self, count: usize, picked: fn(&str) -> bool) -> Vec<String> {
        let begin = Instant::now();
        loop {
            let threads: Vec<_> = fs::read_dir(self.proc("task"))
                .unwrap()
                .flat_map(|task| fs::read_to_string(task.unwrap().path().join("status")))
                .filter(|status| {
                    let name = status.lines().next().unwrap().strip_prefix("Name:\t");
                    picked(name.unwrap())
                })
                .collect();
            let is_confined = |status: &String| status.contains("\nSeccomp:\t2\n");
            if threads.len() == count && threads.iter().all(is_confined) {
                return threads;
            }
            assert!(begin.elapsed() < DEADLINE, "{threads:?}");
            sleep(Duration::from_millis(5));
        }
    }

    /// A file about the process in `/proc`.
    pub fn proc(&self, name: &str) -> std::path::PathBuf {
        Path::new("/proc")
            .join(self.process.id().to_string())
            .join(name)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The message of the error that ended it.
pub fn error_message(events: &[Event]) -> &str {
    match events.last() {
        Some(Event::Error { message }) => message,
        other => panic!("no error, but {other:?}"),
    }
}
