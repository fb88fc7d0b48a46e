// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A debugger for the guest: gdb connects to a socket, and finds a program whose threads are the vCPUs.
//!
//! It has a thread of its own, which is there only if it was asked for. While a debugger is connected and the guest
//! stopped, all vCPUs are out of the guest ([`Holder::Debugger`]); devices go on. Breakpoints are the CPU's own, which
//! the guest neither sees nor can use meanwhile, or `int3` in guest memory, which a guest that looks for them sees.

mod breakpoints;
mod connection;
mod registers;
mod target;
mod vcpu;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use coracle_memory::GuestMemory;
use gdbstub::stub::{DisconnectReason, GdbStub};
use kvm_bindings::kvm_debug_exit_arch;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::Exit;
use crate::ending::Ending;
use crate::filters::Filter;
use crate::vcpu::{Holder, VcpuGroup};
use connection::{Debugger, Ready, wait_for};
use target::{Guest, Session};

/// How long the debugger's thread may take to end with the machine.
const END: Duration = Duration::from_secs(1);

/// How long a debugger waits at the socket where there is no descriptor or memory for it.
const SHORTAGE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// vCPUs that stopped for the debugger, and the machine's end.
#[derive(Debug)]
pub(crate) struct Stops {
    queue: Mutex<Queue>,
    stopped: OwnedFd,
    ended: OwnedFd,
}

#[derive(Debug, Default)]
struct Queue {
    /// Whether there is a debugger to hear of them.
    attached: bool,
    stops: VecDeque<(usize, kvm_debug_exit_arch)>,
}

/// Makes an eventfd readable. Fails only when its counter is full, and then it is.
fn raise(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// Takes that back, if it was done.
fn lower(event: &OwnedFd) {
    let _ = rustix::io::read(event, &mut [0; 8]);
}

impl Stops {
    fn new() -> io::Result<Self> {
        let event = || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC);
        Ok(Self {
            queue: Mutex::default(),
            stopped: event()?,
            ended: event()?,
        })
    }

    /// A vCPU has stopped. If there is a debugger `hold` is called, so that each is here once at most. Whether there is.
    pub(crate) fn push(&self, vcpu: usize, exit: kvm_debug_exit_arch, hold: impl FnOnce()) -> bool {
        let mut queue = self.lock();
        if queue.attached {
            hold();
            queue.stops.push_back((vcpu, exit));
            raise(&self.stopped);
        }
        queue.attached
    }

    fn pop(&self) -> Option<(usize, kvm_debug_exit_arch)> {
        let mut queue = self.lock();
        let first = queue.stops.pop_front();
        if queue.stops.is_empty() {
            lower(&self.stopped);
        }
        first
    }

    fn clear(&self) {
        let mut queue = self.lock();
        queue.stops.clear();
        lower(&self.stopped);
    }

    /// From now on there is a debugger, or is none: no vCPU is held for one afterwards.
    fn attach(&self, attached: bool) {
        self.lock().attached = attached;
        self.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits a little for descriptors or memory. Whether the machine ended meanwhile.
    fn wait_for_resources(&self) -> bool {
        let mut ended = [PollFd::new(&self.ended, PollFlags::IN)];
        let polled = poll(&mut ended, Some(&SHORTAGE));
        polled.is_ok_and(|ready| ready > 0)
    }
}

/// The socket for a debugger, before the machine runs.
#[derive(Debug)]
pub(crate) struct Gdb {
    listener: UnixListener,
    /// Whether the guest waits for a debugger.
    wait: bool,
    block_interrupts: bool,
    stops: Arc<Stops>,
}

impl Gdb {
    pub(crate) fn new(listener: OwnedFd, wait: bool, block_interrupts: bool) -> io::Result<Self> {
        Ok(Self {
            listener: UnixListener::from(listener),
            wait,
            block_interrupts,
            stops: Arc::new(Stops::new()?),
        })
    }

    /// Where vCPUs tell of their stops.
    pub(crate) fn stops(&self) -> Arc<Stops> {
        Arc::clone(&self.stops)
    }

    /// Keeps the vCPUs, which have not started, for the debugger if the guest is to wait for it.
    pub(crate) fn prepare(&self, vcpus: &VcpuGroup) {
        if self.wait {
            vcpus.hold_all(Holder::Debugger);
        }
    }

    /// Serves debuggers on a thread, one after the other.
    pub(crate) fn start(
        self,
        vcpus: Arc<VcpuGroup>,
        memory: GuestMemory,
        ending: Arc<Ending>,
        filter: Option<Filter>,
    ) -> io::Result<RunningGdb> {
        let stops = self.stops();
        // Its other end goes with the thread.
        let (alive, gone) = channel::<()>();
        let thread = Builder::new().name("gdb".to_owned()).spawn(move || {
            let _alive = alive;
            let confined = filter.map_or(Ok(()), |filter| filter.apply());
            if let Err(error) = confined {
                ending.report(Err(crate::Fault::ConfineDebugger(error)));
                return;
            }
            self.serve(&vcpus, &memory, &ending);
        })?;
        Ok(RunningGdb {
            stops,
            thread: Some(thread),
            gone,
        })
    }

    fn serve(&self, vcpus: &Arc<VcpuGroup>, memory: &GuestMemory, ending: &Ending) {
        while let Ok(Ready::Readable) = wait_for(self.listener.as_fd(), &self.stops, false) {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                // The caller has shut the socket down: no debugger will come.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
                // It stays in the queue. The guest's connections take descriptors of the same table.
                Err(_) if self.stops.wait_for_resources() => break,
                Err(_) => continue,
            };
            let guest = Guest::attach(
                Arc::clone(vcpus),
                memory.clone(),
                self.stops(),
                self.block_interrupts,
            );
            match guest {
                Ok(mut guest) => {
                    let debugger = Debugger::new(socket, self.stops());
                    let ended = GdbStub::new(debugger).run_blocking::<Session>(&mut guest);
                    if let Ok(DisconnectReason::Kill) = ended {
                        ending.report(Ok(Exit::Stopped));
                    }
                }
                // Closed: gdb says so.
                Err(_) => vcpus.release_all(Holder::Debugger),
            }
        }
        vcpus.release_all(Holder::Debugger);
    }
}

/// The debugger's thread.
#[derive(Debug)]
pub(crate) struct RunningGdb {
    stops: Arc<Stops>,
    thread: Option<JoinHandle<()>>,
    gone: Receiver<()>,
}

impl RunningGdb {
    /// Tells the debugger that the machine has ended, and waits for the thread, though not for a debugger that does not
    /// listen.
    pub(crate) fn stop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        raise(&self.stops.ended);
        let still_there = self.gone.recv_timeout(END);
        if still_there != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            // A panic was printed when it happened.
            let _ = thread.join();
        }
    }
}
