// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that drives the device through its transport and queues, on the test's own thread, and the host
//! around it.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::testing::{self, Driver, LocalWorkers};
use coracle_virtio::{DeviceStatus, Interrupt, MmioTransport, QueueAddresses, Register, features};
use coracle_vsock::packet::{HEADER_LEN, Header, Op, Ports, TYPE_STREAM};
use coracle_vsock::{Limits, VsockDevice, VsockHandle};
use tempfile::TempDir;

pub const CID: u64 = 42;
pub const RX: usize = 0;
pub const TX: usize = 1;
pub const EVENT: usize = 2;

/// What most tests connect.
pub const PORTS: Ports = ports(52, 1000);

/// Where each driver has its part of memory.
const PART: u64 = 128 << 20;

/// Longest that anything may take here.
pub const DEADLINE: Duration = Duration::from_secs(30);

pub struct Guest {
    pub transport: MmioTransport,
    pub drivers: [Driver; 3],
    pub interrupt: Interrupt,
    pub workers: Arc<LocalWorkers>,
    pub memory: GuestMemory,
    pub handle: VsockHandle,
    dir: TempDir,
    listener: UnixListener,
    inbox: VecDeque<(Header, Vec<u8>)>,
    /// Buffers that the device has.
    given: usize,
}

impl Guest {
    pub fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    /// A guest with a connection of [`PORTS`], and the host's end of it.
    pub fn connected() -> (Self, UnixStream) {
        Self::connected_with(Limits::default())
    }

    pub fn connected_with(limits: Limits) -> (Self, UnixStream) {
        let mut guest = Self::with_limits(limits);
        let host = guest.connect(PORTS);
        (guest, host)
    }

    pub fn with_limits(limits: Limits) -> Self {
        let ranges = [
            (GuestAddress(0), 3 * PART),
            (GuestAddress(4 * PART), PART),
            (GuestAddress(5 * PART), PART),
        ];
        let memory = GuestMemory::anonymous(&ranges).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let device = VsockDevice::with_limits(CID, socket_path(&dir, None), limits).unwrap();
        let handle = device.handle();
        let listener = UnixListener::bind(socket_path(&dir, Some(PORTS.host))).unwrap();
        listener.set_nonblocking(true).unwrap();
        let workers = Arc::new(LocalWorkers::new());
        let interrupt = testing::interrupt();
        let transport = MmioTransport::new(
            Box::new(device),
            memory.clone(),
            interrupt.clone(),
            workers.clone(),
        )
        .unwrap();
        let mut guest = Self {
            drivers: drivers(&memory),
            transport,
            interrupt,
            workers,
            memory,
            handle,
            dir,
            listener,
            inbox: VecDeque::new(),
            given: 0,
        };
        guest.activate();
        guest
    }

    /// Resets the device if it was active, and makes it so with new queues.
    pub fn activate(&mut self) {
        self.drivers = drivers(&self.memory);
        self.inbox.clear();
        self.given = 0;
        let accepted = features::VERSION_1 | features::RING_EVENT_IDX;
        let queues: Vec<QueueAddresses> = self.drivers.iter().map(Driver::addresses).collect();
        let status = testing::activate(&mut self.transport, accepted, &queues);
        assert!(status & DeviceStatus::DRIVER_OK != 0);
        assert!(status & DeviceStatus::NEEDS_RESET == 0);
    }

    pub fn needs_reset(&mut self) -> bool {
        let status = testing::read_register(&mut self.transport, Register::Status);
        status & DeviceStatus::NEEDS_RESET != 0
    }

    /// Path of the device's socket, or of a port's.
    pub fn path(&self, port: Option<u32>) -> PathBuf {
        socket_path(&self.dir, port)
    }

    /// A program of the host listens on the port of [`PORTS`]: its next connection.
    pub fn accept(&self) -> Option<UnixStream> {
        let (stream, _) = self.listener.accept().ok()?;
        stream.set_nonblocking(true).unwrap();
        Some(stream)
    }

    /// A program of the host connects and says `line`.
    pub fn host_connects(&self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.path(None)).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream
    }

    /// Kicks a queue and lets the device work until it has nothing to do.
    pub fn kick(&mut self, queue: usize) {
        self.transport.kicks()[queue].write(1).unwrap();
        self.run();
    }

    pub fn run(&self) {
        while self.workers.run() > 0 {}
    }

    /// Gives the device buffers, each of pieces with these lengths.
    pub fn give_buffers(&mut self, count: usize, pieces: &[u32]) {
        for _ in 0..count {
            self.drivers[RX].add(&[], pieces).unwrap();
        }
        self.given += count;
        self.kick(RX);
    }

    /// Gives the device as many buffers of this length as make `count` in all.
    pub fn top_up_buffers(&mut self, count: usize, len: u32) {
        self.give_buffers(count - self.given, &[len]);
    }

    /// Makes a packet available in pieces, without a kick.
    pub fn add_pieces(&mut self, pieces: &[&[u8]]) {
        while self.drivers[TX].used().unwrap().is_some() {}
        self.drivers[TX].add(pieces, &[]).unwrap();
    }

    pub fn add(&mut self, header: &Header, data: &[u8]) {
        let header = header.to_bytes();
        let pieces: &[&[u8]] = if data.is_empty() {
            &[&header]
        } else {
            &[&header, data]
        };
        self.add_pieces(pieces);
    }

    /// Sends a packet, and lets the device work.
    pub fn send(&mut self, header: &Header, data: &[u8]) {
        self.add(header, data);
        self.kick(TX);
    }

    /// The next packet from the device, if there is one.
    pub fn try_receive(&mut self) -> Option<(Header, Vec<u8>)> {
        while let Some(used) = self.drivers[RX].used().unwrap() {
            self.given = self.given.saturating_sub(1);
            if used.len == 0 {
                continue;
            }
            let header = Header::from_bytes(used.data[..HEADER_LEN].try_into().unwrap());
            assert_eq!(header.dst_cid, CID);
            assert_eq!(used.data.len() - HEADER_LEN, header.len as usize);
            self.inbox
                .push_back((header, used.data[HEADER_LEN..].to_vec()));
        }
        self.inbox.pop_front()
    }

    /// The next packet, which must be there. Gives a buffer for it if need be.
    pub fn receive(&mut self) -> (Header, Vec<u8>) {
        if let Some(packet) = self.try_receive() {
            return packet;
        }
        self.give_buffers(1, &[4096]);
        self.try_receive().expect("a packet")
    }

    /// The next packet, which must be of this operation.
    pub fn expect(&mut self, op: Op) -> Header {
        let (header, _) = self.receive();
        assert_eq!(Op::from_number(header.op), Some(op), "{header:?}");
        header
    }

    /// Nothing may be there.
    pub fn expect_nothing(&mut self) {
        self.give_buffers(1, &[4096]);
        let packet = self.try_receive();
        assert_eq!(packet, None);
    }

    /// Lets the device work until `done` gives something.
    pub fn wait_for<T>(&mut self, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            self.run();
            if let Some(value) = done(self) {
                return value;
            }
            assert!(begun.elapsed() < DEADLINE, "nothing came");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Connects these ports; the host's is the one that is listened on.
    pub fn connect(&mut self, ports: Ports) -> UnixStream {
        self.send(&packet(ports, Op::Request), &[]);
        let stream = self.accept().unwrap();
        self.expect(Op::Response);
        stream
    }

    /// All that comes until the end.
    pub fn read_to_end(&mut self, stream: &mut UnixStream) -> Vec<u8> {
        let mut came = Vec::new();
        self.wait_for(|_| {
            let (bytes, end) = read_now(stream);
            came.extend(bytes);
            end.then_some(())
        });
        came
    }

    /// The device does its work for a connection made now.
    pub fn assert_served(&mut self) {
        let ports = ports(PORTS.host, 900);
        let mut host = self.connect(ports);
        self.send(&data(ports, 5), b"hello");
        assert_eq!(read_now(&mut host), (b"hello".to_vec(), false));
    }
}

fn socket_path(dir: &TempDir, port: Option<u32>) -> PathBuf {
    let suffix = port.map_or_else(String::new, |port| format!("_{port}"));
    dir.path().join(format!("vsock{suffix}"))
}

fn drivers(memory: &GuestMemory) -> [Driver; 3] {
    [(0, 256), (1, 256), (2, 16)].map(|(index, size)| {
        let start = GuestAddress(index * PART);
        // Rings of a former life must not be taken for new ones.
        memory.write(start, &[0; 16 * 1024]).unwrap();
        Driver::new(memory, start, PART as usize, size).unwrap()
    })
}

pub const fn ports(host: u32, guest: u32) -> Ports {
    Ports { host, guest }
}

/// A packet from the guest, with plenty of credit for the host.
pub fn packet(ports: Ports, op: Op) -> Header {
    Header {
        src_cid: CID,
        dst_cid: 2,
        src_port: ports.guest,
        dst_port: ports.host,
        socket_type: TYPE_STREAM,
        op: op.number(),
        buf_alloc: 256 * 1024,
        ..Header::default()
    }
}

pub fn data(ports: Ports, len: usize) -> Header {
    Header {
        len: u32::try_from(len).unwrap(),
        ..packet(ports, Op::Rw)
    }
}

pub fn shutdown(ports: Ports, flags: u32) -> Header {
    Header {
        flags,
        ..packet(ports, Op::Shutdown)
    }
}

/// What can be read now; `true` if the end was seen.
pub fn read_now(stream: &mut UnixStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let end = match stream.read_to_end(&mut bytes) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        Err(error) => panic!("{error}"),
    };
    (bytes, end)
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0_u32..)
        .map(|index| (index.wrapping_mul(0x9e37_79b9).wrapping_add(seed) >> 24) as u8)
        .take(len)
        .collect()
}
