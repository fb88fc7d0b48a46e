// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When the process ends, and what it says then.

use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use coracle_memory::GuestAddress;
use coracle_virtiofs::daemon::{self, DaemonConfig, DaemonError};
use coracle_virtiofs::filesystem::{Entry, FileSystem, HandleId, Negotiated, NodeId};
use coracle_virtiofs::fuse::Name;
use coracle_virtiofs::fuse::abi::*;
use coracle_virtiofs::server::{Server, ServerConfig};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::guest::{Guest, QUEUE_SIZE, ROOT, TABLE, directory};
use crate::machine::{Machine, QUEUE};
use crate::process::{DEADLINE, Process};

tests![
    the_process_ends_when_the_machine_hangs_up,
    the_process_ends_when_nobody_connects,
    a_broken_ring_ends_the_process_with_the_cause,
    a_broken_chain_ends_the_process_with_the_cause,
    a_stale_kick_is_harmless,
    a_kick_that_cannot_be_read_ends_the_process_with_the_cause,
    a_queue_thread_that_panics_ends_the_service,
];

fn the_process_ends_when_the_machine_hangs_up() {
    let process = Process::start();
    let (machine, _memory) = process.connect();

    drop(machine);

    let (status, text) = process.end();
    assert!(status.success(), "{text}");
    assert_eq!(text, "");
}

fn the_process_ends_when_nobody_connects() {
    let (status, text) = Process::start().end();

    assert_eq!(status.code(), Some(1));
    assert_eq!(
        text,
        "no virtual machine has connected to the file server within 2 s\n"
    );
}

fn a_broken_ring_ends_the_process_with_the_cause() {
    let process = Process::start();
    let (machine, memory) = process.connect();

    // More requests than the ring holds.
    machine.publish(&memory, QUEUE_SIZE + 1);

    let (status, text) = process.end();
    assert_eq!(status.code(), Some(1));
    assert!(
        text.contains("has broken the file server's queue 1: its rings do not hold together"),
        "{text}"
    );
    drop(machine);
}

fn a_broken_chain_ends_the_process_with_the_cause() {
    let process = Process::start();
    let (machine, memory) = process.connect();

    // The first descriptor is a buffer of 0 bytes.
    machine.publish(&memory, 1);

    let (status, text) = process.end();
    assert_eq!(status.code(), Some(1));
    assert!(
        text.contains("its descriptor chain 0 is broken: descriptor 0"),
        "{text}"
    );
    drop(machine);
}

/// The virtual machine stops a queue and hands over another descriptor while the queue's thread has been
/// woken by the old one already. Here the old one is left registered, so that it is so every time.
fn a_stale_kick_is_harmless() {
    let process = Process::start();
    let (machine, memory) = process.connect();
    let unused = EventFd::new(EFD_NONBLOCK).unwrap();
    machine.set_kick(&unused);
    let Process { directory, .. } = process;

    let guest = Guest::linked(Box::new(machine), memory, directory);

    // The thread that has answered INIT is still there.
    assert_eq!(guest.lookup(ROOT, "nothing").unwrap_err(), libc::ENOENT);
    assert_eq!(guest.lookup(ROOT, "nothing").unwrap_err(), libc::ENOENT);
}

fn a_kick_that_cannot_be_read_ends_the_process_with_the_cause() {
    let process = Process::start();
    // Wakes whoever waits for it, being broken.
    let (_, writer) = std::io::pipe().unwrap();
    // SAFETY: nobody else owns the descriptor.
    let kick = unsafe { EventFd::from_raw_fd(writer.into_raw_fd()) };

    let (machine, _memory) =
        Machine::connect_kicking(&process.directory.path().join("socket"), kick);

    let (status, text) = process.end();
    assert_eq!(status.code(), Some(1));
    assert!(
        text.contains("the kicks of the file server's queue 1 cannot be read: Bad file"),
        "{text}"
    );
    drop(machine);
}

fn a_queue_thread_that_panics_ends_the_service() {
    struct Faulty;
    impl FileSystem for Faulty {
        fn init(&self, _: Negotiated) {
            panic!("on purpose")
        }

        fn lookup(&self, _: NodeId, _: Name<'_>) -> Result<Entry, Errno> {
            Err(Errno::NOENT)
        }

        fn getattr(&self, _: NodeId, _: Option<HandleId>) -> Result<(Attr, Duration), Errno> {
            Err(Errno::STALE)
        }
    }
    let directory = directory();
    let socket = directory.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let served = std::thread::spawn(move || {
        let server = Server::new(Faulty, ServerConfig::default());
        daemon::serve(listener, server, &DaemonConfig::default())
    });
    let (machine, memory) = Machine::connect(&socket);
    // INIT of protocol 7.38, and room for the answer behind it.
    let init = [56, 26, 1, 0, 1, 0, 0, 0, 0, 0, 7, 38, 0x2_0000, 0_u32];
    memory.write_obj(GuestAddress(0x1000), &init).unwrap();
    let (next, write) = (1 << 32, 2 << 32);
    let table = [0x1000, 56 | next | 1 << 48, 0x2000, 0x1000 | write];
    memory
        .write_obj::<[u64; 4]>(GuestAddress(TABLE), &table)
        .unwrap();

    machine.publish(&memory, 1);

    let start = Instant::now();
    while !served.is_finished() {
        assert!(start.elapsed() < DEADLINE, "it still serves");
        std::thread::sleep(Duration::from_millis(5));
    }
    let error = served.join().unwrap().unwrap_err();
    assert!(
        matches!(error, DaemonError::Panicked { queue: QUEUE }),
        "{error}"
    );
}
