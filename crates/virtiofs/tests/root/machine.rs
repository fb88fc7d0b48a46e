// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtual machine's side of vhost-user.

use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;

use coracle_memory::{GuestAddress, GuestMemory};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::guest::{Link, MEMORY, QUEUE_SIZE, TABLE};
use crate::process::DEADLINE;

/// Queue 0 is for requests that need no answer.
pub const QUEUE: usize = 1;
const AVAILABLE: u64 = MEMORY - 0x2000;
const USED: u64 = MEMORY - 0x1000;

/// A virtual machine's side of the connection, with one queue.
pub struct Machine {
    frontend: Frontend,
    kick: EventFd,
    call: EventFd,
    available: Cell<u16>,
}

impl Machine {
    pub fn connect(socket: &Path) -> (Self, GuestMemory) {
        Self::connect_kicking(socket, EventFd::new(EFD_NONBLOCK).unwrap())
    }

    pub fn connect_kicking(socket: &Path, kick: EventFd) -> (Self, GuestMemory) {
        let memory = GuestMemory::shared(&[(GuestAddress(0), MEMORY)]).unwrap();
        let mut frontend = Frontend::from_stream(UnixStream::connect(socket).unwrap(), 2);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend
            .set_protocol_features(protocol & VhostUserProtocolFeatures::REPLY_ACK)
            .unwrap();
        // Without EVENT_IDX every answer is called.
        frontend.set_features(features & !(1 << 29)).unwrap();
        let region = &memory.regions()[0];
        let (file, mmap_offset) = region.file().unwrap();
        let host = region.host_address() as u64;
        frontend
            .set_mem_table(&[VhostUserMemoryRegionInfo {
                guest_phys_addr: 0,
                memory_size: MEMORY,
                userspace_addr: host,
                mmap_offset,
                mmap_handle: file.as_raw_fd(),
            }])
            .unwrap();
        let ring = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: host + TABLE,
            used_ring_addr: host + USED,
            avail_ring_addr: host + AVAILABLE,
            log_addr: None,
        };
        let call = EventFd::new(EFD_NONBLOCK).unwrap();
        frontend.set_vring_num(QUEUE, QUEUE_SIZE).unwrap();
        frontend.set_vring_addr(QUEUE, &ring).unwrap();
        frontend.set_vring_base(QUEUE, 0).unwrap();
        frontend.set_vring_call(QUEUE, &call).unwrap();
        frontend.set_vring_kick(QUEUE, &kick).unwrap();
        frontend.set_vring_enable(QUEUE, true).unwrap();
        (
            Self {
                frontend,
                kick,
                call,
                available: Cell::new(0),
            },
            memory,
        )
    }

    /// Has the queue kicked by another descriptor; this machine goes on to use the first one.
    pub fn set_kick(&self, kick: &EventFd) {
        self.frontend.set_vring_kick(QUEUE, kick).unwrap();
    }

    pub fn publish(&self, memory: &GuestMemory, index: u16) {
        memory
            .store_u16(GuestAddress(AVAILABLE + 2), index, Ordering::Release)
            .unwrap();
        self.kick.write(1).unwrap();
    }
}

impl Link for Machine {
    fn exchange(&self, memory: &GuestMemory) -> u32 {
        let at = self.available.get();
        let slot = u64::from(at % QUEUE_SIZE);
        memory
            .write_obj(GuestAddress(AVAILABLE + 4 + 2 * slot), &0_u16)
            .unwrap();
        self.available.set(at.wrapping_add(1));
        self.publish(memory, self.available.get());

        let timeout = Timespec::try_from(DEADLINE).unwrap();
        // SAFETY: the descriptor is open for as long as `self` is.
        let call = unsafe { rustix::fd::BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
        let ready = poll(
            &mut [PollFd::from_borrowed_fd(call, PollFlags::IN)],
            Some(&timeout),
        )
        .unwrap();
        assert_eq!(ready, 1, "no answer within {DEADLINE:?}");
        self.call.read().unwrap();
        let used = memory
            .load_u16(GuestAddress(USED + 2), Ordering::Acquire)
            .unwrap();
        assert_eq!(used, self.available.get());
        memory
            .read_obj(GuestAddress(USED + 4 + 8 * slot + 4))
            .unwrap()
    }
}
