// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks and network cards against programs and devices of the host. What is not here is counted as ignored.

mod guest;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use coracle_devices::block::{Block, DiskError, DiskFile};
use coracle_devices::vhost_user::{PATIENCE, block, net};
use coracle_virtio::VirtioDevice;
use guest::{Guest, eventually};
use libtest_mimic::{Arguments, Trial};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tempfile::{NamedTempFile, TempDir};

const SIZE: usize = 1 << 20;
const SECTOR: usize = 512;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;

fn main() {
    let root = rustix::process::geteuid().is_root();
    let loop_devices = root && Path::new("/dev/loop-control").exists();
    let storage_daemon = is_installed("qemu-storage-daemon");
    let packet_switch = is_installed("dpdk-testpmd");
    let tests = vec![
        trial(
            "disk_of_qemus_storage_daemon_is_read_and_written",
            storage_daemon,
            || {
                disk_of_qemus_storage_daemon_is_read_and_written();
            },
        ),
        trial(
            "storage_daemon_that_dies_is_noticed",
            storage_daemon,
            || {
                storage_daemon_that_dies_is_noticed();
            },
        ),
        trial("image_that_qemu_writes_is_in_use", storage_daemon, || {
            image_that_qemu_writes_is_in_use();
        }),
        trial(
            "packet_comes_back_from_a_dpdk_switch",
            packet_switch,
            || {
                packet_comes_back_from_a_dpdk_switch();
            },
        ),
        trial(
            "block_device_is_a_disk",
            loop_devices,
            block_device_is_a_disk,
        ),
        trial("full_file_system_is_an_error_of_the_disk", root, || {
            // In a mount namespace of its own.
            std::thread::spawn(full_file_system_is_an_error_of_the_disk)
                .join()
                .unwrap();
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit()
}

fn trial(name: &str, is_possible: bool, test: impl FnOnce() + Send + 'static) -> Trial {
    let run = move || {
        test();
        Ok(())
    };
    Trial::test(name, run).with_ignored_flag(!is_possible)
}

fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(program).exists())
    })
}

/// A program that is killed when dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(command: &mut Command, socket: &Path) -> (Daemon, UnixStream) {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::null());
    let daemon = Daemon(command.spawn().unwrap());
    let stream = eventually(|| UnixStream::connect(socket).ok());
    (daemon, stream)
}

/// An image whose sectors have their number in each byte.
fn image() -> NamedTempFile {
    let image = NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..SIZE).map(|at| (at / SECTOR) as u8).collect();
    image.as_file().write_all(&bytes).unwrap();
    image
}

fn storage_daemon(image: &Path, directory: &TempDir) -> (Daemon, UnixStream) {
    let socket = directory.path().join("block");
    let mut command = Command::new("qemu-storage-daemon");
    command
        .arg("--blockdev")
        .arg(format!(
            "driver=file,node-name=disk,filename={}",
            image.display()
        ))
        .arg("--export")
        .arg(format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={}",
            socket.display()
        ));
    start(&mut command, &socket)
}

fn request(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

fn range(sector: u64, sectors: u32) -> [u8; 16] {
    let mut range = [0; 16];
    range[..8].copy_from_slice(&sector.to_le_bytes());
    range[8..12].copy_from_slice(&sectors.to_le_bytes());
    range
}

/// Reads, writes and zeroes, and looks at what is then on the disk.
fn exercise(guest: &mut Guest) {
    let read = guest.request(0, &[&request(IN, 3)], &[SECTOR as u32, 1]);
    assert_eq!((&read[..SECTOR], read[SECTOR]), (&[3; SECTOR][..], OK));
    let write = guest.request(0, &[&request(OUT, 4), &[0x5a; SECTOR]], &[1]);
    assert_eq!(write, [OK]);
    let zeroes = guest.request(0, &[&request(WRITE_ZEROES, 0), &range(8, 8)], &[1]);
    assert_eq!(zeroes, [OK]);
    assert_eq!(guest.request(0, &[&request(FLUSH, 0)], &[1]), [OK]);
    let read = guest.request(0, &[&request(IN, 4)], &[5 * SECTOR as u32, 1]);
    assert_eq!(read[..SECTOR], [0x5a; SECTOR]);
    assert_eq!(
        read[SECTOR..4 * SECTOR],
        [[5; SECTOR], [6; SECTOR], [7; SECTOR]].concat()
    );
    assert_eq!(read[4 * SECTOR..], [0; SECTOR + 1]);
    let past = guest.request(
        0,
        &[&request(IN, (SIZE / SECTOR) as u64)],
        &[SECTOR as u32, 1],
    );
    // Before the status there may be no data, and then the used length ends before it.
    assert!(
        past.last().is_none_or(|status| *status == IO_ERROR),
        "{past:?}"
    );
}

/// What the image has to hold after [`exercise`].
fn check(image: &File) {
    let mut stored = vec![0; 18 * SECTOR];
    image.read_exact_at(&mut stored, 0).unwrap();
    assert_eq!(stored[4 * SECTOR..5 * SECTOR], [0x5a; SECTOR]);
    assert_eq!(stored[8 * SECTOR..16 * SECTOR], [0; 8 * SECTOR]);
    assert_eq!(stored[16 * SECTOR..17 * SECTOR], [16; SECTOR]);
}

fn disk_of_qemus_storage_daemon_is_read_and_written() {
    let (image, directory) = (image(), TempDir::new().unwrap());
    let (_daemon, stream) = storage_daemon(image.path(), &directory);
    let device = block(stream, PATIENCE).unwrap();
    let mut capacity = [0; 8];
    device.read_config(0, &mut capacity);
    let lost = device.connection_lost().unwrap();
    let mut guest = Guest::new(device, 1);
    guest.activate();

    exercise(&mut guest);

    assert_eq!(u64::from_le_bytes(capacity), (SIZE / SECTOR) as u64);
    check(image.as_file());
    assert!(lost.read().is_err());
    guest.activate();
    let again = guest.request(0, &[&request(IN, 4)], &[SECTOR as u32, 1]);
    assert_eq!(again[..SECTOR], [0x5a; SECTOR], "after a reset");
}

fn storage_daemon_that_dies_is_noticed() {
    let (image, directory) = (image(), TempDir::new().unwrap());
    let (daemon, stream) = storage_daemon(image.path(), &directory);
    let device = block(stream, PATIENCE).unwrap();
    let lost = device.connection_lost().unwrap();
    let mut guest = Guest::new(device, 1);
    guest.activate();

    drop(daemon);

    eventually(|| {
        guest.workers.run();
        lost.read().ok()
    });
    assert!(guest.needs_reset());
}

fn image_that_qemu_writes_is_in_use() {
    let (image, directory) = (image(), TempDir::new().unwrap());
    let (_daemon, _stream) = storage_daemon(image.path(), &directory);

    let error = DiskFile::new(image.reopen().unwrap(), false).unwrap_err();

    assert!(matches!(error, DiskError::InUse { .. }), "{error:?}");
}

/// DPDK's test program, which sends each packet back to where it came from.
fn packet_comes_back_from_a_dpdk_switch() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("net");
    let mut command = Command::new("dpdk-testpmd");
    command
        .args(["--no-huge", "-m", "128", "--no-pci", "--no-shconf"])
        .arg(format!("--file-prefix=coracle-{}", std::process::id()))
        .args(["--lcores", "0@0,1@0", "--vdev"])
        .arg(format!("net_vhost0,iface={},queues=1", socket.display()))
        .args(["--", "--port-topology=loop", "--forward-mode=io"])
        .args(["--auto-start", "--no-mlockall", "--total-num-mbufs=2048"]);
    // Where it keeps files of its own.
    command.env("RUNTIME_DIRECTORY", directory.path());
    let (_daemon, stream) = start(command.stderr(Stdio::null()), &socket);
    let device = net(stream, [2, 0, 0, 0, 0, 1], Some(1500), PATIENCE).unwrap();
    let mut guest = Guest::new(device, 2);
    guest.activate();
    for _ in 0..64 {
        guest.queues[0].add(&[], &[2048]).unwrap();
    }
    guest.kick(0);
    // The header of virtio-net, then an Ethernet frame.
    let packet = [
        &[0; 12][..],
        &[0xff; 6],
        &[2, 0, 0, 0, 0, 1, 0x88, 0xb5],
        &[0x5a; 50],
    ]
    .concat();

    let mut sent = 0;
    let echo = eventually(|| {
        if sent < 32 {
            guest.queues[1].add(&[&packet], &[]).unwrap();
            guest.kick(1);
            sent += 1;
        }
        let received = guest.queues[0].used().unwrap()?;
        // Of its own it sends packets of another protocol.
        received.data.ends_with(&[0x5a; 50]).then_some(received)
    });

    assert_eq!(echo.data[12..], packet[12..]);
}

/// A loop device, gone when dropped.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn new(image: &Path) -> Self {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(image)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        Self(String::from_utf8(output.stdout).unwrap().trim_end().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .status();
    }
}

fn block_device_is_a_disk() {
    let image = image();
    let device = LoopDevice::new(image.path());
    let file = OpenOptions::new().read(true).write(true).open(&device.0);
    let disk = DiskFile::new(file.unwrap(), false).unwrap();
    let mut guest = Guest::new(Block::new(disk, "loop").unwrap(), 1);
    guest.activate();

    exercise(&mut guest);
    let discard = guest.request(0, &[&request(DISCARD, 0), &range(64, 64)], &[1]);

    assert_eq!(discard, [OK]);
    drop(guest);
    drop(device);
    check(image.as_file());
    let mut discarded = [1; 64 * SECTOR];
    image
        .as_file()
        .read_exact_at(&mut discarded, 64 * SECTOR as u64)
        .unwrap();
    assert_eq!(discarded, [0; 64 * SECTOR]);
}

fn full_file_system_is_an_error_of_the_disk() {
    let directory = TempDir::new().unwrap();
    // SAFETY: descriptors stay shared; this thread alone has other mounts from now on.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .unwrap();
    mount(
        "tmpfs",
        directory.path(),
        "tmpfs",
        MountFlags::empty(),
        c"size=64k",
    )
    .unwrap();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    let file = options.open(directory.path().join("disk")).unwrap();
    file.set_len(SIZE as u64).unwrap();
    let disk = DiskFile::new(file, false).unwrap();
    let mut guest = Guest::new(Block::new(disk, "").unwrap(), 1);
    guest.activate();

    let statuses: Vec<_> = (0..40)
        .map(|at| {
            let sector = at * 8;
            guest.request(0, &[&request(OUT, sector), &[1; 8 * SECTOR]], &[1])
        })
        .collect();
    let read = guest.request(0, &[&request(IN, 0)], &[SECTOR as u32, 1]);

    assert_eq!(statuses.first().unwrap(), &[OK]);
    assert_eq!(statuses.last().unwrap(), &[IO_ERROR]);
    assert_eq!(read[..=SECTOR], [&[1; SECTOR][..], &[OK]].concat());
    assert!(!guest.needs_reset());
}
