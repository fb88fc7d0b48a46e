// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One command in a lab: its streams, its deadline, its status.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use signal_hook::low_level::pipe::register;

use crate::emulator::Emulator;
use crate::payload::unpack_results;
use crate::protocol::{
    Command, Decoder, Freshness, FromLab, Message, STDIN_WINDOW, TerminalSize, ToLab,
};

/// How much standard input is read at once.
const PIECE: usize = 32 * 1024;

/// How long the lab may take to report on its processes.
const REPORT_DEADLINE: Duration = Duration::from_secs(10);

/// How often a lab that says nothing is asked whether it is alive.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How long it may say nothing to that: the machine that emulates it may have much else to do.
const SILENCE: Duration = Duration::from_secs(60);

/// How many random bytes a restored lab gets.
const ENTROPY: u64 = 64;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By itself, with this status (128 + n for signal n).
    Exited(u8),
    /// It did not, within its deadline. What its processes wait for was printed.
    TimedOut,
    /// This process got a signal that asks it to end.
    Interrupted,
    /// The lab itself ended first: its kernel panicked, or the emulator did, or it no longer answers.
    LabDied,
}

/// What to do with a command.
#[derive(Debug, Default)]
pub struct Options {
    /// How long it may take.
    pub deadline: Option<Duration>,
    /// Where its results go.
    pub results: Option<PathBuf>,
    /// Whether the lab is asked from time to time if it is alive. To answer costs it instructions.
    pub heartbeat: bool,
}

/// What a restored lab gets so that it differs from each other restore.
///
/// # Errors
///
/// If this machine has no random numbers, or a clock before 1970.
pub fn freshness() -> Result<Freshness> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    let mut entropy = Vec::new();
    File::open("/dev/urandom")
        .and_then(|random| random.take(ENTROPY).read_to_end(&mut entropy))
        .context("cannot read /dev/urandom")?;
    Ok(Freshness {
        seconds: now.as_secs(),
        nanoseconds: now.subsec_nanos(),
        entropy,
    })
}

/// The size of the terminal at standard input, if there is one.
#[must_use]
pub fn terminal_size() -> Option<TerminalSize> {
    let size = tcgetwinsize(rustix::stdio::stdin()).ok()?;
    Some(TerminalSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// Runs a command in the lab, with this process's standard streams.
///
/// # Errors
///
/// If the lab ends or breaks, or a stream of this process does.
pub fn run(emulator: &mut Emulator, command: Command, options: &Options) -> Result<Outcome> {
    let raw = command.terminal.map(|_| RawTerminal::enter()).transpose()?;
    let mut session = Session {
        decoder: Decoder::default(),
        stdin: command.stdin,
        under_way: 0,
        results: options
            .results
            .as_ref()
            .map(|_| tempfile::tempfile())
            .transpose()?,
        signals: raw.is_some().then(Signals::watch).transpose()?,
        pulse: options.heartbeat.then(Pulse::new),
    };
    ToLab::Run(command)
        .send(&mut emulator.port)
        .context("cannot reach the lab")?;
    let outcome = session.attend(&mut emulator.port, options.deadline);
    drop(raw);
    let outcome = outcome.map_err(|error| anyhow!("{error:#}; {}", emulator.console()))?;
    if let (Some(mut archive), Some(folder)) = (session.results, &options.results)
        && matches!(outcome, Outcome::Exited(_))
    {
        archive.seek(SeekFrom::Start(0))?;
        unpack_results(archive, folder)?;
    }
    Ok(outcome)
}

struct Session {
    decoder: Decoder,
    /// Whether standard input is still forwarded.
    stdin: bool,
    /// Bytes of it that the lab has not taken.
    under_way: usize,
    results: Option<File>,
    signals: Option<Signals>,
    pulse: Option<Pulse>,
}

impl Session {
    fn attend(&mut self, port: &mut UnixStream, limit: Option<Duration>) -> Result<Outcome> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            while let Some(message) = self.decoder.decode()? {
                if let Some(status) = self.take(message)? {
                    return Ok(Outcome::Exited(status));
                }
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                self.explain(port)?;
                return Ok(Outcome::TimedOut);
            }
            let left = match &mut self.pulse {
                None => left,
                Some(pulse) => {
                    if pulse.is_gone(port)? {
                        eprintln!(
                            "lab: the lab has not answered for {} s: it hangs",
                            SILENCE.as_secs()
                        );
                        return Ok(Outcome::LabDied);
                    }
                    Some(left.unwrap_or(HEARTBEAT).min(HEARTBEAT))
                }
            };
            let ready = self.wait(port, left)?;
            if ready.port {
                let mut bytes = [0; PIECE];
                match port.read(&mut bytes).context("cannot read from the lab")? {
                    0 => return Ok(Outcome::LabDied),
                    count => self.decoder.push(&bytes[..count]),
                }
                if let Some(pulse) = &mut self.pulse {
                    pulse.heard = Instant::now();
                }
            }
            if ready.stdin {
                self.forward(port)?;
            }
            if ready.signals && self.heed_signals(port)? {
                return Ok(Outcome::Interrupted);
            }
        }
    }

    fn wait(&self, port: &UnixStream, left: Option<Duration>) -> Result<Ready> {
        // A descriptor that is not watched is replaced by the port, which always is.
        let watched = |wanted: bool, fd: BorrowedFd<'static>| wanted.then_some(fd);
        let room = self.under_way + PIECE <= STDIN_WINDOW;
        let stdin = watched(self.stdin && room, rustix::stdio::stdin());
        let mut fds = vec![PollFd::new(port, PollFlags::IN)];
        fds.extend(stdin.map(|stdin| PollFd::from_borrowed_fd(stdin, PollFlags::IN)));
        fds.extend(
            self.signals
                .as_ref()
                .map(|signals| PollFd::new(signals, PollFlags::IN)),
        );
        let timeout = left.map(Timespec::try_from).transpose()?;
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the lab"),
        }
        let mut events = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = |watched: bool| watched && events.next().unwrap_or(false);
        Ok(Ready {
            port: next(true),
            stdin: next(stdin.is_some()),
            signals: next(self.signals.is_some()),
        })
    }

    /// Handles a message; the command's status if it has ended.
    fn take(&mut self, message: FromLab) -> Result<Option<u8>> {
        match message {
            FromLab::Alive | FromLab::Report(_) => {}
            FromLab::Stdout(bytes) => {
                let mut stdout = std::io::stdout().lock();
                stdout
                    .write_all(&bytes)
                    .context("cannot write to standard output")?;
                stdout.flush().context("cannot write to standard output")?;
            }
            FromLab::Stderr(bytes) => {
                std::io::stderr()
                    .write_all(&bytes)
                    .context("cannot write to standard error")?;
            }
            FromLab::StdinTaken(count) => {
                self.under_way = self.under_way.saturating_sub(count as usize);
            }
            FromLab::Results(bytes) => {
                if let Some(results) = &mut self.results {
                    results
                        .write_all(&bytes)
                        .context("cannot keep the results")?;
                }
            }
            FromLab::Exited(status) => return Ok(Some(status)),
            FromLab::Failed(reason) => bail!("the lab cannot run the command: {reason}"),
        }
        Ok(None)
    }

    /// Prints what the lab's processes wait for; that it does not answer, if it hangs itself.
    fn explain(&mut self, port: &mut UnixStream) -> Result<()> {
        ToLab::Report.send(port).context("cannot reach the lab")?;
        let deadline = Instant::now() + REPORT_DEADLINE;
        loop {
            while let Some(message) = self.decoder.decode()? {
                if let FromLab::Report(text) = message {
                    eprint!("{text}");
                    return Ok(());
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                eprintln!("lab: the lab itself does not answer: it hangs");
                return Ok(());
            }
            port.set_read_timeout(Some(left))?;
            let mut bytes = [0; PIECE];
            match port.read(&mut bytes) {
                Ok(0) => bail!("the lab ended before the command"),
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("cannot read from the lab"),
            }
        }
    }

    /// Sends a piece of standard input. What may be under way fits the socket's buffer, so this
    /// does not block, whatever the lab does.
    fn forward(&mut self, port: &mut UnixStream) -> Result<()> {
        let mut bytes = vec![0; PIECE];
        let count = match rustix::io::read(rustix::stdio::stdin(), &mut bytes) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error).context("cannot read standard input"),
        };
        let message = if count == 0 {
            self.stdin = false;
            ToLab::StdinEnd
        } else {
            self.under_way += count;
            bytes.truncate(count);
            ToLab::Stdin(bytes)
        };
        message.send(port).context("cannot reach the lab")
    }

    /// Whether a signal asks to end; a new size of the terminal is passed on.
    fn heed_signals(&mut self, port: &mut UnixStream) -> Result<bool> {
        let Some(signals) = &mut self.signals else {
            return Ok(false);
        };
        if signals.resized()
            && let Some(size) = terminal_size()
        {
            ToLab::Resize(size).send(port)?;
        }
        Ok(signals.ended())
    }
}

/// Whether a lab is alive.
struct Pulse {
    heard: Instant,
    asked: Instant,
}

impl Pulse {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            heard: now,
            asked: now,
        }
    }

    /// Asks a lab that says nothing; whether it has not answered for too long.
    fn is_gone(&mut self, port: &mut UnixStream) -> Result<bool> {
        if self.heard.elapsed() >= HEARTBEAT && self.asked.elapsed() >= HEARTBEAT {
            self.asked = Instant::now();
            ToLab::Ping.send(port).context("cannot reach the lab")?;
        }
        Ok(self.heard.elapsed() >= SILENCE)
    }
}

/// What can be read.
struct Ready {
    port: bool,
    stdin: bool,
    signals: bool,
}

/// Signals that matter while the terminal is raw. Otherwise they have their usual effect: nothing
/// outlives this process.
struct Signals {
    ended: UnixStream,
    resized: UnixStream,
    /// Readable when one of the two is.
    any: UnixStream,
}

impl Signals {
    fn watch() -> Result<Self> {
        let pair = || -> Result<(UnixStream, UnixStream)> {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            Ok((ours, theirs))
        };
        let (ended, ended_end) = pair()?;
        let (resized, resized_end) = pair()?;
        let (any, any_end) = pair()?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            register(signal, ended_end.try_clone()?)?;
        }
        register(SIGWINCH, resized_end)?;
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGWINCH] {
            register(signal, any_end.try_clone()?)?;
        }
        Ok(Self {
            ended,
            resized,
            any,
        })
    }

    fn resized(&mut self) -> bool {
        drained(&mut self.any);
        drained(&mut self.resized)
    }

    fn ended(&mut self) -> bool {
        drained(&mut self.ended)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.any.as_fd()
    }
}

/// Empties a notification socket; whether there was anything in it.
fn drained(socket: &mut UnixStream) -> bool {
    let mut bytes = [0; 64];
    let mut found = false;
    while matches!(socket.read(&mut bytes), Ok(1..)) {
        found = true;
    }
    found
}

/// The terminal at standard input in raw mode; its own mode comes back when this is dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Result<Self> {
        let own = tcgetattr(rustix::stdio::stdin()).context("standard input is not a terminal")?;
        let mut raw = own.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)
            .context("cannot make the terminal raw")?;
        Ok(Self(own))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // An error means that the terminal is gone.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pulse that was heard so long ago, and the lab's end of the port it was heard at.
    fn heard(ago: Duration) -> (Pulse, UnixStream, UnixStream) {
        let then = Instant::now().checked_sub(ago).unwrap();
        let (ours, lab) = UnixStream::pair().unwrap();
        lab.set_nonblocking(true).unwrap();
        let pulse = Pulse {
            heard: then,
            asked: then,
        };
        (pulse, ours, lab)
    }

    fn pings(lab: &mut UnixStream) -> usize {
        let mut bytes = [0; 64];
        let ping = ToLab::Ping.parts().1.len() + 5;
        lab.read(&mut bytes).map_or(0, |count| count / ping)
    }

    #[test]
    fn lab_that_speaks_is_not_asked() {
        let (mut pulse, mut port, mut lab) = heard(HEARTBEAT / 2);

        assert!(!pulse.is_gone(&mut port).unwrap());
        assert_eq!(pings(&mut lab), 0);
    }

    #[test]
    fn lab_that_says_nothing_is_asked_once_in_a_while() {
        let (mut pulse, mut port, mut lab) = heard(HEARTBEAT);

        assert!(!pulse.is_gone(&mut port).unwrap());
        assert!(!pulse.is_gone(&mut port).unwrap());
        assert_eq!(pings(&mut lab), 1);
    }

    #[test]
    fn lab_that_does_not_answer_is_gone() {
        let (mut pulse, mut port, _lab) = heard(SILENCE);

        assert!(pulse.is_gone(&mut port).unwrap());
    }
}
