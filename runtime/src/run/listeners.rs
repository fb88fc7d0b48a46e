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
use rustix::rand::{GetRandomFlags, getrandom};

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

/// The first of the host's ports for the streams of a container's first process.
const FIRST_STREAM: u32 = 2000;
/// The ports of further processes have the highest bit, so that none of them is another's.
const FURTHER_STREAMS: u32 = 1 << 31;

/// The host's ports for one process's standard streams.
#[derive(Clone, Copy, Debug)]
pub struct StreamPorts {
    pub stdin: Option<u32>,
    pub stdout: u32,
    /// A terminal has one output.
    pub stderr: Option<u32>,
}

/// Which standard streams a process has.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub stdin: bool,
    pub terminal: bool,
}

impl StreamPorts {
    /// The ports of a container's first process: nothing in the guest can be there before it.
    pub fn of_first(shape: Shape) -> Self {
        Self {
            stdin: shape.stdin.then_some(FIRST_STREAM),
            stdout: FIRST_STREAM + 1,
            stderr: (!shape.terminal).then_some(FIRST_STREAM + 2),
        }
    }

    /// Ports of a further process. Any process of the container can connect to the host's ports, and who is there before
    /// the agent would have the streams: nobody can tell where that will be.
    pub fn of_further(shape: Shape) -> Result<Self> {
        let mut random = [[0; 4]; 3];
        getrandom(random.as_flattened_mut(), GetRandomFlags::empty())
            .context("cannot get random bytes for ports")?;
        let [stdin, stdout, stderr] = random.map(|it| u32::from_ne_bytes(it) | FURTHER_STREAMS);
        Ok(Self {
            stdin: shape.stdin.then_some(stdin),
            stdout,
            stderr: (!shape.terminal).then_some(stderr),
        })
    }
}

/// Where the agent says that it serves: bound before the guest starts, so that no call can come too early.
pub struct AgentListener {
    directory: PathBuf,
    listener: UnixListener,
}

/// Where the agent connects a process's streams.
pub struct StreamListeners {
    stdin: Option<StreamListener>,
    stdout: StreamListener,
    stderr: Option<StreamListener>,
}

struct StreamListener {
    path: PathBuf,
    listener: UnixListener,
}

/// A process's standard streams.
pub struct Streams {
    pub stdin: Option<UnixStream>,
    pub stdout: UnixStream,
    pub stderr: Option<UnixStream>,
}

impl AgentListener {
    /// Listens in `directory`.
    pub fn bind(directory: &Path) -> Result<Self> {
        Ok(Self {
            directory: directory.to_owned(),
            listener: listen(&path_of(directory, READY_PORT))?,
        })
    }

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
    /// Listens on `ports` in `directory`.
    pub fn bind(directory: &Path, ports: StreamPorts) -> Result<Self> {
        let bind = |port| StreamListener::bind(path_of(directory, port));
        Ok(Self {
            stdin: ports.stdin.map(bind).transpose()?,
            stdout: bind(ports.stdout)?,
            stderr: ports.stderr.map(bind).transpose()?,
        })
    }

    /// Accepts the streams, which the agent has connected by the time it has made the process: whoever came after it is
    /// not accepted. Nothing in the guest can connect to these ports afterwards: who waits to be accepted costs the host
    /// memory.
    pub fn accept(self) -> Result<Streams> {
        let accept = |listener: Option<StreamListener>, name| {
            listener.map(|listener| listener.accept(name)).transpose()
        };
        Ok(Streams {
            stdin: accept(self.stdin, "stdin")?,
            stdout: self.stdout.accept("stdout")?,
            stderr: accept(self.stderr, "stderr")?,
        })
    }
}

impl StreamListener {
    fn bind(path: PathBuf) -> Result<Self> {
        let listener = listen(&path)?;
        listener
            .set_nonblocking(true)
            .context("cannot set up a socket")?;
        Ok(Self { path, listener })
    }

    fn accept(self, name: &str) -> Result<UnixStream> {
        let (stream, _) = self
            .listener
            .accept()
            .with_context(|| format!("the guest's agent has not connected {name}"))?;
        Ok(stream)
    }
}

impl Drop for StreamListener {
    fn drop(&mut self) {
        // The directory goes with the run.
        let _ = fs::remove_file(&self.path);
    }
}

/// Listens for a guest that connects once. More that it makes would wait to be accepted, and what is sent on them costs
/// the host memory: the VMM makes no more of them than there is room for, and refuses them after a while.
fn listen(path: &Path) -> Result<UnixListener> {
    through_descriptor(path, |path| {
        let (flags, address) = (SocketFlags::CLOEXEC, SocketAddrUnix::new(path)?);
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        bind(&socket, &address)?;
        rustix::net::listen(&socket, WAITING)?;
        Ok(socket.into())
    })
    .with_context(|| format!("cannot listen on {}", path.display()))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SHAPE: Shape = Shape {
        stdin: true,
        terminal: false,
    };

    #[test]
    fn ports_of_a_further_process_cannot_be_told_from_those_before() {
        let ports: Vec<_> = (0..100)
            .map(|_| StreamPorts::of_further(SHAPE).unwrap())
            .flat_map(|ports| [ports.stdin.unwrap(), ports.stdout, ports.stderr.unwrap()])
            .collect();

        let different: BTreeSet<_> = ports.iter().collect();
        let steps: BTreeSet<_> = ports
            .windows(2)
            .map(|pair| pair[1].wrapping_sub(pair[0]))
            .collect();
        assert_eq!((different.len(), steps.len()), (300, 299));
        assert!(ports.iter().all(|port| *port >= FURTHER_STREAMS));
    }
}
