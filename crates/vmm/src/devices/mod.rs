// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a configuration to the devices of a machine: which there are ([`assemble`]), where they stand ([`resources`]),
//! where their output goes ([`logs`]), which threads serve disks ([`disks`]), which devices other processes serve
//! ([`vhost_user`]) and how the guest turns the machine off ([`power`]).

mod disks;
mod logs;
mod power;
mod resources;
mod vhost_user;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use coracle_boot::MmioDevice;
use coracle_boot::layout::SERIAL_PORT;
use coracle_devices::LogError;
use coracle_devices::console::Console;
use coracle_devices::fs::{FsError, file_system};
use coracle_devices::legacy::{PioDevice, i8042, rtc, serial};
use coracle_devices::net::{Net as NetDevice, NetError};
use coracle_devices::rng::Rng;
use coracle_devices::vhost_user::{PATIENCE, VhostUserDevice, VhostUserError};
use coracle_virtio::{Interrupt, MmioTransport, TransportError, VirtioDevice, Workers};
use coracle_vsock::VsockDevice;
use event_manager::EventSet;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::{Bus, BusError, Buses};
use crate::config::{Config, Disk, Net, Share, VHOST_USER_UID, VhostUser, Vsock};
use crate::ending::Ending;
use crate::event_loop::EventLoop;
use crate::machine::Machine;
use crate::{Exit, Fault, KvmError};
pub use disks::DiskSetupError;
pub(crate) use disks::DiskThreads;
use logs::Logs;
use power::Power;
use resources::Resources;

/// Queues of a file system device besides the one for urgent requests. One event loop serves them all, so more would
/// not be faster.
const FS_REQUEST_QUEUES: u16 = 1;

/// Why the devices of a machine cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A shared file system cannot be made.
    #[error("the shared file system {tag:?} cannot be made")]
    Fs {
        /// Its tag.
        tag: String,
        /// The reason.
        source: Box<FsError>,
    },
    /// The backend of a shared file system cannot be watched.
    #[error("the backend of the shared file system {tag:?} cannot be watched")]
    FsWatch {
        /// Its tag.
        tag: String,
        /// The reason.
        source: std::io::Error,
    },
    /// A disk cannot be made.
    #[error("disk {index} cannot be made")]
    Disk {
        /// Which one, in the order of the configuration.
        index: usize,
        /// The reason.
        source: DiskSetupError,
    },
    /// A device of another process cannot be made.
    #[error("vhost-user device {index} cannot be made")]
    VhostUser {
        /// Which one, in the order of the configuration.
        index: usize,
        /// The reason.
        source: Box<VhostUserError>,
    },
    /// The back end of a device cannot be watched.
    #[error("the back end of vhost-user device {index} cannot be watched")]
    VhostUserWatch {
        /// Which one, in the order of the configuration.
        index: usize,
        /// The reason.
        source: std::io::Error,
    },
    /// The vsock device cannot be made.
    #[error("the vsock device at {uds} cannot be made")]
    Vsock {
        /// The path of its socket.
        uds: String,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A network device cannot be made.
    #[error("network device {index} cannot be made")]
    Net {
        /// Which one, counted from 0.
        index: usize,
        /// The reason.
        source: NetError,
    },
    /// A log cannot be written to.
    #[error("the {what} log cannot be kept")]
    Log {
        /// Which one.
        what: &'static str,
        /// The reason.
        source: LogError,
    },
    /// More devices than windows or interrupts.
    #[error("there is no {what} left for another device")]
    Exhausted {
        /// What is missing.
        what: &'static str,
        /// The allocator's reason.
        source: vm_allocator::Error,
    },
    /// A device and its transport do not fit.
    #[error("a device cannot be put behind a virtio transport")]
    Transport(#[from] TransportError),
    /// KVM does not connect the device.
    #[error("a device cannot be connected")]
    Connect(#[from] KvmError),
    /// Two devices at one place.
    #[error("a device cannot be given its addresses")]
    Place(#[from] BusError),
    /// An eventfd cannot be made.
    #[error("an event cannot be made")]
    Event(#[source] std::io::Error),
}

/// The devices of a machine, ready for its vCPUs.
pub(crate) struct Devices {
    pub(crate) buses: Buses,
    /// What the guest is told of its virtio-mmio devices.
    pub(crate) mmio: Vec<MmioDevice>,
    /// The interrupt of the serial port, if there is one.
    pub(crate) serial_gsi: Option<u32>,
    /// What serves the disks, each on a thread of its own.
    pub(crate) disk_loops: Vec<EventLoop>,
}

/// Makes the devices that `config` names and connects them to `machine`.
pub(crate) fn assemble(
    config: Parts,
    machine: &Machine,
    event_loop: &mut EventLoop,
    ending: &Arc<Ending>,
) -> Result<Devices, DeviceError> {
    let mut logs = Logs::new();
    let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
    let mut of_others = Vec::new();
    for share in config.fs {
        devices.push(Box::new(shared_file_system(share, event_loop, ending)?));
    }
    if let Some(vsock) = config.vsock {
        devices.push(Box::new(socket_device(vsock)?));
    }
    if config.rng {
        devices.push(Box::new(Rng::new()));
    }
    if config.console_log.is_some() || config.console_input.is_some() {
        let output = match config.console_log {
            None => Box::new(std::io::sink()),
            Some(log) => logs.open(log).map_err(|source| DeviceError::Log {
                what: "console",
                source,
            })?,
        };
        devices.push(Box::new(Console::new(output, config.console_input)));
    }

    for (index, Net { tap, mac, mtu }) in config.nets.into_iter().enumerate() {
        let device = NetDevice::new(tap, mac, mtu);
        devices.push(Box::new(
            device.map_err(|source| DeviceError::Net { index, source })?,
        ));
    }
    for (index, device) in config.vhost_user.into_iter().enumerate() {
        of_others.push(vhost_user::make(index, device, event_loop)?);
    }

    let mut ports = legacy_ports(event_loop, ending)?;
    let mut serial_gsi = None;
    if let Some(log) = config.serial_log {
        let output = logs.open(log).map_err(|source| DeviceError::Log {
            what: "serial",
            source,
        })?;
        let line = event()?;
        machine.add_interrupt(&line, serial::IRQ)?;
        add_ports(
            &mut ports,
            SERIAL_PORT..SERIAL_PORT + 8,
            Box::new(serial::Serial::new(output, line)),
        )?;
        serial_gsi = Some(serial::IRQ);
    }

    let mut mmio = Bus::new();
    let mut resources = Resources::new()?;
    let devices = devices.into_iter().map(|device| (device, None));
    let of_others = (VHOST_USER_UID..)
        .zip(of_others)
        .map(|(uid, device)| (Box::new(device) as Box<dyn VirtioDevice>, Some(uid)));
    let mut windows = devices
        .chain(of_others)
        .map(|(device, uid)| {
            connect(
                device,
                uid,
                machine,
                &mut resources,
                event_loop.workers(),
                &mut mmio,
            )
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut disk_loops = Vec::with_capacity(config.disks.len());
    for (index, disk) in config.disks.into_iter().enumerate() {
        let (device, disk_loop) =
            disks::make(disk, ending).map_err(|source| DeviceError::Disk { index, source })?;
        windows.push(connect(
            Box::new(device),
            None,
            machine,
            &mut resources,
            disk_loop.workers(),
            &mut mmio,
        )?);
        disk_loops.push(disk_loop);
    }
    Ok(Devices {
        buses: Buses { ports, mmio },
        mmio: windows,
        serial_gsi,
        disk_loops,
    })
}

/// The parts of a configuration that devices are made from.
pub(crate) struct Parts {
    console_log: Option<File>,
    console_input: Option<OwnedFd>,
    serial_log: Option<File>,
    fs: Vec<Share<OwnedFd>>,
    disks: Vec<Disk<OwnedFd>>,
    nets: Vec<Net<OwnedFd>>,
    vhost_user: Vec<VhostUser<OwnedFd>>,
    vsock: Option<Vsock>,
    rng: bool,
}

impl Parts {
    /// Takes them out of `config`.
    pub(crate) fn take(config: &mut Config<OwnedFd>) -> Self {
        Self {
            console_log: config.console_log.take().map(File::from),
            console_input: config.console_input.take(),
            serial_log: config.serial_log.take().map(File::from),
            fs: std::mem::take(&mut config.fs),
            disks: std::mem::take(&mut config.disks),
            nets: std::mem::take(&mut config.nets),
            vhost_user: std::mem::take(&mut config.vhost_user),
            vsock: config.vsock.take(),
            rng: config.rng,
        }
    }
}

fn event() -> Result<EventFd, DeviceError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(DeviceError::Event)
}

/// A file system device; the machine ends when its backend does, since the guest's root may be on it.
fn shared_file_system(
    share: Share<OwnedFd>,
    event_loop: &mut EventLoop,
    ending: &Arc<Ending>,
) -> Result<VhostUserDevice, DeviceError> {
    let Share { tag, socket } = share;
    let socket = UnixStream::from(socket);
    let device = file_system(socket, &tag, FS_REQUEST_QUEUES, PATIENCE).map_err(|source| {
        DeviceError::Fs {
            tag: tag.clone(),
            source: Box::new(source),
        }
    })?;
    let lost = device
        .connection_lost()
        .map_err(|source| DeviceError::FsWatch {
            tag: tag.clone(),
            source,
        })?;
    let ending = Arc::clone(ending);
    event_loop.watch(lost, EventSet::IN, move || {
        ending.report(Err(Fault::BackendGone { tag }));
    });
    Ok(device)
}

fn socket_device(vsock: Vsock) -> Result<VsockDevice, DeviceError> {
    let uds = vsock.uds.display().to_string();
    VsockDevice::new(vsock.cid, vsock.uds).map_err(|source| DeviceError::Vsock {
        uds,
        source: source.into(),
    })
}

/// What a machine without legacy hardware still needs: ways to turn off and reset, and a clock that ends a probe early.
fn legacy_ports(
    event_loop: &mut EventLoop,
    ending: &Arc<Ending>,
) -> Result<Bus<Box<dyn PioDevice>>, DeviceError> {
    let mut ports: Bus<Box<dyn PioDevice>> = Bus::new();
    add_ports(
        &mut ports,
        power::PORTS,
        Box::new(Power::new(Arc::clone(ending))),
    )?;

    let reset = event()?;
    let requested = reset.try_clone().map_err(DeviceError::Event)?;
    let ending = Arc::clone(ending);
    event_loop.watch(requested, EventSet::IN, move || {
        ending.report(Ok(Exit::Reset));
    });
    add_ports(&mut ports, i8042::PORTS, Box::new(i8042::I8042::new(reset)))?;
    add_ports(&mut ports, rtc::PORTS, Box::new(rtc::Rtc))?;
    Ok(ports)
}

fn add_ports(
    ports: &mut Bus<Box<dyn PioDevice>>,
    range: std::ops::Range<u16>,
    device: Box<dyn PioDevice>,
) -> Result<(), BusError> {
    let len = range.end.saturating_sub(range.start);
    ports.insert(range.start.into(), len.into(), device)
}

/// Puts `device` behind a transport with a window, an interrupt and a kick for each queue. Its `uid` is its place unless
/// given.
fn connect(
    device: Box<dyn VirtioDevice>,
    uid: Option<u32>,
    machine: &Machine,
    resources: &mut Resources,
    workers: Arc<dyn Workers>,
    mmio: &mut Bus<MmioTransport>,
) -> Result<MmioDevice, DeviceError> {
    let window = resources.next_device(uid)?;
    let interrupt = Interrupt::new(event()?);
    machine.add_interrupt(interrupt.line(), window.gsi)?;
    let transport = MmioTransport::new(device, machine.memory().clone(), interrupt, workers)?;
    for (index, kick) in (0..).zip(transport.kicks()) {
        machine.add_kick(kick, window.base, index)?;
    }
    mmio.insert(window.base, window.size, transport)?;
    Ok(window)
}
