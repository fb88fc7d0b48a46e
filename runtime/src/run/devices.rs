// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a machine has besides what every container needs: disks, networks, a debugger's socket, and devices that other
//! processes serve.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use coracle_devices::block::DiskFile;
use coracle_network::Attachment;
use coracle_oci::plan::{SandboxPlan, VirtualDisk};
use coracle_vmm::{Disk, Net, VhostUser};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::listeners::through_descriptor;
use super::{gdb, loop_devices, network};
use crate::cli::RunArguments;
use crate::until::until;

/// How long somebody who is busy may take to have room for us.
const BUSY: Duration = Duration::from_secs(5);
/// How long a disk may be looked at by another run that starts.
const LOOK: Duration = Duration::from_millis(200);

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
        gdb: Option<&gdb::Socket>,
    ) -> Result<Self> {
        let blocks = plan.served_disks.iter().map(|disk| {
            Ok(VhostUser::Block {
                socket: connect_to_back_end(&disk.socket)?,
            })
        });
        let nets = arguments.vhost_user_net.iter().enumerate();
        let nets = nets.map(|(place, net)| {
            Ok(VhostUser::Net {
                socket: connect_to_back_end(&net.socket)?,
                mac: network::served_mac(&plan.id, place, net).bytes(),
                mtu: None,
            })
        });
        Ok(Self {
            disks: plan.disks.iter().map(open_disk).collect::<Result<_>>()?,
            nets: network::devices(attachment)?,
            vhost_user: blocks.chain(nets).collect::<Result<_>>()?,
            gdb: gdb
                .map(|socket| socket.as_fd().try_clone_to_owned())
                .transpose()
                .context("cannot duplicate the socket for gdb")?,
            gdb_wait: arguments.gdb_wait,
        })
    }
}

/// Finds what is to be a disk. What is neither file nor block device might wait for somebody once it is opened, or do
/// something: it is looked at before, and what is opened then is what was looked at.
pub fn find_disk(source: &Path) -> Result<(OwnedFd, FileType)> {
    let what = || format!("cannot use the disk {}", source.display());
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = open(source, flags, Mode::empty()).with_context(what)?;
    let kind = FileType::from_raw_mode(fstat(&found).with_context(what)?.st_mode);
    ensure!(
        matches!(kind, FileType::RegularFile | FileType::BlockDevice),
        "{}: it is neither a regular file nor a block device",
        what()
    );
    Ok((found, kind))
}

fn open_disk(disk: &VirtualDisk) -> Result<Disk<OwnedFd>> {
    let what = || format!("cannot use the disk {}", disk.source.display());
    let (found, kind) = find_disk(&disk.source)?;
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    let access = match disk.read_only {
        true => OFlags::RDONLY,
        false => OFlags::RDWR,
    };
    let open = |flags| open(&path, access | OFlags::CLOEXEC | flags, Mode::empty());
    let file = if kind == FileType::BlockDevice {
        // What the host itself has mounted there, or put into a volume group, is not to change under it.
        let alone = match until(LOOK, || open(OFlags::EXCL), is_not(Errno::BUSY)) {
            Err(Errno::BUSY) => bail!("{}: it is mounted, or in use otherwise", what()),
            opened => opened.with_context(what)?,
        };
        match disk.read_only {
            // Others may read it, too.
            true => open(OFlags::empty()).with_context(what)?,
            false => alone,
        }
    } else {
        let file = open(OFlags::empty()).with_context(what)?;
        let found = fstat(&file).with_context(what)?;
        if let Some(device) = loop_devices::in_use(&found, LOOK).with_context(what)? {
            bail!("{}: this host has it in use itself, as {device}", what());
        }
        file
    };
    // Locked from here on: the machine has the same file, and could only name its disk by number.
    let ours = file.try_clone().with_context(what)?;
    DiskFile::new(ours.into(), disk.read_only).with_context(what)?;
    Ok(Disk {
        file,
        read_only: disk.read_only,
        serial: disk.serial.clone(),
    })
}

/// Connects to the process that serves a device.
fn connect_to_back_end(path: &Path) -> Result<OwnedFd> {
    let try_connect = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let connected = through_descriptor(path, |path| {
            Ok(connect(&socket, &SocketAddrUnix::new(path)?)?)
        });
        match connected {
            Ok(()) => Ok(socket),
            Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL)),
        }
    };
    // A socket with as many connections waiting as it takes has us try again.
    until(BUSY, try_connect, is_not(Errno::AGAIN))
        .and_then(|socket| {
            ioctl_fionbio(&socket, false)?;
            Ok(socket)
        })
        .map_err(|error| match error {
            Errno::AGAIN => io::Error::other("it takes no connection"),
            error => error.into(),
        })
        .with_context(|| {
            format!(
                "cannot connect to the vhost-user back end at {}",
                path.display()
            )
        })
}

/// Whether the outcome is another than somebody's being busy.
fn is_not<T>(busy: Errno) -> impl Fn(&Result<T, Errno>) -> bool {
    move |outcome| !matches!(outcome, Err(error) if *error == busy)
}

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::process::Command;
    use std::time::Instant;

    use rstest::rstest;
    use rustix::fs::{CWD, mknodat};

    use super::*;
    use crate::testing::alone;

    fn disk(source: impl Into<PathBuf>, read_only: bool) -> VirtualDisk {
        VirtualDisk {
            source: source.into(),
            serial: "disk0".to_owned(),
            read_only,
        }
    }

    fn image() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        file
    }

    /// A block device that is a file's; it goes with this.
    struct Loop {
        path: PathBuf,
        file: tempfile::NamedTempFile,
    }

    impl Loop {
        fn new() -> Self {
            let file = image();
            let made = Command::new("losetup")
                .args(["--find", "--show"])
                .arg(file.path())
                .output()
                .unwrap();
            assert!(made.status.success(), "{made:?}");
            let path = String::from_utf8(made.stdout).unwrap().trim().into();
            Self { path, file }
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").arg("-d").arg(&self.path).status();
        }
    }

    #[rstest]
    #[case::to_write(false)]
    #[case::to_read(true)]
    fn device_that_the_host_uses_is_no_disk(#[case] read_only: bool) {
        let device = Loop::new();
        // As a file system that is mounted has it.
        let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
        let mounted = open(&device.path, flags, Mode::empty()).unwrap();

        let error = open_disk(&disk(&device.path, read_only)).unwrap_err();

        drop(mounted);
        assert!(
            error
                .to_string()
                .ends_with("it is mounted, or in use otherwise"),
            "{error}"
        );
        open_disk(&disk(&device.path, read_only)).unwrap();
    }

    #[rstest]
    #[case::to_write(false)]
    #[case::to_read(true)]
    fn file_that_the_host_has_mounted_is_no_disk(#[case] read_only: bool) {
        let device = Loop::new();
        let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
        let mounted = open(&device.path, flags, Mode::empty()).unwrap();
        let directory = tempfile::tempdir_in(device.file.path().parent().unwrap()).unwrap();
        let other_name = directory.path().join("other");
        std::fs::hard_link(device.file.path(), &other_name).unwrap();

        let error = open_disk(&disk(&other_name, read_only)).unwrap_err();

        drop(mounted);
        assert_eq!(
            error.to_string(),
            format!(
                "cannot use the disk {}: this host has it in use itself, as {}",
                other_name.display(),
                device.path.display()
            )
        );
        open_disk(&disk(&other_name, read_only)).unwrap();
    }

    #[test]
    fn device_is_written_by_one_and_read_by_many() {
        // A process that another test starts would keep it for a moment.
        alone(device_is_written_by_one_and_read_by_many, || {
            let device = Loop::new();
            let readers = [(); 2].map(|()| open_disk(&disk(&device.path, true)).unwrap());
            drop(readers);
            let _writer = open_disk(&disk(&device.path, false)).unwrap();

            assert!(open_disk(&disk(&device.path, true)).is_err());
        });
    }

    #[rstest]
    #[case::fifo(FileType::Fifo)]
    #[case::character_device(FileType::CharacterDevice)]
    #[case::socket(FileType::Socket)]
    fn what_is_neither_file_nor_block_device_is_no_disk(#[case] kind: FileType) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("special");
        mknodat(CWD, &path, kind, Mode::RUSR, 0).unwrap();

        let error = open_disk(&disk(path, true)).unwrap_err();

        assert!(
            error.to_string().contains("neither a regular file"),
            "{error}"
        );
    }

    #[test]
    fn disk_of_another_is_named() {
        let file = image();
        let _other = open_disk(&disk(file.path(), false)).unwrap();

        let error = open_disk(&disk(file.path(), true)).unwrap_err();

        let said = format!("{error:#}");
        let start = format!(
            "cannot use the disk {}: the disk is in use",
            file.path().display()
        );
        assert!(said.starts_with(&start), "{said}");
    }

    #[test]
    fn file_without_a_sector_is_no_disk() {
        let file = tempfile::NamedTempFile::new().unwrap();

        let error = open_disk(&disk(file.path(), false)).unwrap_err();

        let said = format!("{error:#}");
        assert!(said.contains(&file.path().display().to_string()), "{said}");
        assert!(said.contains("a disk of 0 bytes is not possible"), "{said}");
    }

    #[test]
    fn file_is_a_disk() {
        let file = image();
        let other = image();
        File::set_permissions(other.as_file(), Permissions::from_mode(0o400)).unwrap();

        open_disk(&disk(file.path(), false)).unwrap();
        open_disk(&disk(other.path(), true)).unwrap();
    }

    #[test]
    fn back_end_that_takes_no_connection_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let busy = UnixListener::bind(&path).unwrap();
        // One waits already, which is as many as may.
        rustix::net::listen(&busy, 0).unwrap();
        let _first = connect_to_back_end(&path).unwrap();
        let begin = Instant::now();

        let error = connect_to_back_end(&path).unwrap_err();

        assert!(
            format!("{error:#}").ends_with("it takes no connection"),
            "{error:#}"
        );
        assert!(begin.elapsed() < 2 * BUSY);
    }

    #[test]
    fn connection_to_a_back_end_waits_for_its_answers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _back_end = UnixListener::bind(&path).unwrap();

        let connection = connect_to_back_end(&path).unwrap();

        let flags = rustix::fs::fcntl_getfl(&connection).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK));
    }
}
