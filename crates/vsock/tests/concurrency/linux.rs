// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that treats its queues and its credit as Linux's vsock driver does, on a thread of its
//! own: it kicks only when the rings ask for it, and sleeps until the interrupt.
//!
//! Its program is like `cat` in a pipe: what comes in at one connection leaves by another, with a
//! pipe of bounded size between them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::testing::{Driver, Used, read_register, write_register};
use coracle_virtio::{DESC_NEXT, DESC_WRITE, Descriptor, Interrupt, MmioTransport, Register};
use coracle_vsock::packet::{
    HEADER_LEN, HOST_CID, Header, Op, Ports, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::poll::PollContext;

pub const CID: u64 = 42;

/// The first port that the program listens on. Connections to even ports are copied to those of the
/// odd port above.
pub const FIRST_PORT: u32 = 1000;

/// Size of a socket's receive buffer.
const BUF_ALLOC: u32 = 256 * 1024;
/// Largest packet that it sends, and how little room makes it send an update of credit.
const MAX_PACKET: usize = 64 * 1024;

/// Where each queue has its part of memory, and the buffers within it.
pub const PART: u64 = 16 << 20;
const BUFFERS: u64 = 1 << 20;

/// How often it looks whether it is to end. Looks at no ring then.
const ROUND: Duration = Duration::from_millis(20);

/// Reason of an interrupt: buffers were used.
const USED_BUFFERS: u32 = 1;

/// The ways of Linux's driver.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// It asks for kicks and interrupts by index.
    pub event_idx: bool,
    /// Data that fits in one buffer to receive with.
    pub rx_buffer: usize,
    /// A buffer to receive with has a descriptor of its own for the header.
    pub header_apart: bool,
    /// It gives credit also when the last byte was read, not only when it has given little.
    pub is_generous: bool,
    /// It kicks for each packet, not for all that it has to send.
    pub kicks_for_each: bool,
}

impl Kernel {
    /// As Linux 6.1 was.
    pub const EARLY: Self = Self {
        event_idx: true,
        rx_buffer: 4096,
        header_apart: true,
        is_generous: false,
        kicks_for_each: false,
    };

    /// As Linux 6.1 has become, and 6.12 is.
    pub const LATE: Self = Self {
        event_idx: true,
        rx_buffer: 3732,
        header_apart: false,
        is_generous: true,
        kicks_for_each: true,
    };
}

/// How the program treats its pipe.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Bytes that the pipe holds.
    pub pipe: usize,
    /// Most bytes that it takes from a socket, and gives to one, at a time.
    pub chunk: usize,
}

/// One of the two queues for packets.
struct Ring {
    driver: Driver,
    memory: GuestMemory,
    buffers: GuestAddress,
    data_len: usize,
    /// Descriptors of a packet: one, or one for the header and one for the data.
    step: u16,
    kick: EventFd,
    event_idx: bool,
    free: Vec<u16>,
    published: u16,
    kicked: u16,
    taken: u16,
}

impl Ring {
    fn new(
        driver: Driver,
        part: u64,
        (data_len, header_apart): (usize, bool),
        kick: EventFd,
        event_idx: bool,
    ) -> Self {
        let step = if header_apart { 2 } else { 1 };
        let chains = driver.addresses().size / step;
        Self {
            memory: driver.memory().clone(),
            driver,
            buffers: GuestAddress(part + BUFFERS),
            data_len,
            step,
            kick,
            event_idx,
            free: (0..chains).rev().collect(),
            published: 0,
            kicked: 0,
            taken: 0,
        }
    }

    fn header_at(&self, chain: u16) -> GuestAddress {
        let len = (HEADER_LEN + self.data_len) as u64;
        GuestAddress(self.buffers.0 + u64::from(chain) * len)
    }

    fn data_at(&self, chain: u16) -> GuestAddress {
        GuestAddress(self.header_at(chain).0 + HEADER_LEN as u64)
    }

    /// Publishes a chain with this many bytes of data, without a kick.
    fn publish(&mut self, chain: u16, len: usize, flags: u16) {
        let head = chain * self.step;
        let header = (self.header_at(chain), HEADER_LEN, flags);
        if self.step == 1 {
            self.put(head, (header.0, HEADER_LEN + len, flags));
        } else if len == 0 {
            self.put(head, header);
        } else {
            self.put(head, (header.0, HEADER_LEN, flags | DESC_NEXT));
            self.put(head + 1, (self.data_at(chain), len, flags));
        }
        self.driver.publish(head).unwrap();
        self.published = self.published.wrapping_add(1);
    }

    fn put(&mut self, index: u16, (address, len, flags): (GuestAddress, usize, u16)) {
        let descriptor = Descriptor {
            address: address.0,
            len: u32::try_from(len).unwrap(),
            flags,
            next: index + 1,
        };
        self.driver.put(index, descriptor).unwrap();
    }

    /// Kicks if the device asks for it (`virtqueue_kick`).
    fn kick(&mut self) {
        fence(Ordering::SeqCst);
        let added = self.published.wrapping_sub(self.kicked);
        self.kicked = self.published;
        let is_wanted = if self.event_idx {
            let event = self.driver.avail_event().unwrap();
            self.published.wrapping_sub(event).wrapping_sub(1) < added
        } else {
            self.driver.used_flags().unwrap() == 0
        };
        if is_wanted {
            self.kick.write(1).unwrap();
        }
    }

    /// Takes back a chain that was used (`virtqueue_get_buf`).
    fn take(&mut self) -> Option<(u16, Used)> {
        let used = self.driver.used().unwrap()?;
        self.taken = self.taken.wrapping_add(1);
        let chain = u16::try_from(used.head).unwrap() / self.step;
        self.free.push(chain);
        Some((chain, used))
    }

    fn disable_interrupts(&mut self) {
        if self.event_idx {
            // Linux's hack: an index that is far away most of the time.
            self.driver.set_used_event(0).unwrap();
        } else {
            self.driver.set_avail_flags(1).unwrap();
        }
    }

    /// Asks for an interrupt. Returns whether something was used meanwhile.
    fn enable_interrupts(&mut self) -> bool {
        if self.event_idx {
            self.driver.set_used_event(self.taken).unwrap();
        } else {
            self.driver.set_avail_flags(0).unwrap();
        }
        fence(Ordering::SeqCst);
        let index = GuestAddress(self.driver.addresses().used_ring.0 + 2);
        self.memory.load_u16(index, Ordering::Acquire).unwrap() != self.taken
    }
}

/// A connected socket (`virtio_vsock_sock`).
#[derive(Debug, Default)]
struct Socket {
    received: VecDeque<Vec<u8>>,
    /// Bytes of the first received packet that were read.
    offset: usize,
    rx_bytes: u32,
    fwd_cnt: u32,
    last_fwd_cnt: u32,
    tx_cnt: u32,
    peer_fwd_cnt: u32,
    peer_buf_alloc: u32,
    /// The peer sends no more.
    has_ended: bool,
    /// It was closed here.
    is_closed: bool,
}

impl Socket {
    fn space(&self) -> usize {
        let in_flight = self.tx_cnt.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(in_flight) as usize
    }

    /// The header of a packet that it sends now (`virtio_transport_inc_tx_pkt`).
    fn header(&mut self, ports: Ports, op: Op) -> Header {
        self.last_fwd_cnt = self.fwd_cnt;
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: ports.guest,
            dst_port: ports.host,
            socket_type: TYPE_STREAM,
            op: op.number(),
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.fwd_cnt,
            ..Header::default()
        }
    }

    /// Reads at most `len` bytes (`virtio_transport_stream_do_dequeue`): credit is given for whole
    /// packets.
    fn read(&mut self, len: usize, into: &mut VecDeque<u8>) -> usize {
        let mut total = 0;
        while total < len
            && let Some(packet) = self.received.front()
        {
            let part = (packet.len() - self.offset).min(len - total);
            into.extend(&packet[self.offset..self.offset + part]);
            total += part;
            self.offset += part;
            if self.offset == packet.len() {
                let whole = u32::try_from(packet.len()).unwrap();
                self.rx_bytes -= whole;
                self.fwd_cnt = self.fwd_cnt.wrapping_add(whole);
                self.offset = 0;
                self.received.pop_front();
            }
        }
        total
    }

    fn is_update_due(&self, kernel: Kernel) -> bool {
        let news = self.fwd_cnt.wrapping_sub(self.last_fwd_cnt);
        let is_low = ((BUF_ALLOC - news) as usize) < MAX_PACKET;
        is_low || (kernel.is_generous && news > 0 && self.rx_bytes == 0)
    }
}

/// The guest.
pub struct Guest {
    transport: MmioTransport,
    rx: Ring,
    tx: Ring,
    interrupt: Interrupt,
    kernel: Kernel,
    program: Program,
    sockets: BTreeMap<Ports, Socket>,
    pipes: BTreeMap<u32, VecDeque<u8>>,
    /// Packets that wait for room in the transmit queue; whether they answer others.
    to_send: VecDeque<(Header, Vec<u8>, bool)>,
    queued_replies: u16,
}

impl Guest {
    /// A guest whose queues (to receive, to send) are those of `drivers`, and active.
    pub fn new(
        transport: MmioTransport,
        [rx, tx]: [Driver; 2],
        interrupt: Interrupt,
        kernel: Kernel,
        program: Program,
    ) -> Self {
        let [rx_kick, tx_kick] = [0, 1].map(|queue| transport.kicks()[queue].try_clone().unwrap());
        let rx_packet = (kernel.rx_buffer, kernel.header_apart);
        Self {
            transport,
            rx: Ring::new(rx, 0, rx_packet, rx_kick, kernel.event_idx),
            tx: Ring::new(tx, PART, (MAX_PACKET, true), tx_kick, kernel.event_idx),
            interrupt,
            kernel,
            program,
            sockets: BTreeMap::new(),
            pipes: BTreeMap::new(),
            to_send: VecDeque::new(),
            queued_replies: 0,
        }
    }

    /// Works until `stop`. Returns what its state was then.
    pub fn run(mut self, stop: &AtomicBool) -> String {
        let raised = PollContext::new().unwrap();
        raised.add(self.interrupt.line(), ()).unwrap();
        self.fill();
        while !stop.load(Ordering::Relaxed) {
            let mut has_worked = self.receive();
            has_worked |= self.reclaim();
            has_worked |= self.run_program();
            has_worked |= self.send_queued();
            if !has_worked {
                self.sleep(&raised, stop);
            }
        }
        self.describe()
    }

    /// Sleeps until an interrupt tells that buffers were used (`vm_interrupt`), whatever is in the
    /// rings.
    fn sleep(&mut self, raised: &PollContext<()>, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            if raised.wait_timeout(ROUND).unwrap().iter().count() == 0 {
                continue;
            }
            self.interrupt.line().read().unwrap();
            let reasons = read_register(&mut self.transport, Register::InterruptStatus);
            write_register(&mut self.transport, Register::InterruptAck, reasons);
            if reasons & USED_BUFFERS != 0 {
                return;
            }
        }
    }

    /// `virtio_vsock_rx_fill`
    fn fill(&mut self) {
        while let Some(chain) = self.rx.free.pop() {
            self.rx.publish(chain, self.kernel.rx_buffer, DESC_WRITE);
        }
        self.rx.kick();
    }

    /// `virtio_transport_rx_work`
    fn receive(&mut self) -> bool {
        let size = self.rx.driver.addresses().size;
        let mut has_worked = false;
        loop {
            self.rx.disable_interrupts();
            let is_held_up = loop {
                if self.queued_replies >= size {
                    break true;
                }
                let Some((chain, used)) = self.rx.take() else {
                    break false;
                };
                has_worked = true;
                let mut packet = vec![0; used.len as usize];
                let at = self.rx.header_at(chain);
                self.rx.memory.read(at, &mut packet).unwrap();
                let header = Header::from_bytes(packet[..HEADER_LEN].try_into().unwrap());
                packet.drain(..HEADER_LEN);
                self.handle(&header, packet);
            };
            if is_held_up || !self.rx.enable_interrupts() {
                break;
            }
        }
        if self.rx.free.len() > usize::from(size / self.rx.step) / 2 {
            self.fill();
        }
        has_worked
    }

    /// `virtio_transport_recv_pkt`
    fn handle(&mut self, header: &Header, data: Vec<u8>) {
        assert_eq!(data.len(), header.len as usize);
        let ports = Ports {
            host: header.src_port,
            guest: header.dst_port,
        };
        let op = Op::from_number(header.op).unwrap();
        if op == Op::Request {
            self.sockets.insert(ports, Socket::default());
        }
        let Some(socket) = self.sockets.get_mut(&ports) else {
            assert_eq!(op, Op::Rst, "only a reset may follow the end");
            return;
        };
        socket.peer_buf_alloc = header.buf_alloc;
        socket.peer_fwd_cnt = header.fwd_cnt;
        match op {
            Op::Request => self.send(ports, Op::Response, Vec::new(), 0),
            Op::Rw => {
                socket.rx_bytes += header.len;
                assert!(socket.rx_bytes <= BUF_ALLOC, "the credit was overrun");
                socket.received.push_back(data);
            }
            Op::CreditRequest => self.send(ports, Op::CreditUpdate, Vec::new(), 0),
            Op::Shutdown => socket.has_ended |= header.flags & SHUTDOWN_SEND != 0,
            Op::Rst => {
                assert!(socket.is_closed, "{ports:?} was reset");
                self.sockets.remove(&ports);
            }
            Op::CreditUpdate => {}
            Op::Response => panic!("an answer to nothing"),
        }
    }

    /// `virtio_transport_tx_work`
    fn reclaim(&mut self) -> bool {
        let mut has_worked = false;
        loop {
            self.tx.disable_interrupts();
            while self.tx.take().is_some() {
                has_worked = true;
            }
            if !self.tx.enable_interrupts() {
                return has_worked;
            }
        }
    }

    fn send(&mut self, ports: Ports, op: Op, data: Vec<u8>, flags: u32) {
        let socket = self.sockets.get_mut(&ports).unwrap();
        let len = u32::try_from(data.len()).unwrap();
        socket.tx_cnt = socket.tx_cnt.wrapping_add(len);
        let header = Header {
            len,
            flags,
            ..socket.header(ports, op)
        };
        let is_reply = op == Op::Response;
        self.queued_replies += u16::from(is_reply);
        self.to_send.push_back((header, data, is_reply));
    }

    /// `virtio_transport_send_pkt_work`
    fn send_queued(&mut self) -> bool {
        let mut has_worked = false;
        while !self.to_send.is_empty() {
            let Some(chain) = self.tx.free.pop() else {
                // Linux kicks in any case if its queue is full.
                self.tx.kick.write(1).unwrap();
                break;
            };
            let (header, data, is_reply) = self.to_send.pop_front().unwrap();
            self.queued_replies -= u16::from(is_reply);
            let memory = &self.tx.memory;
            memory
                .write(self.tx.header_at(chain), &header.to_bytes())
                .unwrap();
            memory.write(self.tx.data_at(chain), &data).unwrap();
            self.tx.publish(chain, data.len(), 0);
            has_worked = true;
            if self.kernel.kicks_for_each {
                self.tx.kick();
            }
        }
        if has_worked && !self.kernel.kicks_for_each {
            self.tx.kick();
        }
        has_worked
    }

    /// Moves what can be moved from each even port to the next, a chunk at a time.
    fn run_program(&mut self) -> bool {
        let mut has_worked = false;
        let ports: Vec<Ports> = self.sockets.keys().copied().collect();
        for ports in ports {
            let index = (ports.guest - FIRST_PORT) / 2;
            let pipe = self.pipes.entry(index).or_default();
            let Some(socket) = self.sockets.get_mut(&ports) else {
                continue;
            };
            if socket.is_closed {
                continue;
            }
            if (ports.guest - FIRST_PORT).is_multiple_of(2) {
                let room = self.program.pipe - pipe.len();
                let read = socket.read(room.min(self.program.chunk), pipe);
                has_worked |= read > 0;
                if read > 0 && socket.is_update_due(self.kernel) {
                    self.send(ports, Op::CreditUpdate, Vec::new(), 0);
                }
                continue;
            }
            let len = pipe.len().min(self.program.chunk);
            let len = len.min(socket.space()).min(MAX_PACKET);
            if len > 0 {
                let data = pipe.drain(..len).collect();
                self.send(ports, Op::Rw, data, 0);
                has_worked = true;
            } else if pipe.is_empty() && self.close_input(index) {
                self.close(ports);
                has_worked = true;
            }
        }
        has_worked
    }

    /// Closes the input if it has come to its end.
    fn close_input(&mut self, index: u32) -> bool {
        let guest = FIRST_PORT + 2 * index;
        let input = self.sockets.iter().find(|(ports, socket)| {
            ports.guest == guest
                && socket.has_ended
                && socket.received.is_empty()
                && !socket.is_closed
        });
        let Some((&ports, _)) = input else {
            return false;
        };
        self.close(ports);
        true
    }

    fn close(&mut self, ports: Ports) {
        self.sockets.get_mut(&ports).unwrap().is_closed = true;
        let both = SHUTDOWN_SEND | SHUTDOWN_RECEIVE;
        self.send(ports, Op::Shutdown, Vec::new(), both);
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        for (name, ring) in [("rx", &self.rx), ("tx", &self.tx)] {
            let index = GuestAddress(ring.driver.addresses().used_ring.0 + 2);
            text += &format!(
                "{name}: published {}, used {}, taken {}, kick wanted at {} (flags {})\n",
                ring.published,
                ring.memory.load_u16(index, Ordering::Acquire).unwrap(),
                ring.taken,
                ring.driver.avail_event().unwrap(),
                ring.driver.used_flags().unwrap(),
            );
        }
        for (ports, socket) in &self.sockets {
            let packets = socket.received.len();
            text += &format!(
                "{ports:?}: {packets} packets, rx_bytes {}, fwd_cnt {} (told {}), tx_cnt {}, \
                 peer fwd_cnt {} of {}, ended {}, closed {}\n",
                socket.rx_bytes,
                socket.fwd_cnt,
                socket.last_fwd_cnt,
                socket.tx_cnt,
                socket.peer_fwd_cnt,
                socket.peer_buf_alloc,
                socket.has_ended,
                socket.is_closed,
            );
        }
        for (index, pipe) in &self.pipes {
            text += &format!("pipe {index}: {} bytes\n", pipe.len());
        }
        text += &format!("{} packets to send\n", self.to_send.len());
        text
    }
}
