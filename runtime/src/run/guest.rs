// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The way to a guest's agent: sockets, the agent's hello, and calls with deadlines.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use coracle_agent_api::messages::{
    CreateContainerRequest, CreateSandboxRequest, SignalContainerRequest, StartContainerRequest,
    WaitContainerRequest,
};
use coracle_agent_api::{
    AGENT_PORT, AgentClient, AgentError, Hello, READY_PORT, SHARE_TAG, connect, ttrpc,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::signals::Forwarding;

/// Name of the socket on which the guest's ports are reached; it is the same for the VMM, which
/// has the directory as its root.
pub const SOCKET: &str = "vsock";
/// How long the agent may take for one call.
const CALL: Duration = Duration::from_secs(30);
/// Bytes of entropy that a guest starts with.
const ENTROPY: usize = 64;
/// The one container of a run.
const CONTAINER: &str = "container";
/// Ports of the host for the container's streams, in the order of their numbers.
const STREAM_PORTS: [u32; 3] = [2000, 2001, 2002];

/// A signal ended the wait for the guest.
#[derive(Debug, thiserror::Error)]
#[error("interrupted by signal {0} before the container was started")]
pub struct Interrupted(pub i32);

/// The command could not be executed: the status is the shell's for that.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CommandFailed {
    pub status: u8,
    message: String,
}

/// The agent understood what it was asked for and could not do it; nothing else is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// Where the guest calls: bound before it starts, so that no call can come too early.
pub struct Listeners {
    directory: PathBuf,
    ready: UnixListener,
    streams: [UnixListener; 3],
}

impl Listeners {
    /// Binds the host's ports in `directory`.
    pub fn bind(directory: &Path) -> Result<Self> {
        let bind = |port| {
            let path = directory.join(format!("{SOCKET}_{port}"));
            through_descriptor(&path, UnixListener::bind)
                .with_context(|| format!("cannot listen on {}", path.display()))
        };
        let [stdin, stdout, stderr] = STREAM_PORTS;
        Ok(Self {
            directory: directory.to_owned(),
            ready: bind(READY_PORT)?,
            streams: [bind(stdin)?, bind(stdout)?, bind(stderr)?],
        })
    }

    /// Waits for the agent's hello and connects to it.
    ///
    /// The wait ends early where `watched` becomes readable (the VMM has something to say) or a
    /// signal arrives.
    pub fn connect(
        self,
        timeout: Duration,
        watched: BorrowedFd<'_>,
        signals: &mut Forwarding,
    ) -> Result<Guest> {
        let deadline = Instant::now() + timeout;
        let late = || {
            anyhow!(
                "the guest did not answer within {} s (--boot-timeout)",
                timeout.as_secs()
            )
        };
        let what = "the guest's agent";
        wait_readable(self.ready.as_fd(), deadline, watched, signals)?.ok_or_else(late)?;
        let (ready, _) = self
            .ready
            .accept()
            .with_context(|| format!("cannot accept {what}'s connection"))?;
        Hello::read(BufReader::new(Until::new(&ready)))
            .with_context(|| format!("{what} said no hello"))?;

        let path = self.directory.join(SOCKET);
        let mut stream = through_descriptor(&path, UnixStream::connect)
            .with_context(|| format!("cannot connect to {}", path.display()))?;
        writeln!(stream, "CONNECT {AGENT_PORT}").with_context(|| format!("cannot call {what}"))?;
        read_acknowledgement(Until::new(&stream))
            .with_context(|| format!("{what} does not take calls"))?;
        stream
            .set_read_timeout(None)
            .context("cannot set a socket's deadline")?;
        let agent = connect(stream).with_context(|| format!("cannot call {what}"))?;
        Ok(Guest {
            agent,
            streams: self.streams,
            _ready: ready,
        })
    }
}

/// A guest whose agent answers.
pub struct Guest {
    agent: AgentClient,
    streams: [UnixListener; 3],
    _ready: UnixStream,
}

/// The container's standard streams.
pub struct Streams {
    pub stdin: UnixStream,
    pub stdout: UnixStream,
    pub stderr: UnixStream,
}

impl Guest {
    /// Gives the guest its identity and makes its container, up to the start of its command.
    pub fn create(&self, hostname: &str, spec: Vec<u8>) -> Result<Streams> {
        let mut entropy = vec![0; ENTROPY];
        rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty())
            .context("cannot get random bytes for the guest")?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let sandbox = CreateSandboxRequest {
            hostname: hostname.into(),
            entropy,
            clock_nanoseconds: u64::try_from(now).unwrap_or(0),
            share_tag: SHARE_TAG.into(),
            ..Default::default()
        };
        self.agent
            .create_sandbox(deadline(), &sandbox)
            .map_err(failure)
            .context("cannot set up the guest")?;

        let [stdin, stdout, stderr] = STREAM_PORTS;
        let container = CreateContainerRequest {
            id: CONTAINER.into(),
            spec,
            stdin_port: Some(stdin),
            stdout_port: Some(stdout),
            stderr_port: Some(stderr),
            ..Default::default()
        };
        self.agent
            .create_container(deadline(), &container)
            .map_err(failure)?;
        let [stdin, stdout, stderr] = &self.streams;
        Ok(Streams {
            stdin: accept(stdin, "stdin")?,
            stdout: accept(stdout, "stdout")?,
            stderr: accept(stderr, "stderr")?,
        })
    }

    /// Starts the container's command.
    pub fn start(&self) -> Result<()> {
        let request = StartContainerRequest {
            id: CONTAINER.into(),
            ..Default::default()
        };
        self.agent
            .start_container(deadline(), &request)
            .map(drop)
            .map_err(failure)
    }

    /// Waits for the command's end; returns its status.
    pub fn wait(&self) -> Result<u8> {
        let request = WaitContainerRequest {
            id: CONTAINER.into(),
            ..Default::default()
        };
        let answer = self
            .agent
            .wait_container(ttrpc::context::with_duration(Duration::ZERO), &request)
            .map_err(failure)?;
        u8::try_from(answer.exit_status)
            .with_context(|| format!("{} is no exit status", answer.exit_status))
    }

    /// A function that sends a signal to the command.
    pub fn signaller(&self) -> impl Fn(i32) + Send + 'static {
        let agent = self.agent.clone();
        move |signal| {
            let request = SignalContainerRequest {
                id: CONTAINER.into(),
                signal: signal.unsigned_abs(),
                ..Default::default()
            };
            if let Err(error) = agent.signal_container(deadline(), &request) {
                eprintln!(
                    "coracle: cannot send signal {signal} to the container: {:#}",
                    failure(error)
                );
            }
        }
    }
}

fn deadline() -> ttrpc::context::Context {
    ttrpc::context::with_duration(CALL)
}

/// What went wrong in a call, as an error whose kind tells the exit status.
fn failure(error: ttrpc::Error) -> anyhow::Error {
    match AgentError::from_call(&error) {
        Some(AgentError { kind, message }) => match kind.exit_status() {
            Some(status) => CommandFailed { status, message }.into(),
            None => Refused(message).into(),
        },
        None => anyhow::Error::new(error).context("the guest's agent does not answer"),
    }
}

/// Accepts one stream: the agent has connected it before it answered the call that asked for it.
fn accept(listener: &UnixListener, name: &str) -> Result<UnixStream> {
    let mut descriptors = [PollFd::new(listener, PollFlags::IN)];
    let timeout = Timespec::try_from(CALL).ok();
    let ready = poll(&mut descriptors, timeout.as_ref())
        .with_context(|| format!("cannot wait for {name}"))?;
    if ready == 0 {
        bail!(
            "the guest did not connect the container's {name} within {} s",
            CALL.as_secs()
        );
    }
    Ok(listener
        .accept()
        .with_context(|| format!("cannot accept the container's {name}"))?
        .0)
}

/// Waits until `descriptor` is readable; `None` if that takes until `deadline`.
fn wait_readable(
    descriptor: BorrowedFd<'_>,
    deadline: Instant,
    watched: BorrowedFd<'_>,
    signals: &mut Forwarding,
) -> Result<Option<()>> {
    loop {
        if let Some(signal) = signals.pending() {
            return Err(Interrupted(signal).into());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let mut descriptors = [descriptor, watched, signals.as_fd()]
            .map(|each| PollFd::from_borrowed_fd(each, PollFlags::IN));
        match poll(&mut descriptors, Timespec::try_from(left).ok().as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            outcome => outcome.context("cannot wait for the guest")?,
        };
        let [answer, watched, _] = descriptors;
        if !answer.revents().is_empty() {
            return Ok(Some(()));
        }
        if !watched.revents().is_empty() {
            bail!("the guest ended before its agent answered");
        }
    }
}

/// A stream that is read until a deadline, however small the pieces in which it comes.
struct Until<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl<'a> Until<'a> {
    fn new(stream: &'a UnixStream) -> Self {
        Self {
            stream,
            deadline: Instant::now() + CALL,
        }
    }
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

/// Reads `OK <port>`, the VMM's word that a connection stands.
fn read_acknowledgement(mut stream: impl Read) -> Result<()> {
    let mut line = Vec::new();
    // Byte by byte: what follows the line is the agent's.
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream
            .read_exact(&mut byte)
            .context("the connection was refused")?;
        line.push(byte[0]);
        if line.len() > 32 {
            bail!("the answer to CONNECT is no line");
        }
    }
    if line.starts_with(b"OK ") {
        Ok(())
    } else {
        bail!("the answer to CONNECT is '{}'", line.escape_ascii())
    }
}

/// Calls `act` with a short path to `path`: a socket's path is limited to 107 bytes.
pub fn through_descriptor<T>(
    path: &Path,
    act: impl FnOnce(PathBuf) -> io::Result<T>,
) -> io::Result<T> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return act(path.to_owned());
    };
    let directory = File::open(parent)?;
    act(Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name))
}
