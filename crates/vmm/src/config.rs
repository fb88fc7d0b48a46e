// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a virtual machine is made of, as a value that goes over a socket as JSON.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A virtual machine.
///
/// Over a socket its files are numbers of inherited descriptors; [`claim`](Config::claim) makes them owned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config<F = RawFd> {
    /// The number of vCPUs, at least one.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// The kernel: an ELF vmlinux with a PVH entry or a bzImage of one, a regular file. A bzImage is unpacked in memory at
    /// each start.
    pub kernel: F,
    /// The initial RAM disk, a regular file.
    #[serde(default = "none")]
    pub initrd: Option<F>,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
    /// Where the output of the virtio console goes. Without it there is no console.
    ///
    /// A regular file is kept within a limit: its oldest part goes. Anything else must not block for long, since the
    /// event loop waits for it. Two logs that are the same file are kept as one.
    #[serde(default = "none")]
    pub console_log: Option<F>,
    /// Whose bytes the virtio console gives the guest as input: a pipe, a stream socket or a terminal. There is a console
    /// if there is this or [`console_log`](Self::console_log). What the guest does not read stays where it is, but for a
    /// few KiB; when the other end is closed there is no more input.
    #[serde(default = "none")]
    pub console_input: Option<F>,
    /// Where the output of the serial port COM1 goes, as [`console_log`](Self::console_log). Without it there is no port.
    #[serde(default = "none")]
    pub serial_log: Option<F>,
    /// Shared file systems.
    #[serde(default = "Vec::new")]
    pub fs: Vec<Share<F>>,
    /// Disks, in the order in which the guest finds them.
    #[serde(default = "Vec::new")]
    pub disks: Vec<Disk<F>>,
    /// Network devices, in the order in which the guest finds them.
    #[serde(default = "Vec::new")]
    pub nets: Vec<Net<F>>,
    /// Devices that other processes serve, besides shared file systems.
    #[serde(default = "Vec::new")]
    pub vhost_user: Vec<VhostUser<F>>,
    /// The vsock device.
    #[serde(default)]
    pub vsock: Option<Vsock>,
    /// Whether there is an entropy device.
    #[serde(default)]
    pub rng: bool,
    /// An empty network namespace that a jailed VMM moves into, instead of one that it makes, which is a quarter of
    /// its start: [`EmptyNetwork`](crate::EmptyNetwork) makes one.
    #[serde(default = "none")]
    pub network: Option<F>,
    /// A listening Unix stream socket at which gdb finds the machine (`target remote PATH`), one debugger at a time.
    /// Without it nothing of the debugger's is there.
    #[serde(default = "none")]
    pub gdb: Option<F>,
    /// Whether the guest's first instruction waits for a debugger at [`gdb`](Self::gdb).
    #[serde(default)]
    pub gdb_wait: bool,
}

/// A virtio-fs device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share<F = RawFd> {
    /// The name that the guest mounts it by.
    pub tag: String,
    /// A Unix stream socket connected to its vhost-user backend.
    pub socket: F,
}

/// A virtio-blk device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk<F = RawFd> {
    /// What is on it, byte for byte: a regular file or a block device, open for reading, and for writing unless the disk
    /// is read-only. It is locked while the machine is there.
    pub file: F,
    /// Whether the guest can only read it.
    #[serde(default)]
    pub read_only: bool,
    /// What the guest finds it by: at most 20 characters of printed ASCII.
    #[serde(default)]
    pub serial: String,
}

/// A virtio-net device over a tap.
///
/// A tap that is deleted takes the device's link down, not the machine; so does an interface of the host's that is down, as
/// long as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net<F = RawFd> {
    /// An open tap, made with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`. The VMM sets up how packets are passed over it;
    /// its name, addresses and MTU are for whoever made it.
    pub tap: F,
    /// The guest's Ethernet address.
    pub mac: [u8; 6],
    /// The largest packet that the guest is to send, at least 68. Without it the guest chooses.
    #[serde(default)]
    pub mtu: Option<u16>,
}

/// The ACPI `_UID` of the first of a machine's [vhost-user devices](Config::vhost_user); the next one has the next.
pub const VHOST_USER_UID: u32 = 0x1000;

/// A device whose vhost-user back end is behind a connected Unix stream socket.
///
/// A back end that is lost ends the device, not the machine: the guest is told that the device needs a reset, and
/// standard error gets a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum VhostUser<F = RawFd> {
    /// A virtio-blk device: size, serial number and the rest are the back end's. By [`VHOST_USER_UID`] the guest knows which
    /// it is all the same.
    Block {
        /// The connection.
        socket: F,
    },
    /// A virtio-net device.
    Net {
        /// The connection.
        socket: F,
        /// The guest's Ethernet address.
        mac: [u8; 6],
        /// The largest packet that the guest is to send. Without it the guest chooses.
        #[serde(default)]
        mtu: Option<u16>,
    },
}

impl<F> VhostUser<F> {
    fn socket(&self) -> &F {
        match self {
            Self::Block { socket } | Self::Net { socket, .. } => socket,
        }
    }

    /// The same with another kind of socket.
    pub fn map<G>(self, mut change: impl FnMut(F) -> G) -> VhostUser<G> {
        match self {
            Self::Block { socket } => VhostUser::Block {
                socket: change(socket),
            },
            Self::Net { socket, mac, mtu } => VhostUser::Net {
                socket: change(socket),
                mac,
                mtu,
            },
        }
    }
}

/// A virtio-vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's context identifier, at least 3.
    pub cid: u64,
    /// The Unix socket that stands for the guest. A jailed VMM has this socket's directory as its root, so nothing
    /// but the sockets of this virtual machine may be in it.
    pub uds: PathBuf,
}

fn none<F>() -> Option<F> {
    None
}

/// Why a configuration cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number without an open descriptor.
    #[error("descriptor {0}, named by the configuration, is not open")]
    NotOpen(RawFd),
    /// Two owners of one descriptor.
    #[error("descriptor {0} is named twice by the configuration")]
    NamedTwice(RawFd),
    /// One of the first three descriptors.
    #[error("descriptor {0} is a standard stream, which the configuration may not name")]
    Standard(RawFd),
}

impl<F> Config<F> {
    /// A machine of vCPUs, memory and a kernel only.
    pub const fn new(vcpus: u8, memory_mib: u64, kernel: F) -> Self {
        Self {
            vcpus,
            memory_mib,
            kernel,
            initrd: None,
            cmdline: String::new(),
            console_log: None,
            console_input: None,
            serial_log: None,
            fs: Vec::new(),
            disks: Vec::new(),
            nets: Vec::new(),
            vhost_user: Vec::new(),
            vsock: None,
            rng: false,
            network: None,
            gdb: None,
            gdb_wait: false,
        }
    }

    /// All its descriptors.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = &F> {
        [&self.kernel]
            .into_iter()
            .chain(&self.initrd)
            .chain(&self.console_log)
            .chain(&self.console_input)
            .chain(&self.serial_log)
            .chain(&self.network)
            .chain(&self.gdb)
            .chain(self.fs.iter().map(|share| &share.socket))
            .chain(self.disks.iter().map(|disk| &disk.file))
            .chain(self.nets.iter().map(|net| &net.tap))
            .chain(self.vhost_user.iter().map(VhostUser::socket))
    }
}

impl Config<RawFd> {
    /// Makes the named descriptors owned, to be closed with the configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if a descriptor is not open, is a standard stream or is named twice.
    ///
    /// # Safety
    ///
    /// Nothing else in this process may own one of the named descriptors. That holds in a process that was just started
    /// with them for this purpose.
    pub unsafe fn claim(self) -> Result<Config<OwnedFd>, ConfigError> {
        let mut numbers: Vec<RawFd> = self.descriptors().copied().collect();
        numbers.sort_unstable();
        for (at, &number) in numbers.iter().enumerate() {
            if (0..3).contains(&number) {
                return Err(ConfigError::Standard(number));
            }
            if numbers.get(at + 1) == Some(&number) {
                return Err(ConfigError::NamedTwice(number));
            }
            if !is_open(number) {
                return Err(ConfigError::NotOpen(number));
            }
        }
        // SAFETY: the number is that of an open descriptor; it occurs once, and the caller has no other owner.
        let own = |number| unsafe { OwnedFd::from_raw_fd(number) };
        Ok(Config {
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            kernel: own(self.kernel),
            initrd: self.initrd.map(own),
            cmdline: self.cmdline,
            console_log: self.console_log.map(own),
            console_input: self.console_input.map(own),
            serial_log: self.serial_log.map(own),
            fs: self
                .fs
                .into_iter()
                .map(|share| Share {
                    tag: share.tag,
                    socket: own(share.socket),
                })
                .collect(),
            disks: self
                .disks
                .into_iter()
                .map(|disk| Disk {
                    file: own(disk.file),
                    read_only: disk.read_only,
                    serial: disk.serial,
                })
                .collect(),
            nets: self
                .nets
                .into_iter()
                .map(|net| Net {
                    tap: own(net.tap),
                    mac: net.mac,
                    mtu: net.mtu,
                })
                .collect(),
            vhost_user: self
                .vhost_user
                .into_iter()
                .map(|device| device.map(own))
                .collect(),
            vsock: self.vsock,
            rng: self.rng,
            network: self.network.map(own),
            gdb: self.gdb.map(own),
            gdb_wait: self.gdb_wait,
        })
    }
}

impl Config<OwnedFd> {
    /// All its descriptors, borrowed.
    pub(crate) fn borrowed(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.descriptors().map(AsFd::as_fd)
    }
}

fn is_open(number: RawFd) -> bool {
    // SAFETY: asking for the flags of a descriptor has no effect, whatever the number is.
    number >= 0 && unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use rstest::rstest;

    use super::*;

    fn minimal(kernel: RawFd) -> Config {
        Config::new(1, 16, kernel)
    }

    fn open_file() -> RawFd {
        tempfile::tempfile().unwrap().into_raw_fd()
    }

    #[test]
    fn what_is_left_out_is_not_there() {
        let config: Config =
            serde_json::from_str(r#"{"vcpus": 1, "memory_mib": 16, "kernel": 5}"#).unwrap();

        assert_eq!(config, minimal(5));
    }

    #[test]
    fn configuration_survives_the_socket() {
        let config = Config {
            initrd: Some(6),
            cmdline: "quiet".to_owned(),
            fs: vec![Share {
                tag: "share".to_owned(),
                socket: 7,
            }],
            nets: vec![Net {
                tap: 11,
                mac: [2, 0, 0, 0, 0, 1],
                mtu: Some(1500),
            }],
            disks: vec![Disk {
                file: 8,
                read_only: true,
                serial: "data".to_owned(),
            }],
            vhost_user: vec![
                VhostUser::Block { socket: 9 },
                VhostUser::Net {
                    socket: 10,
                    mac: [2, 0, 0, 0, 0, 1],
                    mtu: Some(1400),
                },
            ],
            vsock: Some(Vsock {
                cid: 3,
                uds: "/run/pod/vsock".into(),
            }),
            rng: true,
            ..minimal(5)
        };

        let text = serde_json::to_string(&config).unwrap();

        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config);
    }

    #[rstest]
    #[case::unknown_field(r#"{"vcpus": 1, "memory_mib": 16, "kernel": 5, "colour": "red"}"#)]
    #[case::too_many_vcpus(r#"{"vcpus": 256, "memory_mib": 16, "kernel": 5}"#)]
    #[case::no_kernel(r#"{"vcpus": 1, "memory_mib": 16}"#)]
    fn wrong_configuration_is_refused(#[case] text: &str) {
        assert!(serde_json::from_str::<Config>(text).is_err());
    }

    #[test]
    fn device_of_another_process_is_named_by_its_kind() {
        let text = r#"[{"kind": "block", "socket": 5},
            {"kind": "net", "socket": 6, "mac": [2, 0, 0, 0, 0, 1]}]"#;

        let devices: Vec<VhostUser> = serde_json::from_str(text).unwrap();

        let (mac, mtu) = ([2, 0, 0, 0, 0, 1], None);
        let net = VhostUser::Net {
            socket: 6,
            mac,
            mtu,
        };
        assert_eq!(devices, [VhostUser::Block { socket: 5 }, net]);
    }

    #[rstest]
    #[case::unknown_kind(r#"{"kind": "scsi", "socket": 5}"#)]
    #[case::no_kind(r#"{"socket": 5}"#)]
    #[case::no_address(r#"{"kind": "net", "socket": 5}"#)]
    #[case::address_of_a_disk(r#"{"kind": "block", "socket": 5, "mac": [2, 0, 0, 0, 0, 1]}"#)]
    fn wrong_device_of_another_process_is_refused(#[case] text: &str) {
        assert!(serde_json::from_str::<VhostUser>(text).is_err());
    }

    #[test]
    fn claimed_descriptors_keep_their_numbers() {
        let (kernel, initrd) = (open_file(), open_file());
        let (disk, socket) = (open_file(), open_file());
        let config = Config {
            initrd: Some(initrd),
            disks: vec![Disk {
                file: disk,
                read_only: false,
                serial: String::new(),
            }],
            vhost_user: vec![VhostUser::Block { socket }],
            ..minimal(kernel)
        };

        // SAFETY: all descriptors were just opened and given up.
        let config = unsafe { config.claim() }.unwrap();

        let found: Vec<_> = config.borrowed().map(|fd| fd.as_raw_fd()).collect();
        assert_eq!(found, [kernel, initrd, disk, socket]);
    }

    #[rstest]
    #[case::negative(-1, ConfigError::NotOpen(-1))]
    #[case::closed(100_000, ConfigError::NotOpen(100_000))]
    #[case::standard(2, ConfigError::Standard(2))]
    fn descriptor_that_cannot_be_owned_is_refused(
        #[case] number: RawFd,
        #[case] expected: ConfigError,
    ) {
        // SAFETY: none of the numbers is accepted.
        let error = unsafe { minimal(number).claim() }.unwrap_err();

        assert_eq!(error, expected);
    }

    #[test]
    fn descriptor_named_twice_is_refused() {
        let kernel = open_file();
        let config = Config {
            initrd: Some(kernel),
            ..minimal(kernel)
        };

        // SAFETY: the configuration is refused.
        let error = unsafe { config.claim() }.unwrap_err();

        assert_eq!(error, ConfigError::NamedTwice(kernel));
    }
}
