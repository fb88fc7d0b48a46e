// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtual machine from its configuration to its end.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use coracle_boot::{Boot, BootError};
use coracle_memory::{GuestMemory, MemoryError};
use kvm_ioctls::Kvm;
use thiserror::Error;
use vmm_sys_util::errno;

use crate::bus::Buses;
use crate::config::Config;
use crate::control::Control;
use crate::devices::{self, DiskThreads, Parts};
use crate::ending::Ending;
use crate::event_loop::EventLoop;
use crate::filters::{FilterError, Filters, Uses};
use crate::gdb::{Gdb, RunningGdb};
use crate::machine::Machine;
use crate::vcpu::{self, Context, Kicks, Vcpu, VcpuGroup};
use crate::{DeviceError, EventLoopError, Exit, Fault, KvmError};

/// Why a virtual machine cannot be made, or has ended against everybody's will.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VmError {
    /// No KVM, or no permission for it.
    #[error("/dev/kvm cannot be opened")]
    OpenKvm(#[source] errno::Error),
    /// A machine without vCPUs, or with more than the host can run.
    #[error("{asked} vCPUs are asked for; the host runs 1 to {most}")]
    Vcpus {
        /// What the configuration names.
        asked: u8,
        /// The host's limit.
        most: usize,
    },
    /// An impossible amount of memory.
    #[error("{mib} MiB of guest memory are not possible")]
    MemorySize {
        /// What the configuration names.
        mib: u64,
    },
    /// The host does not give the memory.
    #[error("{mib} MiB of guest memory cannot be had")]
    Memory {
        /// What the configuration names.
        mib: u64,
        /// The reason.
        source: MemoryError,
    },
    /// KVM refused something.
    #[error("the virtual machine cannot be set up")]
    Kvm(#[from] KvmError),
    /// A device cannot be made.
    #[error("the devices cannot be set up")]
    Devices(#[from] DeviceError),
    /// The kernel, the initrd or the command line is wrong.
    #[error("the guest cannot boot")]
    Boot(#[from] BootError),
    /// The event loop cannot be made.
    #[error("the event loop cannot be set up")]
    EventLoop(#[from] EventLoopError),
    /// The signal that calls vCPUs back is not to be had.
    #[error("the signal that stops vCPUs cannot be set up")]
    Kick(#[source] errno::Error),
    /// A thread is not to be had.
    #[error("a vCPU's thread cannot be started")]
    Thread(#[source] std::io::Error),
    /// A thread is not to be had.
    #[error("a disk's thread cannot be started")]
    DiskThread(#[source] std::io::Error),
    /// The calling thread cannot be confined.
    #[error("the event loop's thread cannot be confined")]
    Confine(#[from] FilterError),
    /// It ran, and could not go on.
    #[error("the virtual machine failed")]
    Failed(#[from] Fault),
}

/// For how long the threads of vCPUs are waited for when the machine has ended. They end at once, unless one waits for a
/// log that nobody reads.
const END: Duration = Duration::from_secs(2);

/// A virtual machine that does not run yet.
///
/// Everything that can fail for want of resources happens in [`Vm::new`]; [`start`](Self::start) only makes threads.
pub struct Vm {
    vcpus: Arc<VcpuGroup>,
    buses: Arc<Buses>,
    event_loop: EventLoop,
    disk_loops: Vec<EventLoop>,
    ending: Arc<Ending>,
    machine: Machine,
    gdb: Option<Gdb>,
    uses: Uses,
}

impl Vm {
    /// Makes the machine that `config` names and loads its kernel.
    ///
    /// # Errors
    ///
    /// [`VmError`] says what the host, the configuration or one of its files lacks.
    pub fn new(config: Config<OwnedFd>) -> Result<Self, VmError> {
        Self::with_kvm(&open_kvm()?, config)
    }

    /// As [`new`](Self::new), with `/dev/kvm` opened before: for a caller who has no path to it any more.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn with_kvm(kvm: &Kvm, mut config: Config<OwnedFd>) -> Result<Self, VmError> {
        let kicks = Kicks::install().map_err(VmError::Kick)?;
        let ending = Arc::new(Ending::new().map_err(EventLoopError::Event)?);
        let mut event_loop = EventLoop::new(Arc::clone(&ending))?;
        let machine = Machine::new(kvm, memory(&config)?)?;
        let vcpus = vcpus(kvm, &machine, config.vcpus)?;
        let uses = Uses::of(&config);
        let parts = Parts::take(&mut config);
        let devices = devices::assemble(parts, &machine, &mut event_loop, &ending)?;

        let gdb = config
            .gdb
            .map(|listener| Gdb::new(listener, config.gdb_wait, machine.blocks_interrupts()))
            .transpose()
            .map_err(EventLoopError::Event)?;

        let (kernel, initrd) = (File::from(config.kernel), config.initrd.map(File::from));
        let start = coracle_boot::load(
            machine.memory(),
            &Boot {
                kernel: &kernel,
                initrd: initrd.as_ref(),
                cmdline: &config.cmdline,
                vcpus: config.vcpus,
                mmio: &devices.mmio,
                serial_gsi: devices.serial_gsi,
            },
        )?;
        for first in vcpus.iter().take(1) {
            first.set_start(&start)?;
        }
        Ok(Self {
            vcpus: Arc::new(VcpuGroup::new(vcpus, kicks)),
            buses: Arc::new(devices.buses),
            event_loop,
            disk_loops: devices.disk_loops,
            ending,
            machine,
            gdb,
            uses,
        })
    }

    /// A handle that stops the machine from any thread.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.ending))
    }

    /// Stops the machine when the other end of `peer`, a socket or a pipe, is closed.
    pub fn stop_when_closed(&mut self, peer: OwnedFd) {
        self.event_loop.stop_when_closed(peer);
    }

    /// Does what is asked for on `socket`, one [`Request`](crate::role::Request) a line, and answers there. Stops the
    /// machine when the other end is closed.
    pub fn obey(&mut self, socket: UnixStream) {
        let control = Control::new(
            socket,
            Arc::clone(&self.vcpus),
            self.machine.memory().clone(),
            Arc::clone(&self.ending),
        );
        self.uses.control = true;
        self.vcpus.notify(self.event_loop.waker());
        self.event_loop.control(control);
    }

    /// Starts the vCPUs. With `filters` their threads, and then the calling thread, can make only the system calls
    /// that running this very machine takes; the calling thread keeps that confinement.
    ///
    /// # Errors
    ///
    /// [`VmError::Thread`] or [`VmError::Confine`]; vCPUs that run already are stopped again.
    pub fn start(self, filters: Option<Filters>) -> Result<RunningVm, VmError> {
        let filters = filters.as_ref();
        let vcpu_filter = filters
            .map(|filters| filters.vcpu(&self.uses))
            .transpose()?;
        let loop_filter = filters
            .map(|filters| filters.event_loop(&self.uses))
            .transpose()?;
        let disk_filter = filters
            .filter(|_| !self.disk_loops.is_empty())
            .map(Filters::disk)
            .transpose()?;
        let gdb_filter = filters
            .filter(|_| self.gdb.is_some())
            .map(Filters::debugger)
            .transpose()?;
        let disks = DiskThreads::start(self.disk_loops, disk_filter, Arc::clone(&self.ending))
            .map_err(VmError::DiskThread)?;
        let context = Context {
            buses: self.buses,
            ending: self.ending,
            filter: vcpu_filter.map(Arc::new),
            stops: self.gdb.as_ref().map(Gdb::stops),
        };
        let mut running = RunningVm {
            gdb: None,
            vcpus: self.vcpus,
            event_loop: Some(self.event_loop),
            _disks: disks,
            _buses: Arc::clone(&context.buses),
            machine: self.machine,
        };
        if let Some(gdb) = &self.gdb {
            gdb.prepare(&running.vcpus);
        }
        running.vcpus.start(&context).map_err(VmError::Thread)?;
        if let Some(gdb) = self.gdb {
            let (vcpus, memory) = (Arc::clone(&running.vcpus), running.machine.memory().clone());
            let started = gdb.start(vcpus, memory, context.ending, gdb_filter);
            running.gdb = Some(started.map_err(VmError::Thread)?);
        }
        if let Some(filter) = loop_filter {
            filter.apply()?;
        }
        Ok(running)
    }

    /// Runs the machine on this thread and others until it ends.
    ///
    /// # Errors
    ///
    /// [`VmError`] if it cannot start or go on.
    pub fn run(self) -> Result<Exit, VmError> {
        self.start(None)?.wait()
    }
}

/// Opens `/dev/kvm`.
pub(crate) fn open_kvm() -> Result<Kvm, VmError> {
    Kvm::new().map_err(VmError::OpenKvm)
}

/// Memory that vhost-user back ends can map too, if there are any.
fn memory(config: &Config<OwnedFd>) -> Result<GuestMemory, VmError> {
    let mib = config.memory_mib;
    let size = mib
        .checked_mul(1 << 20)
        .filter(|size| *size > 0)
        .ok_or(VmError::MemorySize { mib })?;
    let ranges = coracle_memory::layout(size);
    let is_private = config.fs.is_empty() && config.vhost_user.is_empty();
    let memory = match is_private {
        true => GuestMemory::anonymous(&ranges),
        false => GuestMemory::shared(&ranges),
    };
    memory.map_err(|source| VmError::Memory { mib, source })
}

fn vcpus(kvm: &Kvm, machine: &Machine, count: u8) -> Result<Vec<Vcpu>, VmError> {
    let most = kvm.get_max_vcpus();
    if count == 0 || usize::from(count) > most {
        return Err(VmError::Vcpus { asked: count, most });
    }
    let supported = vcpu::supported(kvm)?;
    let vcpus: Result<Vec<_>, _> = (0..count)
        .map(|index| Vcpu::new(machine, index, count, &supported))
        .collect();
    Ok(vcpus?)
}

/// Stops a machine, before it starts or while it runs. Clones stop the same machine.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<Ending>);

impl Stopper {
    /// Ends the machine with [`Exit::Stopped`], unless it has ended already. Returns at once.
    pub fn stop(&self) {
        self.0.report(Ok(Exit::Stopped));
    }
}

/// A virtual machine whose vCPUs run. Its devices are served while somebody waits for its end. Dropping it stops it.
pub struct RunningVm {
    gdb: Option<RunningGdb>,
    vcpus: Arc<VcpuGroup>,
    /// Gone once the machine has ended.
    event_loop: Option<EventLoop>,
    _disks: DiskThreads,
    _buses: Arc<Buses>,
    machine: Machine,
}

impl RunningVm {
    /// Serves the devices on the calling thread until the machine ends. Its vCPUs have stopped when this returns;
    /// what it is made of goes when it is dropped, which takes the kernel a while.
    ///
    /// # Errors
    ///
    /// [`VmError::Failed`] if it could not go on.
    pub fn wait(&mut self) -> Result<Exit, VmError> {
        let ended = match &mut self.event_loop {
            Some(event_loop) => event_loop.run(),
            // It was waited for before.
            None => Ok(Exit::Stopped),
        };
        self.stop();
        Ok(ended?)
    }

    fn stop(&mut self) {
        // A vCPU that waits for the event loop to take a worker gets its answer by this.
        self.event_loop = None;
        self.vcpus.stop(END);
        if let Some(gdb) = &mut self.gdb {
            gdb.stop();
        }
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        self.stop();
    }
}
