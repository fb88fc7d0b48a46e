// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file server as a process in its sandbox: this program, started again.

use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use coracle_memory::GuestMemory;
use coracle_virtiofs::daemon::DaemonConfig;
use coracle_virtiofs::role::{DIRECTORY_FD, LISTENER_FD, NETWORK_FD, RoleConfig};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::guest::{Guest, directory};
use crate::machine::Machine;

/// The argument by which this program is started as a file server.
pub const ARGUMENT: &str = "--file-server";
/// The argument behind it by which it enters a network namespace that it inherits.
const IN_NETWORK: &str = "--in-network";
/// The argument behind it by which it shuts itself in, around the directory that the last one names, and then
/// does what it must not: what the argument in between says.
pub const MISBEHAVE: &str = "--misbehave";
pub const SOCKET: &str = "socket";
pub const DEVICE: &str = "device";

/// Longest that anything may take here.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// What the process does: `main` of a file server.
pub fn serve() -> ! {
    let arguments: Vec<_> = std::env::args().skip(2).collect();
    if let [first, what, directory] = &arguments[..]
        && first == MISBEHAVE
    {
        misbehave(what, directory);
    }
    let daemon = DaemonConfig {
        connect_timeout: Duration::from_secs(2),
        ..DaemonConfig::default()
    };
    let config = RoleConfig {
        daemon,
        network: arguments.iter().any(|argument| argument == IN_NETWORK),
        ..RoleConfig::default()
    };
    match coracle_virtiofs::role::main(None, config) {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            eprintln!("{text}");
            std::process::exit(1)
        }
    }
}

/// Does what a guest could do that has taken the file server over.
fn misbehave(what: &str, directory: &str) -> ! {
    let inside = coracle_virtiofs::sandbox::enter(fs::File::open(directory).unwrap().into(), None);
    assert!(inside.is_ok(), "{inside:?}");
    match what {
        // Not an error, but the end: only a file server's calls are allowed.
        SOCKET => drop(rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            None,
        )),
        // A node of the null device, first in the share and then in a mount below it.
        DEVICE => eprintln!("{:?}", ["/null", "/mount/null"].map(open_new_device)),
        _ => unreachable!(),
    }
    std::process::exit(0)
}

/// Makes a node of the null device and opens it; says what the opening failed with.
fn open_new_device(path: &str) -> Option<i32> {
    use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, openat};
    mknodat(
        CWD,
        path,
        FileType::CharacterDevice,
        Mode::RUSR,
        makedev(1, 3),
    )
    .unwrap();
    openat(CWD, path, OFlags::RDONLY, Mode::empty())
        .err()
        .map(Errno::raw_os_error)
}

/// A file server's process and the path of its socket.
pub struct Process {
    pub child: Child,
    pub directory: TempDir,
}

impl Process {
    pub fn start() -> Self {
        Self::start_in(directory())
    }

    pub fn start_in(directory: TempDir) -> Self {
        Self::start_with(directory, &[])
    }

    /// Starts the process with a network namespace to enter.
    pub fn start_in_network(network: &fs::File) -> Self {
        let network = [(network.as_raw_fd(), NETWORK_FD)];
        Self::start_as(&[ARGUMENT, IN_NETWORK], directory(), &network)
    }

    /// Starts the process with `more` descriptors than it is told of, under the numbers beside them.
    pub fn start_with(directory: TempDir, more: &[(RawFd, RawFd)]) -> Self {
        Self::start_as(&[ARGUMENT], directory, more)
    }

    fn start_as(arguments: &[&str], directory: TempDir, more: &[(RawFd, RawFd)]) -> Self {
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let share: OwnedFd = fs::File::open(directory.path().join("share"))
            .unwrap()
            .into();
        let told = [
            (listener.as_raw_fd(), LISTENER_FD),
            (share.as_raw_fd(), DIRECTORY_FD),
        ];
        let child = spawn(arguments, &[&told, more].concat());
        Self { child, directory }
    }

    pub fn connect(&self) -> (Machine, GuestMemory) {
        Machine::connect(&self.directory.path().join("socket"))
    }

    pub fn proc(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap()
    }

    /// The end of the process and what it said.
    pub fn end(mut self) -> (ExitStatus, String) {
        let status = wait(&mut self.child);
        let mut text = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        (status, text)
    }

    /// A guest whose server this is.
    pub fn into_guest(self) -> Guest {
        let (machine, memory) = self.connect();
        Guest::linked(Box::new(machine), memory, self.directory)
    }
}

pub fn spawn(arguments: &[&str], descriptors: &[(RawFd, RawFd)]) -> Child {
    let descriptors = descriptors.to_vec();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: between fork and exec there are only system calls.
    unsafe {
        command.pre_exec(move || {
            // First out of the way of each other.
            let high: Vec<_> = descriptors
                .iter()
                .map(|(from, _)| libc::fcntl(*from, libc::F_DUPFD_CLOEXEC, 100))
                .collect();
            for (from, (_, to)) in high.iter().zip(&descriptors) {
                if libc::dup2(*from, *to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.spawn().unwrap()
}

pub fn wait(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > DEADLINE {
            child.kill().unwrap();
            panic!("the file server has not ended within {DEADLINE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
