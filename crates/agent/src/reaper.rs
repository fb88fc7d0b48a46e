// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Waits for children: those that the agent made, and the orphans that every PID 1 inherits.
//!
//! One thread does all the waiting, so that no wait takes the status that another one is for. It looks at a dead child
//! without taking it, asks whether somebody wants to know, and only then takes it. A child is made and entered under the same
//! lock, and so cannot be dead and taken for an orphan before it is known.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its status, or 128 + n if signal n ended it.
    pub status: u32,
    /// When its end was noticed, nanoseconds since the epoch.
    pub at_nanoseconds: u64,
}

/// A process that was made by [`Reaper::spawn`].
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: OwnedFd,
    exit: Mutex<Option<Exit>>,
    ended: Condvar,
}

/// Waits for all children of this process. There must be only one.
#[derive(Debug, Default)]
pub struct Reaper {
    children: Mutex<HashMap<i32, Arc<Child>>>,
    spawned: Condvar,
}

impl Reaper {
    /// Makes a child by `spawn`, which gives its PID and PID descriptor.
    ///
    /// # Errors
    ///
    /// Those of `spawn`.
    pub fn spawn(
        &self,
        spawn: impl FnOnce() -> io::Result<(i32, OwnedFd)>,
    ) -> io::Result<Arc<Child>> {
        let mut children = lock(&self.children);
        let (pid, pidfd) = spawn()?;
        let child = Arc::new(Child::new(pid, pidfd));
        children.insert(pid, Arc::clone(&child));
        self.spawned.notify_all();
        Ok(child)
    }

    /// Enters a child that somebody else has made for this process: a sibling of its maker. One that is dead is as good,
    /// unless it has been taken.
    ///
    /// # Errors
    ///
    /// It is no child of this process, has been taken as an orphan, or is entered already.
    pub fn adopt(&self, pidfd: OwnedFd) -> io::Result<Arc<Child>> {
        let mut children = lock(&self.children);
        // Nothing is taken while the lock is held: what is a child here stays one.
        check_child(&pidfd)?;
        let pid = pid_of(&pidfd)?;
        if children.contains_key(&pid) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let child = Arc::new(Child::new(pid, pidfd));
        children.insert(pid, Arc::clone(&child));
        self.spawned.notify_all();
        Ok(child)
    }

    /// Takes dead children for as long as this process lives.
    ///
    /// # Errors
    ///
    /// The kernel refuses to wait.
    pub fn run(&self) -> io::Result<std::convert::Infallible> {
        loop {
            match peek() {
                Ok(pid) => self.take(pid)?,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // There are no children, and no orphans either: what they descend from would be a child.
                Err(error) if error.raw_os_error() == Some(libc::ECHILD) => self.await_child(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the dead child `pid` and tells whoever waits for it.
    fn take(&self, pid: i32) -> io::Result<()> {
        let (child, status) = {
            let mut children = lock(&self.children);
            // It is dead, so this does not wait.
            let status = take(pid)?;
            (children.remove(&pid), status)
        };
        if let Some(child) = child {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            *lock(&child.exit) = Some(Exit {
                status,
                // Until the year 2554.
                at_nanoseconds: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            });
            child.ended.notify_all();
        }
        Ok(())
    }

    fn await_child(&self) {
        let children = lock(&self.children);
        let waited = self
            .spawned
            .wait_while(children, |children| children.is_empty());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Child {
    fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self {
            pid,
            pidfd,
            exit: Mutex::new(None),
            ended: Condvar::new(),
        }
    }

    /// Its PID descriptor, readable once it has ended.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        lock(&self.exit).is_some()
    }

    /// Its PID as this process sees it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until it has ended. Any number of threads may wait, and may come late.
    pub fn wait(&self) -> Exit {
        let mut exit = lock(&self.exit);
        loop {
            if let Some(exit) = *exit {
                return exit;
            }
            exit = self
                .ended
                .wait(exit)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until it has ended, but not longer than `timeout`.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Exit> {
        let deadline = Instant::now() + timeout;
        let mut exit = lock(&self.exit);
        while exit.is_none() {
            let left = deadline.checked_duration_since(Instant::now())?;
            exit = self
                .ended
                .wait_timeout(exit, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        *exit
    }

    /// Sends it a signal; a process that has ended takes none and is none the worse.
    ///
    /// # Errors
    ///
    /// The signal is not one.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(self.pidfd.as_fd(), signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            result => Ok(result?),
        }
    }
}

/// Locks, also what a thread that panicked left locked: no state here is ever half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for any child to be dead and gives its PID, but leaves it dead.
fn peek() -> io::Result<i32> {
    // SAFETY: the kernel fills the structure in, whose PID is valid when the call succeeds and waits for exits only.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOWAIT;
        if libc::waitid(libc::P_ALL, 0, &raw mut info, options) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(info.si_pid())
    }
}

/// Fails unless `pidfd` is of a child of this process that nobody has taken.
fn check_child(pidfd: &OwnedFd) -> io::Result<()> {
    // As an id, the descriptor's number is positive.
    let id = libc::id_t::try_from(pidfd.as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel fills the structure in, of which nothing is read.
    let result = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
        libc::waitid(libc::P_PIDFD, id, &raw mut info, options)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The PID of a process by its descriptor, as the kernel says it.
fn pid_of(pidfd: &OwnedFd) -> io::Result<i32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    std::fs::read_to_string(path)?
        .lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .and_then(|pid| pid.trim().parse().ok())
        .filter(|pid| *pid > 0)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Takes the dead child `pid` and gives its status.
fn take(pid: i32) -> io::Result<u32> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
    let status = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
    let (_, status) = status.ok_or(io::ErrorKind::InvalidData)?;
    let status = match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => status.cast_unsigned(),
        (None, Some(signal)) => 128 + signal.cast_unsigned(),
        (None, None) => return Err(io::ErrorKind::InvalidData.into()),
    };
    Ok(status)
}
