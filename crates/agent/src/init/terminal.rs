// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The terminal of a container's process: a pair of the container's own devpts.
//!
//! The image, or a process that runs already, may have put anything on `/dev/pts`. What is opened there is therefore
//! looked at first and used only if it is the multiplexer of a devpts, and the other end is taken from it, not from a path.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use coracle_agent_api::{AgentError, ErrorKind};
use rustix::fs::{AtFlags, FileType, OFlags, makedev};
use rustix::io;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::agent_files::AgentFiles;
use super::in_root::Root;
use super::{failure, mounts};
use crate::spec::Process;

/// `DEVPTS_SUPER_MAGIC` of `linux/magic.h`.
const DEVPTS_MAGIC: i64 = 0x1cd1;

const MULTIPLEXER: &str = "/dev/pts/ptmx";
const CONSOLE: &str = "/dev/console";

/// Both ends of a terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    host: OwnedFd,
    process: OwnedFd,
}

impl Terminal {
    /// Makes the terminal that `process` asks for, if it does.
    pub(super) fn of(
        process: &Process,
        root: &Root,
        agent: &AgentFiles,
    ) -> Result<Option<Self>, AgentError> {
        if !process.terminal {
            return Ok(None);
        }
        let terminal = Self::open(root, agent)?;
        if let Some(size) = process.console_size {
            let size = Winsize {
                ws_row: size.height,
                ws_col: size.width,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            rustix::termios::tcsetwinsize(&terminal.host, size)
                .map_err(|error| failed("cannot set the size of the terminal", error))?;
        }
        Ok(Some(terminal))
    }

    fn open(root: &Root, agent: &AgentFiles) -> Result<Self, AgentError> {
        let place = root
            .open_without_links(Path::new(MULTIPLEXER))
            .map_err(|error| failed(format!("cannot open {MULTIPLEXER} for a terminal"), error))?;
        let checked = is_multiplexer(&place)
            .map_err(|error| failed(format!("cannot inspect {MULTIPLEXER}"), error))?;
        if !checked {
            let message = format!(
                "a terminal needs a devpts mounted on /dev/pts, and {MULTIPLEXER} is another file"
            );
            return Err(AgentError::new(ErrorKind::Terminal, message));
        }
        let open = || -> io::Result<Self> {
            let host = agent.reopen(&place, OFlags::RDWR | OFlags::NOCTTY)?;
            rustix::pty::unlockpt(&host)?;
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let process = rustix::pty::ioctl_tiocgptpeer(&host, flags)?;
            Ok(Self { host, process })
        };
        open().map_err(|error| failed("cannot make a terminal", error))
    }

    /// Shows the terminal as `/dev/console` of the container.
    pub(super) fn show_as_console(&self, root: &Root) -> Result<(), AgentError> {
        let path = Path::new(CONSOLE);
        let show = || -> io::Result<()> {
            root.make_file(path)?;
            // Where a link of the image leads is not for us to cover.
            let target = root.open_without_links(path)?;
            mounts::attach(&mounts::clone(self.process.as_fd())?, target)
        };
        show().map_err(|error| failed(format!("cannot show the terminal as {CONSOLE}"), error))
    }

    /// Makes the terminal this process' standard streams. Gives the host's end.
    pub(super) fn become_streams(self) -> Result<OwnedFd, AgentError> {
        rustix::stdio::dup2_stdin(&self.process)
            .and_then(|()| rustix::stdio::dup2_stdout(&self.process))
            .and_then(|()| rustix::stdio::dup2_stderr(&self.process))
            .map_err(|error| failed("cannot make the terminal the standard streams", error))?;
        Ok(self.host)
    }
}

/// Makes the terminal on the standard input the one that controls this process' session.
pub(super) fn control() -> Result<(), AgentError> {
    rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())
        .map_err(|error| failed("cannot make the terminal control the session", error))
}

fn is_multiplexer(place: &OwnedFd) -> io::Result<bool> {
    if rustix::fs::fstatfs(place)?.f_type != DEVPTS_MAGIC {
        return Ok(false);
    }
    let stat = rustix::fs::statat(place, "", AtFlags::EMPTY_PATH)?;
    let character = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    Ok(character && stat.st_rdev == makedev(5, 2))
}

fn failed(what: impl Into<String>, error: impl std::fmt::Display) -> AgentError {
    failure(ErrorKind::Terminal, what, error)
}
