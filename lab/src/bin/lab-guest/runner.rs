// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs commands that come over the port, one at a time, and streams what they say.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command as Program, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use coracle_lab::protocol::{Command, Decoder, Freshness, FromLab, Message, TerminalSize, ToLab};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, WaitOptions};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::{processes, results};

/// How much is read from a stream at once: a message's body holds it.
const PIECE: usize = 32 * 1024;

/// Serves the port; returns only on an error.
pub fn serve(port: &File) -> Result<()> {
    let (children, notify) = UnixStream::pair().context("cannot make a socket pair")?;
    children.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(libc::SIGCHLD, notify)
        .context("cannot watch for the end of processes")?;
    let mut link = Link {
        port,
        decoder: Decoder::default(),
    };
    link.send(&FromLab::Alive)?;
    loop {
        match link.receive()? {
            Some(ToLab::Ping) => link.send(&FromLab::Alive)?,
            Some(ToLab::Report) => link.send(&FromLab::Report(processes::report()))?,
            Some(ToLab::Run(command)) => {
                let outcome = run(&mut link, &children, &command);
                let answer = outcome.unwrap_or_else(|error| FromLab::Failed(format!("{error:#}")));
                link.send(&answer)?;
            }
            // What is left of a command that has ended.
            Some(ToLab::Stdin(_) | ToLab::StdinEnd | ToLab::Resize(_)) => {}
            None => {
                let mut fds = [
                    PollFd::new(port, PollFlags::IN),
                    PollFd::new(&children, PollFlags::IN),
                ];
                wait(&mut fds)?;
                reap(&children, None)?;
            }
        }
    }
}

/// The port, message by message.
struct Link<'p> {
    port: &'p File,
    decoder: Decoder,
}

impl Link<'_> {
    /// Sends a message, waiting while the other end does not read.
    fn send(&mut self, message: &FromLab) -> Result<()> {
        message
            .send(&mut Patient(self.port))
            .context("cannot write to the port")
    }

    /// The next message, if one has arrived.
    fn receive(&mut self) -> Result<Option<ToLab>> {
        loop {
            if let Some(message) = self.decoder.decode()? {
                return Ok(Some(message));
            }
            let mut bytes = [0; PIECE];
            match self.port.read(&mut bytes) {
                // Nobody is at the other end for a moment: a snapshot is being restored.
                Ok(0) => {
                    std::thread::sleep(Duration::from_millis(1));
                    return Ok(None);
                }
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error).context("cannot read from the port"),
            }
        }
    }
}

/// Writes to a non-blocking file as if it blocked.
struct Patient<'f>(&'f File);

impl Write for Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(self.0, PollFlags::OUT)], None)?;
                }
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A running command and its streams; a stream that has ended is gone.
struct Running {
    pid: Pid,
    stdin: Option<File>,
    stdin_ends: bool,
    pending: VecDeque<u8>,
    stdout: Option<File>,
    stderr: Option<File>,
    terminal: Option<File>,
}

fn run(link: &mut Link<'_>, children: &UnixStream, command: &Command) -> Result<FromLab> {
    if let Some(freshness) = &command.freshness {
        freshen(freshness)?;
    }
    results::unpack_payload(command.payload_length)?;
    let mut running = match start(command) {
        Ok(running) => running,
        Err(error) => {
            // A shell's statuses for a command that is not there or cannot be executed.
            let status = if error.kind() == ErrorKind::NotFound {
                127
            } else {
                126
            };
            let name = command.arguments.first().map_or("", String::as_str);
            link.send(&FromLab::Stderr(
                format!("lab: cannot run {name}: {error}\n").into(),
            ))?;
            return Ok(FromLab::Exited(status));
        }
    };
    let status = running.attend(link, children)?;
    if command.results {
        results::send(|bytes| link.send(&FromLab::Results(bytes)))?;
    }
    Ok(FromLab::Exited(status))
}

/// Makes this restore differ from every other one of the same snapshot.
fn freshen(freshness: &Freshness) -> Result<()> {
    let now = rustix::time::Timespec {
        tv_sec: i64::try_from(freshness.seconds)?,
        tv_nsec: freshness.nanoseconds.into(),
    };
    rustix::time::clock_settime(rustix::time::ClockId::Realtime, now)
        .context("cannot set the clock")?;
    let mut random = File::options().write(true).open("/dev/urandom")?;
    random
        .write_all(&freshness.entropy)
        .context("cannot add entropy")?;
    // SAFETY: RNDRESEEDCRNG takes no argument and touches no memory of this process.
    let reseeded = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&random), 0x5207) };
    if reseeded < 0 {
        return Err(std::io::Error::last_os_error()).context("cannot reseed the random numbers");
    }
    Ok(())
}

fn start(command: &Command) -> std::io::Result<Running> {
    let Some((name, arguments)) = command.arguments.split_first() else {
        return Err(std::io::Error::new(
            ErrorKind::NotFound,
            "the command is empty",
        ));
    };
    let mut program = Program::new(name);
    program
        .args(arguments)
        .env_clear()
        .env(
            "PATH",
            "/payload:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .env("CORACLE_LAB", "1")
        .envs(
            command
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        )
        .current_dir("/root");
    match command.terminal {
        Some(size) => start_on_terminal(program, size),
        None => start_on_pipes(program, command.stdin),
    }
}

fn start_on_pipes(mut program: Program, stdin: bool) -> std::io::Result<Running> {
    let mut child = program
        .stdin(if stdin { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    Ok(Running {
        pid: pid_of(&child),
        stdin: child
            .stdin
            .take()
            .map(|pipe| non_blocking(pipe.into()))
            .transpose()?,
        stdin_ends: false,
        pending: VecDeque::new(),
        stdout: child
            .stdout
            .take()
            .map(|pipe| non_blocking(pipe.into()))
            .transpose()?,
        stderr: child
            .stderr
            .take()
            .map(|pipe| non_blocking(pipe.into()))
            .transpose()?,
        terminal: None,
    })
}

fn start_on_terminal(mut program: Program, size: TerminalSize) -> std::io::Result<Running> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let controller = openpt(flags)?;
    grantpt(&controller)?;
    unlockpt(&controller)?;
    let user = ioctl_tiocgptpeer(&controller, flags)?;
    resize(&controller, size)?;
    program
        .stdin(user.try_clone()?)
        .stdout(user.try_clone()?)
        .stderr(user);
    // SAFETY: the closure only makes two system calls; it allocates nothing and takes no lock.
    unsafe {
        program.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        });
    }
    let child = program.spawn()?;
    let controller = non_blocking(controller)?;
    Ok(Running {
        pid: pid_of(&child),
        stdin: Some(controller.try_clone()?),
        stdin_ends: false,
        pending: VecDeque::new(),
        stdout: Some(controller.try_clone()?),
        stderr: None,
        terminal: Some(controller),
    })
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn non_blocking(stream: OwnedFd) -> std::io::Result<File> {
    rustix::io::ioctl_fionbio(&stream, true)?;
    Ok(stream.into())
}

fn resize(terminal: &impl AsFd, size: TerminalSize) -> std::io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}

impl Running {
    /// Moves bytes both ways until the command ends; returns its status.
    fn attend(&mut self, link: &mut Link<'_>, children: &UnixStream) -> Result<u8> {
        loop {
            while let Some(message) = link.receive()? {
                self.take(link, message)?;
            }
            self.feed(link)?;
            // The order matters: what the command wrote before its end is in the pipes by the time
            // its end is known, so one more reading leaves nothing behind.
            let ended = reap(children, Some(self.pid))?;
            drain(&mut self.stdout, link, FromLab::Stdout)?;
            drain(&mut self.stderr, link, FromLab::Stderr)?;
            if let Some(status) = ended {
                return Ok(status);
            }
            let mut fds = vec![
                PollFd::new(link.port, PollFlags::IN),
                PollFd::new(children, PollFlags::IN),
            ];
            for stream in [&self.stdout, &self.stderr].into_iter().flatten() {
                fds.push(PollFd::new(stream, PollFlags::IN));
            }
            if let Some(stdin) = self.stdin.as_ref().filter(|_| !self.pending.is_empty()) {
                fds.push(PollFd::new(stdin, PollFlags::OUT));
            }
            wait(&mut fds)?;
        }
    }

    fn take(&mut self, link: &mut Link<'_>, message: ToLab) -> Result<()> {
        match message {
            ToLab::Ping => link.send(&FromLab::Alive)?,
            ToLab::Report => link.send(&FromLab::Report(processes::report()))?,
            ToLab::Stdin(bytes) => self.pending.extend(bytes),
            ToLab::StdinEnd => self.stdin_ends = true,
            ToLab::Resize(size) => {
                if let Some(terminal) = &self.terminal {
                    resize(terminal, size)?;
                }
            }
            ToLab::Run(_) => link.send(&FromLab::Failed("a command is running already".into()))?,
        }
        Ok(())
    }

    /// Gives the command as much of its standard input as it takes, and tells the other end.
    fn feed(&mut self, link: &mut Link<'_>) -> Result<()> {
        let mut taken = 0_usize;
        while !self.pending.is_empty() {
            let (bytes, _) = self.pending.as_slices();
            let outcome = match &mut self.stdin {
                Some(stdin) => stdin.write(bytes),
                // The command closed its standard input: what still comes is dropped.
                None => Ok(bytes.len()),
            };
            match outcome {
                Ok(count) => {
                    self.pending.drain(..count);
                    taken += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.stdin = None,
            }
        }
        if self.pending.is_empty() && self.stdin_ends && self.terminal.is_none() {
            self.stdin = None;
        }
        if taken > 0 {
            link.send(&FromLab::StdinTaken(u32::try_from(taken)?))?;
        }
        Ok(())
    }
}

/// Sends on what a stream has now.
fn drain(
    stream: &mut Option<File>,
    link: &mut Link<'_>,
    message: fn(Vec<u8>) -> FromLab,
) -> Result<()> {
    while let Some(file) = stream {
        let mut bytes = vec![0; PIECE];
        match file.read(&mut bytes) {
            Ok(0) => *stream = None,
            Ok(count) => {
                bytes.truncate(count);
                link.send(&message(bytes))?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // A pseudo-terminal that nobody holds open any more reads as EIO.
            Err(_) => *stream = None,
        }
    }
    Ok(())
}

/// Reaps every process that has ended; the status of `awaited` if it is among them.
fn reap(mut children: &UnixStream, awaited: Option<Pid>) -> Result<Option<u8>> {
    let mut notices = [0; 64];
    while matches!(children.read(&mut notices), Ok(count) if count > 0) {}
    let mut found = None;
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if Some(pid) == awaited => {
                let code = status
                    .exit_status()
                    .or_else(|| status.terminating_signal().map(|signal| signal + 128));
                found = Some(
                    code.and_then(|code| u8::try_from(code).ok())
                        .unwrap_or(u8::MAX),
                );
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(found),
            Err(error) => return Err(error).context("cannot wait for processes"),
        }
    }
}

fn wait(fds: &mut [PollFd<'_>]) -> Result<()> {
    match poll(fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("cannot wait for the port"),
    }
}
