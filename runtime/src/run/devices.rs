// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a machine has besides what every container needs: disks, networks, a debugger's socket, and devices that other
//! processes serve.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use coracle_network::Attachment;
use coracle_oci::plan::{SandboxPlan, VirtualDisk};
use coracle_vmm::{Disk, Net, VhostUser};

use super::listeners::through_descriptor;
use super::network;
use crate::cli::RunArguments;

/// The devices, with their descriptors.
pub struct Devices {
    pub disks: Vec<Disk<OwnedFd>>,
    pub nets: Vec<Net<OwnedFd>>,
    pub vhost_user: Vec<VhostUser<OwnedFd>>,
    pub gdb: Option<OwnedFd>,
    pub gdb_wait: bool,
}

impl Devices {
    /// Opens what they need on the host.
    pub fn open(
        plan: &SandboxPlan,
        arguments: &RunArguments,
        attachment: Option<&Attachment>,
    ) -> Result<Self> {
        let blocks = arguments.vhost_user_blk.iter().map(|path| {
            Ok(VhostUser::Block {
                socket: connect(path)?,
            })
        });
        let nets = (0..).zip(&arguments.vhost_user_net).map(|(place, path)| {
            Ok(VhostUser::Net {
                socket: connect(path)?,
                mac: mac(&plan.id, place),
                mtu: None,
            })
        });
        Ok(Self {
            disks: plan.disks.iter().map(open_disk).collect::<Result<_>>()?,
            nets: network::devices(attachment)?,
            vhost_user: blocks.chain(nets).collect::<Result<_>>()?,
            gdb: arguments
                .gdb
                .as_deref()
                .map(listen)
                .transpose()?
                .map(OwnedFd::from),
            gdb_wait: arguments.gdb_wait,
        })
    }
}

fn open_disk(disk: &VirtualDisk) -> Result<Disk<OwnedFd>> {
    let what = || format!("cannot use the disk {}", disk.source.display());
    // What is neither file nor block device might wait for somebody once it is opened.
    let kind = fs::metadata(&disk.source).with_context(what)?.file_type();
    ensure!(
        kind.is_file() || kind.is_block_device(),
        "{}: it is neither a regular file nor a block device",
        what()
    );
    let file = File::options()
        .read(true)
        .write(!disk.read_only)
        .open(&disk.source)
        .with_context(what)?;
    Ok(Disk {
        file: file.into(),
        read_only: disk.read_only,
        serial: disk.serial.clone(),
    })
}

fn connect(path: &Path) -> Result<OwnedFd> {
    let stream = through_descriptor(path, UnixStream::connect).with_context(|| {
        format!(
            "cannot connect to the vhost-user back end at {}",
            path.display()
        )
    })?;
    Ok(stream.into())
}

/// Listens for a debugger. A socket that nobody listens on any more is replaced.
fn listen(path: &Path) -> Result<UnixListener> {
    let listen = || through_descriptor(path, UnixListener::bind);
    let listener = match listen() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead(path) => {
            fs::remove_file(path).and_then(|()| listen())
        }
        listener => listener,
    };
    listener.with_context(|| format!("cannot listen for gdb at {}", path.display()))
}

fn is_dead(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    is_socket && through_descriptor(path, |path: PathBuf| UnixStream::connect(path)).is_err()
}

/// An Ethernet address that nobody's vendor gave, for the device at this place in this container.
fn mac(id: &str, place: u64) -> [u8; 6] {
    let mut hasher = DefaultHasher::new();
    hasher.write(id.as_bytes());
    hasher.write_u64(place);
    let [a, b, c, d, e, ..] = hasher.finish().to_be_bytes();
    [0x02, a, b, c, d, e]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_devices_differ() {
        assert_ne!(mac("0123456789ab", 0), mac("0123456789ab", 1));
        assert_ne!(mac("0123456789ab", 0), mac("0123456789ac", 0));
    }

    #[test]
    fn socket_of_a_dead_debugger_is_replaced_and_no_other_file() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, file) = (directory.path().join("gdb"), directory.path().join("file"));
        drop(listen(&socket).unwrap());
        fs::write(&file, "precious").unwrap();

        let alive = listen(&socket).unwrap();

        assert!(listen(&socket).is_err(), "somebody listens");
        assert!(listen(&file).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        drop(alive);
    }

    #[test]
    fn fifo_is_no_disk() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let disk = VirtualDisk {
            source: path,
            serial: "disk0".to_owned(),
            read_only: true,
        };

        let error = open_disk(&disk).unwrap_err();

        assert!(
            error.to_string().contains("neither a regular file"),
            "{error}"
        );
    }
}
