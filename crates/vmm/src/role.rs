// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM as a process of its own: started by a controlling process with a socket as descriptor 3, it takes a
//! [`Config`] from it, jails itself, runs the machine and says on the socket how that went.
//!
//! The socket is a Unix stream or packet socket. The first message is the configuration as JSON; the descriptors that
//! it names are inherited. The answers are [`Event`]s, JSON as well, one a line: `running` once the guest runs, then
//! `exit` or `error`. In between the controlling process may send [`Request`]s, one a line, each
//! of which is answered by an event. When it closes its end, or dies, the machine is stopped.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use kvm_ioctls::Kvm;
use thiserror::Error;

pub use crate::control::{Action, Event, Request};
use crate::filters::{FilterError, Filters, report_to};
use crate::jail::{Jail, JailError, Root};
use crate::sentence::sentence;
use crate::vm::open_kvm;
use crate::{Config, ConfigError, Vm, VmError};

/// The descriptor of the control socket.
pub const CONTROL: RawFd = 3;
/// How long the controlling process may take to make room for an event.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest configuration in bytes: many times what a machine with every device takes.
const MAX_CONFIG: usize = 64 * 1024;

/// Why the role failed.
#[derive(Debug, Error)]
#[non_exhaustive]
enum RoleError {
    #[error("the configuration cannot be received")]
    Receive(#[source] io::Error),
    #[error("the controlling process closed its socket before the configuration was complete")]
    NoConfig,
    #[error("the configuration is longer than {MAX_CONFIG} bytes")]
    ConfigTooLong,
    #[error("the configuration is wrong")]
    Parse(#[source] serde_json::Error),
    #[error("the configuration names descriptor {CONTROL}, which is the control socket")]
    NamesControl,
    #[error("the configuration cannot be used")]
    Config(#[from] ConfigError),
    #[error("the path {0} of the vsock device's socket is not absolute or has no file name")]
    VsockPath(PathBuf),
    #[error("the control socket cannot be used")]
    Control(#[source] io::Error),
    #[error("the VMM cannot be jailed")]
    Jail(#[from] JailError),
    #[error("the VMM cannot be confined")]
    Filters(#[from] FilterError),
    #[error(transparent)]
    Vm(#[from] VmError),
}

/// Lives the role in this process, from its start on: owns descriptor 3 and all that the configuration names.
///
/// The status is that of success when the machine ended in an ordinary way.
#[must_use]
pub fn main() -> ExitCode {
    // SAFETY: asking for the flags of a descriptor has no effect.
    if unsafe { libc::fcntl(CONTROL, libc::F_GETFD) } < 0 {
        eprintln!("coracle vmm: descriptor {CONTROL} is not open: it has to be the control socket");
        return ExitCode::FAILURE;
    }
    // SAFETY: the descriptor is open, and by the role's protocol it is this process's to own.
    let mut control = Control(UnixStream::from(unsafe { OwnedFd::from_raw_fd(CONTROL) }));
    match run(&mut control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = sentence(&error);
            if control
                .send(&Event::Error {
                    message: message.clone(),
                })
                .is_err()
            {
                eprintln!("coracle vmm: {message}");
            }
            ExitCode::FAILURE
        }
    }
}

/// What the role does, in order.
fn run(control: &mut Control) -> Result<(), RoleError> {
    use_one_heap();
    report_to(control.0.as_fd());
    let config = control.receive_config()?;
    // Only an event that cannot be sent is lost by it.
    control
        .0
        .set_write_timeout(Some(PATIENCE))
        .map_err(RoleError::Control)?;
    if config.descriptors().any(|number| *number == CONTROL) {
        return Err(RoleError::NamesControl);
    }
    // SAFETY: this process was started with the descriptors that the configuration names, and has not used them.
    let mut config = unsafe { config.claim() }?;
    let kvm = open_kvm()?;
    jail(&mut config, control, &kvm)?;
    let mut vm = Vm::with_kvm(&kvm, config)?;
    drop(kvm);
    let peer = control.0.try_clone().map_err(RoleError::Control)?;
    vm.obey(peer);
    let mut running = vm.start(Some(Filters::new()?))?;
    let _ = control.send(&Event::Running);
    let reason = running.wait()?;
    // Before the machine is taken apart, which nobody has to wait for.
    let _ = control.send(&Event::Exit { reason });
    Ok(())
}

/// Keeps the vCPU threads, which hardly allocate, from having a heap each.
fn use_one_heap() {
    // SAFETY: changes a number in the allocator, before there is a second thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Jails the process; what the configuration names by path it names as seen from inside afterwards.
fn jail(config: &mut Config<OwnedFd>, control: &Control, kvm: &Kvm) -> Result<(), RoleError> {
    let root = match &mut config.vsock {
        None => Root::Empty,
        Some(vsock) => {
            let (directory, inside) =
                split(&vsock.uds).ok_or_else(|| RoleError::VsockPath(vsock.uds.clone()))?;
            vsock.uds = inside;
            Root::Directory(directory)
        }
    };
    // SAFETY: `kvm` owns the descriptor for longer than it is borrowed here.
    let kvm = unsafe { std::os::fd::BorrowedFd::borrow_raw(kvm.as_raw_fd()) };
    let jail = Jail::new(root)
        .keeping([control.0.as_fd(), kvm])
        .keeping(config.borrowed())
        .in_network(config.network.as_ref().map(AsFd::as_fd));
    // SAFETY: this process has just started: whatever else it inherited is used by nobody.
    unsafe { jail.enter() }?;
    Ok(())
}

/// The directory of an absolute path, and the path as seen from there.
fn split(path: &Path) -> Option<(PathBuf, PathBuf)> {
    if !path.is_absolute() {
        return None;
    }
    let (directory, name) = (path.parent()?, path.file_name()?);
    Some((directory.to_owned(), Path::new("/").join(name)))
}

/// The socket to the controlling process.
struct Control(UnixStream);

impl Control {
    /// Reads until the bytes are a whole JSON value: a packet, or as much of a stream as it takes.
    fn receive_config(&mut self) -> Result<Config, RoleError> {
        let mut buffer = vec![0; MAX_CONFIG];
        let mut len = 0;
        while len < buffer.len() {
            match self.0.read(&mut buffer[len..]) {
                Ok(0) => return Err(RoleError::NoConfig),
                Ok(count) => len += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(RoleError::Receive(error)),
            }
            match serde_json::from_slice(&buffer[..len]) {
                Ok(config) => return Ok(config),
                Err(error) if error.is_eof() => {}
                Err(error) => return Err(RoleError::Parse(error)),
            }
        }
        Err(RoleError::ConfigTooLong)
    }

    /// Tells the controlling process, within [`PATIENCE`]. If it is gone it does not want to know, and the event loop
    /// stops the machine.
    fn send(&mut self, event: &Event) -> io::Result<()> {
        self.0.write_all(event.line().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const CONFIG: &[u8] = br#"{"vcpus": 1, "memory_mib": 16, "kernel": 5, "rng": true}"#;

    fn control() -> (Control, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Control(ours), theirs)
    }

    #[test]
    fn configuration_in_pieces_is_put_together() {
        let (mut control, mut peer) = control();
        let sender = std::thread::spawn(move || {
            for piece in CONFIG.chunks(7) {
                peer.write_all(piece).unwrap();
                std::thread::yield_now();
            }
            peer
        });

        let config = control.receive_config().unwrap();

        assert_eq!((config.kernel, config.rng), (5, true));
        sender.join().unwrap();
    }

    #[rstest]
    #[case::nothing(
        b"",
        "the controlling process closed its socket before the configuration was complete"
    )]
    #[case::cut(&CONFIG[..20], "the controlling process closed its socket before the configuration was complete")]
    #[case::no_json(
        b"hello",
        "the configuration is wrong: expected value at line 1 column 1"
    )]
    #[case::endless(&[b' '; MAX_CONFIG], "the configuration is longer than 65536 bytes")]
    fn wrong_configuration_is_a_sentence(#[case] sent: &[u8], #[case] expected: &str) {
        let (mut control, mut peer) = control();
        peer.write_all(sent).unwrap();
        drop(peer);

        let error = control.receive_config().unwrap_err();

        assert_eq!(sentence(&error), expected);
    }

    #[rstest]
    #[case("/run/pod/vsock", Some(("/run/pod", "/vsock")))]
    #[case("/vsock", Some(("/", "/vsock")))]
    #[case("pod/vsock", None)]
    #[case("/", None)]
    #[case("/run/..", None)]
    fn socket_is_named_as_seen_from_its_directory(
        #[case] path: &str,
        #[case] expected: Option<(&str, &str)>,
    ) {
        let found = split(Path::new(path));

        let expected = expected.map(|(directory, inside)| (directory.into(), inside.into()));
        assert_eq!(found, expected);
    }
}
