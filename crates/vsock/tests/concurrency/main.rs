// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest, a worker and programs of the host on threads of their own, with much data through all
//! of them: no kick, no interrupt, no event of a socket and no credit may be lost. A guest that
//! kicks, and tells of its credit, as seldom as Linux does waits for ever when one is.

mod linux;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use coracle_memory::GuestAddress;
use coracle_virtio::testing::{Driver, OneThread, activate, interrupt, memory};
use coracle_virtio::{MmioTransport, features};
use coracle_vsock::{Limits, VsockDevice};
use rstest::rstest;

use linux::{CID, FIRST_PORT, Guest, Kernel, PART, Program};

/// After this long without a byte, something was lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// One test at a time, or the threads of each would seldom run at once.
static TURN: Mutex<()> = Mutex::new(());

/// How a program of the host treats its socket.
#[derive(Clone, Copy)]
struct Pace {
    /// Most bytes at a time.
    chunk: usize,
    /// Bytes after which it rests for a moment.
    rest_after: usize,
}

impl Pace {
    /// As fast as it can.
    const fn fast(chunk: usize) -> Self {
        let rest_after = usize::MAX;
        Self { chunk, rest_after }
    }

    /// With a rest after each so many bytes.
    const fn slow(chunk: usize, rest_after: usize) -> Self {
        Self { chunk, rest_after }
    }

    fn rest(self, before: usize, after: usize) {
        if before / self.rest_after != after / self.rest_after {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What is sent, and how.
#[derive(Clone, Copy)]
struct Scene {
    kernel: Kernel,
    queue_sizes: [u16; 2],
    limits: Limits,
    program: Program,
    writer: Pace,
    reader: Pace,
    connections: u32,
    len: usize,
}

/// The byte at that place.
const fn pattern(place: usize) -> u8 {
    ((place as u32).wrapping_mul(0x9e37_79b9) >> 24) as u8
}

fn connect(path: &Path, port: u32) -> Result<UnixStream, String> {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .unwrap();
    let mut byte = [0];
    while byte != *b"\n" {
        match stream.read(&mut byte) {
            Ok(1) => {}
            other => return Err(format!("port {port}: no answer: {other:?}")),
        }
    }
    Ok(stream)
}

fn write_all(mut stream: UnixStream, len: usize, pace: Pace) -> Result<(), String> {
    let mut sent = 0;
    while sent < len {
        let end = len.min(sent + pace.chunk);
        let part: Vec<u8> = (sent..end).map(pattern).collect();
        let count = retry(|| stream.write(&part))
            .map_err(|error| format!("writing is stuck at {sent} of {len} bytes: {error}"))?;
        pace.rest(sent, sent + count);
        sent += count;
    }
    stream.shutdown(Shutdown::Write).unwrap();
    // The guest closes its end of the connection in return.
    match retry(|| stream.read(&mut [0])) {
        Ok(0) => Ok(()),
        other => Err(format!("instead of the end of the input: {other:?}")),
    }
}

fn read_all(mut stream: UnixStream, len: usize, pace: Pace) -> Result<(), String> {
    let mut received = 0;
    let mut part = vec![0; pace.chunk];
    loop {
        let count = retry(|| stream.read(&mut part))
            .map_err(|error| format!("reading is stuck at {received} of {len} bytes: {error}"))?;
        if count == 0 {
            break;
        }
        if let Some(place) = (0..count).find(|&place| part[place] != pattern(received + place)) {
            return Err(format!("byte {} is wrong", received + place));
        }
        pace.rest(received, received + count);
        received += count;
    }
    if received == len {
        Ok(())
    } else {
        Err(format!("{received} of {len} bytes arrived"))
    }
}

fn retry(mut call: impl FnMut() -> std::io::Result<usize>) -> std::io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Sends everything through the guest and back, a program for each direction.
fn echo(scene: Scene) {
    run(scene, |path| {
        (0..scene.connections)
            .flat_map(|index| programs(path, FIRST_PORT + 2 * index, scene))
            .collect()
    });
}

/// Runs programs of the host with a guest, and panics with what was stuck, if anything was.
fn run(scene: Scene, programs: impl FnOnce(&Path) -> Vec<HostProgram>) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vsock");
    let memory = memory(3 * PART);
    let [rx_size, tx_size] = scene.queue_sizes;
    let drivers = [(0, rx_size), (1, tx_size), (2, 16)].map(|(part, size)| {
        Driver::new(&memory, GuestAddress(part * PART), PART as usize, size).unwrap()
    });
    let addresses: Vec<_> = drivers.iter().map(Driver::addresses).collect();
    let device = VsockDevice::with_limits(CID, path.clone(), scene.limits).unwrap();
    let interrupt = interrupt();
    let workers = Arc::new(OneThread::default());
    let mut transport =
        MmioTransport::new(Box::new(device), memory, interrupt.clone(), workers).unwrap();
    let event_idx = if scene.kernel.event_idx {
        features::RING_EVENT_IDX
    } else {
        0
    };
    activate(&mut transport, features::VERSION_1 | event_idx, &addresses);
    let [rx, tx, _] = drivers;
    let guest = Guest::new(transport, [rx, tx], interrupt, scene.kernel, scene.program);
    let stop = Arc::new(AtomicBool::new(false));
    let guest = {
        let stop = Arc::clone(&stop);
        thread::spawn(move || guest.run(&stop))
    };

    let results: Vec<_> = programs(&path)
        .into_iter()
        .filter_map(|host| host.join().unwrap().err())
        .collect();
    stop.store(true, Ordering::Relaxed);
    let guest = guest.join().unwrap();

    assert!(results.is_empty(), "{results:#?}\n{guest}");
}

/// A program of the host on its thread; its failure is what it waited for.
type HostProgram = JoinHandle<Result<(), String>>;

/// A program that writes to a port, and one that reads from the next.
fn programs(path: &Path, port: u32, scene: Scene) -> [HostProgram; 2] {
    let (input, output): (PathBuf, PathBuf) = (path.into(), path.into());
    [
        thread::spawn(move || write_all(connect(&input, port)?, scene.len, scene.writer)),
        thread::spawn(move || read_all(connect(&output, port + 1)?, scene.len, scene.reader)),
    ]
}

/// A program that sends a few bytes and waits until they are back, over and over.
fn ping_pong(path: &Path, port: u32, rounds: usize) -> HostProgram {
    let path: PathBuf = path.into();
    thread::spawn(move || {
        let mut input = connect(&path, port)?;
        let mut output = connect(&path, port + 1)?;
        for round in 0..rounds {
            let sent = round.to_le_bytes();
            let mut back = [0; size_of::<usize>()];
            input
                .write_all(&sent)
                .and_then(|()| output.read_exact(&mut back))
                .map_err(|error| format!("round {round} of {rounds} is stuck: {error}"))?;
            assert_eq!(back, sent);
        }
        Ok(())
    })
}

const SCENE: Scene = Scene {
    kernel: Kernel::LATE,
    queue_sizes: [256, 256],
    limits: LIMITS,
    program: Program {
        pipe: 64 * 1024,
        chunk: 64 * 1024,
    },
    writer: Pace::fast(64 * 1024),
    reader: Pace::fast(64 * 1024),
    connections: 1,
    len: 4 << 20,
};

const LIMITS: Limits = Limits {
    connections: 32,
    buffer: 128 * 1024,
    connect_timeout: Duration::from_secs(10),
    close_timeout: Duration::from_secs(8),
};

#[rstest]
fn everything_comes_back_at_any_pace(
    #[values(Kernel::EARLY, Kernel::LATE)] kernel: Kernel,
    #[values(false, true)] event_idx: bool,
    #[values(Pace::fast(64 * 1024), Pace::fast(8191), Pace::slow(4096, 64 * 1024))] writer: Pace,
    #[values(Pace::fast(64 * 1024), Pace::fast(1021), Pace::slow(4096, 64 * 1024))] reader: Pace,
) {
    echo(Scene {
        kernel: Kernel {
            event_idx,
            ..kernel
        },
        writer,
        reader,
        ..SCENE
    });
}

#[rstest]
fn everything_comes_back_through_queues_of_any_size(
    #[values(Kernel::EARLY, Kernel::LATE)] kernel: Kernel,
    #[values(false, true)] event_idx: bool,
    #[values([2, 2], [4, 256], [256, 4], [16, 16])] queue_sizes: [u16; 2],
) {
    echo(Scene {
        kernel: Kernel {
            event_idx,
            ..kernel
        },
        queue_sizes,
        ..SCENE
    });
}

#[rstest]
#[case::small_pipe(4096, 4096, 128 * 1024)]
#[case::odd_pipe(59_713, 16 * 1024, 128 * 1024)]
#[case::small_buffer(64 * 1024, 64 * 1024, 5000)]
#[case::everything_large(1 << 20, 64 * 1024, 1 << 20)]
fn everything_comes_back_through_pipes_and_buffers_of_any_size(
    #[values(Kernel::EARLY, Kernel::LATE)] kernel: Kernel,
    #[case] pipe: usize,
    #[case] chunk: usize,
    #[case] buffer: u32,
) {
    echo(Scene {
        kernel,
        program: Program { pipe, chunk },
        limits: Limits { buffer, ..LIMITS },
        ..SCENE
    });
}

#[rstest]
fn everything_comes_back_on_many_connections_at_once(
    #[values(Kernel::EARLY, Kernel::LATE)] kernel: Kernel,
    #[values(false, true)] event_idx: bool,
    #[values([256, 256], [16, 16])] queue_sizes: [u16; 2],
) {
    echo(Scene {
        kernel: Kernel {
            event_idx,
            ..kernel
        },
        queue_sizes,
        reader: Pace::slow(16 * 1024, 512 * 1024),
        connections: 8,
        len: 2 << 20,
        ..SCENE
    });
}

/// All is asleep in between, and any one thing that is lost is missed: nothing else comes to make
/// good for it.
#[rstest]
fn every_one_of_many_small_messages_comes_back(
    #[values(Kernel::EARLY, Kernel::LATE)] kernel: Kernel,
    #[values(false, true)] event_idx: bool,
    #[values([256, 256], [2, 2])] queue_sizes: [u16; 2],
) {
    let scene = Scene {
        kernel: Kernel {
            event_idx,
            ..kernel
        },
        queue_sizes,
        ..SCENE
    };

    run(scene, |path| vec![ping_pong(path, FIRST_PORT, 5000)]);
}
