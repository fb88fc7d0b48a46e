// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A confined guest and the file server of its shared file system.

mod common;

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::harness::{Needs, Tests};
use common::process::{Vmm, error_message};
use common::{code, driver};
use coracle_virtiofs::daemon::{DaemonConfig, DaemonError, serve};
use coracle_virtiofs::filesystem::{Entry, FileSystem, HandleId, NodeId, Result};
use coracle_virtiofs::fuse::Name;
use coracle_virtiofs::fuse::abi::Attr;
use coracle_virtiofs::server::{Server, ServerConfig};
use coracle_vmm::role::Event;
use coracle_vmm::{Exit, Share};
use rustix::io::Errno;

fn main() {
    Tests::new()
        .tests(
            Needs::KvmAndRoot,
            named![
                guest_is_answered_by_its_file_server,
                file_server_that_is_gone_is_told,
                machine_ends_when_its_file_server_goes_away,
            ],
        )
        .run()
}

/// Nothing is in it.
struct Empty;

impl FileSystem for Empty {
    fn lookup(&self, _: NodeId, _: Name<'_>) -> Result<Entry> {
        Err(Errno::NOENT)
    }

    fn getattr(&self, _: NodeId, _: Option<HandleId>) -> Result<(Attr, Duration)> {
        Err(Errno::STALE)
    }
}

/// A file server on a thread of its own, and a connection to it.
fn file_server() -> (JoinHandle<std::result::Result<(), DaemonError>>, UnixStream) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fs");
    let listener = UnixListener::bind(&path).unwrap();
    let connection = UnixStream::connect(&path).unwrap();
    let server = thread::spawn(move || {
        serve(
            listener,
            Server::new(Empty, ServerConfig::default()),
            &DaemonConfig::default(),
        )
    });
    (server, connection)
}

/// The driver's set-up, then FUSE's INIT of protocol 7.38 to the request queue.
fn guest_that_mounts() -> Vec<u8> {
    let init = [56, 26, 1, 0, 1, 0, 0, 0, 0, 0, 7, 38, 0x2_0000, 0];
    [
        driver::set_up(driver::WINDOW, 2),
        (0..)
            .zip(init)
            .flat_map(|(at, word)| code::store(driver::buffer(1) + at * 4, word))
            .collect(),
        driver::publish_request(driver::WINDOW, 1, 56, 0x400),
        driver::wait_for_used(1),
        // The answer's error and its protocol's major version.
        code::load(driver::answer(1) + 4),
        code::print_eax(),
        code::load(driver::answer(1) + 16),
        code::print_eax(),
    ]
    .concat()
}

fn start(code: &[u8], connection: UnixStream, serial: OwnedFd) -> Vmm {
    Vmm::with_guest(code, vec![connection.into(), serial], |config| {
        config.fs = vec![Share {
            tag: "share".to_owned(),
            socket: 5,
        }];
        config.serial_log = Some(6);
    })
}

fn guest_is_answered_by_its_file_server() {
    let (server, connection) = file_server();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let code = [&guest_that_mounts()[..], &code::power_off(), &code::SPIN].concat();
    let vmm = start(&code, connection, writer.into());

    let (events, _, stderr) = vmm.finish();

    let mut output = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut output).unwrap();
    let ended = Event::Exit {
        reason: Exit::Shutdown,
    };
    assert_eq!(events, [Event::Running, ended], "{stderr}");
    assert_eq!(output, [0, 0, 0, 0, 7, 0, 0, 0]);
    server.join().unwrap().unwrap();
}

fn file_server_that_is_gone_is_told() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (_reader, writer) = std::io::pipe().unwrap();
    drop(ours);
    let vmm = start(&code::SPIN, theirs, writer.into());

    let (events, status, _) = vmm.finish();

    let message = error_message(&events);
    let expected =
        r#"the devices cannot be set up: the shared file system "share" cannot be made: "#;
    assert!(message.starts_with(expected), "{message}");
    assert_eq!(status.code(), Some(1));
}

fn machine_ends_when_its_file_server_goes_away() {
    let (server, connection) = file_server();
    let socket = connection.try_clone().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let code = [&guest_that_mounts()[..], &code::SPIN].concat();
    let vmm = start(&code, connection, writer.into());
    std::io::Read::read_exact(&mut reader, &mut [0; 8]).unwrap();

    socket.shutdown(std::net::Shutdown::Both).unwrap();

    let (events, _, stderr) = vmm.finish();
    assert_eq!(
        error_message(&events),
        r#"the virtual machine failed: the backend of the shared file system "share" is gone"#,
        "{stderr}"
    );
    server.join().unwrap().unwrap();
}
