// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The emulator's process.
//!
//! It inherits sockets and unnamed files and is killed by the kernel when this process ends, however
//! that comes about: so there is nothing on disk and nobody to clean up after.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow};
use command_fds::{CommandFdExt, FdMapping};
use rustix::process::Signal;

use crate::machine::{BootFiles, EMULATOR, Machine, descriptor};
use crate::progress::bound_to_this_process;
use crate::qmp::Monitor;

/// How much of the console is kept for a report, in bytes.
const CONSOLE_KEPT: usize = 16 * 1024;

/// A running emulator. It is killed when this is dropped.
#[derive(Debug)]
pub struct Emulator {
    child: Child,
    /// The monitor.
    pub monitor: Monitor,
    /// The virtio-serial port.
    pub port: UnixStream,
    console: Tail,
}

impl Emulator {
    /// Starts the emulator: booting, or with a state to restore (then it stands still until `cont`).
    ///
    /// # Errors
    ///
    /// If it cannot be started or does not answer.
    pub fn start(
        machine: Machine,
        files: &BootFiles,
        payload: &File,
        state: Option<File>,
    ) -> Result<Self> {
        let (monitor, monitor_end) = UnixStream::pair()?;
        let (console, console_end) = UnixStream::pair()?;
        let (port, port_end) = UnixStream::pair()?;
        // The emulator only takes a descriptor whose access mode is the one that it needs.
        let payload = File::open(format!("/proc/self/fd/{}", payload.as_raw_fd()))
            .context("cannot open the payload again for reading")?;
        let mut mappings = vec![
            mapping(monitor_end, descriptor::MONITOR),
            mapping(console_end, descriptor::CONSOLE),
            mapping(port_end, descriptor::PORT),
            mapping(payload, descriptor::PAYLOAD),
        ];
        let restored = state.is_some();
        mappings.extend(state.map(|state| mapping(state, descriptor::STATE)));

        let mut command = Command::new(EMULATOR);
        command
            .args(machine.arguments(files, restored))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for this process to handle.
            .process_group(0)
            .fd_mappings(mappings)
            .context("cannot arrange the emulator's descriptors")?;
        let mut child = bound_to_this_process(&mut command, Signal::KILL)
            .spawn()
            .context("cannot start the emulator")?;
        // The emulator's ends of the sockets go with the command: only it holds them now.
        drop(command);
        let tail = Tail::default();
        tail.follow(console);
        if let Some(stderr) = child.stderr.take() {
            tail.follow(stderr);
        }
        // From here on, dropping the child would leave it running.
        match Monitor::new(monitor) {
            Ok(monitor) => Ok(Self {
                child,
                monitor,
                port,
                console: tail,
            }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(anyhow!("{error:#}; {}", tail.report()))
            }
        }
    }

    /// The end of what the lab's console and the emulator said, for a report.
    #[must_use]
    pub fn console(&self) -> String {
        self.console.report()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn mapping(descriptor: impl Into<OwnedFd>, number: RawFd) -> FdMapping {
    FdMapping {
        parent_fd: descriptor.into(),
        child_fd: number,
    }
}

/// The end of some streams, collected in the background.
#[derive(Clone, Debug, Default)]
struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    fn follow(&self, mut stream: impl Read + Send + 'static) {
        let kept = Arc::clone(&self.0);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut bytes) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&bytes[..count]);
                let excess = kept.len().saturating_sub(CONSOLE_KEPT);
                kept.drain(..excess);
            }
        });
    }

    fn report(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = kept.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        if text.is_empty() {
            "the lab's console shows nothing".to_owned()
        } else {
            format!("the lab's console ends with:\n{text}\n")
        }
    }
}
