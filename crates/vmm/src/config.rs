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
    /// The kernel: an ELF vmlinux with a PVH entry, a regular file.
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
    /// Where the output of the serial port COM1 goes, as [`console_log`](Self::console_log). Without it there is no port.
    #[serde(default = "none")]
    pub serial_log: Option<F>,
    /// Shared file systems.
    #[serde(default = "Vec::new")]
    pub fs: Vec<Share<F>>,
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
    /// All its descriptors.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = &F> {
        [&self.kernel]
            .into_iter()
            .chain(&self.initrd)
            .chain(&self.console_log)
            .chain(&self.serial_log)
            .chain(&self.network)
            .chain(self.fs.iter().map(|share| &share.socket))
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
            serial_log: self.serial_log.map(own),
            fs: self
                .fs
                .into_iter()
                .map(|share| Share {
                    tag: share.tag,
                    socket: own(share.socket),
                })
                .collect(),
            vsock: self.vsock,
            rng: self.rng,
            network: self.network.map(own),
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
        Config {
            vcpus: 1,
            memory_mib: 16,
            kernel,
            initrd: None,
            cmdline: String::new(),
            console_log: None,
            serial_log: None,
            fs: Vec::new(),
            vsock: None,
            rng: false,
            network: None,
        }
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
    fn claimed_descriptors_keep_their_numbers() {
        let (kernel, initrd) = (open_file(), open_file());
        let config = Config {
            initrd: Some(initrd),
            ..minimal(kernel)
        };

        // SAFETY: both descriptors were just opened and given up.
        let config = unsafe { config.claim() }.unwrap();

        let found: Vec<_> = config.borrowed().map(|fd| fd.as_raw_fd()).collect();
        assert_eq!(found, [kernel, initrd]);
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
