// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A terminal with a test in front of it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// How long what is awaited may take to appear.
const PATIENCE: Duration = Duration::from_secs(60);

/// A terminal: what is typed on it, and what appears.
pub struct Terminal {
    near: File,
    far: File,
    seen: Arc<Mutex<String>>,
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new(80, 25)
    }
}

impl Terminal {
    /// A terminal of this size.
    pub fn new(columns: u16, rows: u16) -> Self {
        let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .expect("there are terminals");
        grantpt(&near).expect("a terminal can be used");
        unlockpt(&near).expect("a terminal can be used");
        let name = ptsname(&near, Vec::new()).expect("a terminal has a name");
        let far = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(name.to_str().expect("its name is text"))
            .expect("a terminal has a far end");
        let terminal = Self {
            near: near.into(),
            far,
            seen: Arc::default(),
        };
        terminal.resize(columns, rows);
        terminal.watch();
        terminal
    }

    /// Changes its size.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.near, size).expect("a terminal has a size");
    }

    /// Types `text`.
    pub fn type_in(&self, text: &str) {
        (&self.near)
            .write_all(text.as_bytes())
            .expect("a terminal takes what is typed");
    }

    /// Is taken away from whoever is on it, as a window that is closed or a connection that breaks.
    pub fn hang_up(&self) {
        /// Of `asm-generic/ioctls.h`; the bindings have it not.
        const TIOCVHANGUP: libc::Ioctl = 0x5437;
        // SAFETY: the request takes no argument.
        let outcome = unsafe { libc::ioctl(self.far.as_raw_fd(), TIOCVHANGUP) };
        assert_eq!(outcome, 0, "a terminal can be hung up by root");
    }

    /// Waits until `text` has appeared, and forgets all up to it.
    ///
    /// # Panics
    ///
    /// Panics where it does not appear.
    #[track_caller]
    pub fn await_text(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(start) = seen.find(text) {
                seen.drain(..start + text.len());
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{text:?} has not appeared, but {seen:?}"
            );
            drop(seen);
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it does by itself what terminals do: show what is typed, and wait for the end of a line.
    pub fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.far)
            .expect("a terminal has settings")
            .local_modes;
        modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    /// Waits until it [does](Self::is_cooked) what terminals do, or no longer does.
    ///
    /// # Panics
    ///
    /// Panics where it does not come to that.
    #[track_caller]
    pub fn await_cooked(&self, cooked: bool) {
        let deadline = Instant::now() + PATIENCE;
        while self.is_cooked() != cooked {
            assert!(
                Instant::now() < deadline,
                "the terminal is as it should not be"
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn far_end(&self) -> OwnedFd {
        self.far
            .as_fd()
            .try_clone_to_owned()
            .expect("a descriptor can be duplicated")
    }

    /// Gathers what appears, for as long as the terminal lives.
    fn watch(&self) {
        let mut near = self
            .near
            .try_clone()
            .expect("a descriptor can be duplicated");
        let seen = Arc::clone(&self.seen);
        thread::spawn(move || {
            let mut piece = [0; 4096];
            // It fails once nobody has the far end open.
            while let Ok(length @ 1..) = near.read(&mut piece) {
                let text = String::from_utf8_lossy(&piece[..length]);
                seen.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&text);
            }
        });
    }
}

/// Has a command read from and write to a terminal, which is that of its session.
pub(crate) fn on_terminal(command: &mut Command, terminal: &OwnedFd) {
    let end = || {
        Stdio::from(
            terminal
                .try_clone()
                .expect("a descriptor can be duplicated"),
        )
    };
    command.stdin(end()).stdout(end());
    // SAFETY: between fork and exec the closure only makes system calls.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        });
    }
}
