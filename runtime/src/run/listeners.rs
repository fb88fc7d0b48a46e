// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a guest calls, and how its agent is reached once it has.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use coracle_agent_api::{AGENT_PORT, Client, Hello, READY_PORT};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

use super::guest::Guest;
use super::patience::Patience;

/// Name of the socket on which the guest's ports are reached; it is the same for the VMM, which
/// has the directory as its root.
pub const SOCKET: &str = "vsock";
/// The most bytes of an agent's hello.
const HELLO: usize = 1024;
/// The most bytes of the VMM's answer to a call.
const ANSWER: usize = 32;

/// Connections of the guest that may wait to be accepted, besides one that is.
const WAITING: i32 = 1;

/// Ports of the host for the container's streams, in the order of their numbers.
pub const STREAM_PORTS: [u32; 3] = [2000, 2001, 2002];

/// Sockets on which the guest calls: bound before it starts, so that no call can come too early.
pub struct Listeners {
    pub agent: AgentListener,
    pub streams: StreamListeners,
}

/// Where the agent says that it serves.
pub struct AgentListener {
    directory: PathBuf,
    listener: UnixListener,
}

/// Where the agent connects the container's streams.
pub struct StreamListeners {
    directory: PathBuf,
    listeners: [UnixListener; 3],
}

/// The container's standard streams.
pub struct Streams {
    pub stdin: UnixStream,
    pub stdout: UnixStream,
    pub stderr: UnixStream,
}

impl Listeners {
    /// Binds the host's ports in `directory`.
    pub fn bind(directory: &Path) -> Result<Self> {
        let bind = |port| {
            let path = path_of(directory, port);
            through_descriptor(&path, |path| listen(&path))
                .with_context(|| format!("cannot listen on {}", path.display()))
        };
        let [stdin, stdout, stderr] = STREAM_PORTS;
        Ok(Self {
            agent: AgentListener {
                directory: directory.to_owned(),
                listener: bind(READY_PORT)?,
            },
            streams: StreamListeners {
                directory: directory.to_owned(),
                listeners: [bind(stdin)?, bind(stdout)?, bind(stderr)?],
            },
        })
    }
}

impl AgentListener {
    /// Waits for the agent's hello and connects to it. `gone` is readable once the guest has ended.
    pub fn connect<'g>(self, patience: &mut Patience, gone: BorrowedFd<'g>) -> Result<Guest<'g>> {
        let what = "the guest's agent";
        let ready = accept(&self.listener, patience, gone)?;
        let hello = patience
            .read_line(&ready, gone, HELLO)
            .with_context(|| format!("{what} said no hello"))?;
        Hello::read(hello.as_slice()).with_context(|| format!("{what} said no hello"))?;

        let path = self.directory.join(SOCKET);
        let mut stream = through_descriptor(&path, UnixStream::connect)
            .with_context(|| format!("cannot connect to {}", path.display()))?;
        writeln!(stream, "CONNECT {AGENT_PORT}").with_context(|| format!("cannot call {what}"))?;
        let answer = patience
            .read_line(&stream, gone, ANSWER)
            .with_context(|| format!("cannot call {what}"))?;
        ensure!(
            answer.starts_with(b"OK "),
            "{what} does not take calls: the answer is '{}'",
            answer.escape_ascii()
        );
        let agent = Client::new(stream).with_context(|| format!("cannot call {what}"))?;
        Ok(Guest::new(agent, ready, gone))
    }
}

impl StreamListeners {
    /// Accepts the streams, which the agent has connected by the time it has made the container. Nothing in the
    /// guest can connect to these ports afterwards: who waits to be accepted costs the host memory.
    pub fn accept(self, patience: &mut Patience, gone: BorrowedFd<'_>) -> Result<Streams> {
        let [stdin, stdout, stderr] = &self.listeners;
        let streams = Streams {
            stdin: accept(stdin, patience, gone).context("the container's stdin")?,
            stdout: accept(stdout, patience, gone).context("the container's stdout")?,
            stderr: accept(stderr, patience, gone).context("the container's stderr")?,
        };
        for port in STREAM_PORTS {
            let path = path_of(&self.directory, port);
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(streams)
    }
}

/// Listens for a guest that connects once. More that it makes would wait to be accepted, and what is sent on them costs
/// the host memory: the VMM makes no more of them than there is room for, and refuses them after a while.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let (flags, address) = (SocketFlags::CLOEXEC, SocketAddrUnix::new(path)?);
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &address)?;
    rustix::net::listen(&socket, WAITING)?;
    Ok(socket.into())
}

fn path_of(directory: &Path, port: u32) -> PathBuf {
    directory.join(format!("{SOCKET}_{port}"))
}

fn accept(
    listener: &UnixListener,
    patience: &mut Patience,
    gone: BorrowedFd<'_>,
) -> Result<UnixStream> {
    patience.wait(listener.as_fd(), Some(gone))?;
    Ok(listener
        .accept()
        .context("cannot accept the guest's connection")?
        .0)
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
