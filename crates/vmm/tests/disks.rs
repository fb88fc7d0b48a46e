// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A confined guest and its disks: files, and those of QEMU's storage daemon.

mod common;

use std::fs::File;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::harness::{Needs, Tests};
use common::process::{DEADLINE, Vmm, error_message};
use common::{code, driver};
use coracle_vmm::role::Event;
use coracle_vmm::{Disk, Exit, VhostUser};
use rustix::fs::{OFlags, open};
use tempfile::{NamedTempFile, TempDir};

/// The image: 64 sectors of threes.
const SIZE: usize = 64 * 512;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

fn main() {
    Tests::new()
        .cases(
            Needs::KvmAndRoot,
            named!(changed_sectors_are_in_the_file),
            [
                ("write", (OUT, &[0x0909_0909; 128][..], [9; 512])),
                ("zeroes", (WRITE_ZEROES, &[1, 0, 1, 0][..], [0; 512])),
                ("zeroes_unmapped", (WRITE_ZEROES, &[1, 0, 1, 1], [0; 512])),
                ("discard", (DISCARD, &[1, 0, 1, 0], [0; 512])),
                ("flush", (FLUSH, &[], [3; 512])),
            ],
        )
        .tests(
            Needs::KvmAndRoot,
            named![
                sector_is_read,
                read_only_disk_is_not_written,
                two_disks_are_found_in_order,
                disk_in_use_is_named,
                directory_is_no_disk,
                serial_number_that_is_too_long_is_refused,
                back_end_that_hangs_up_is_named,
                machine_stops_while_its_disk_is_busy,
            ],
        )
        .tests(
            Needs::KvmRootAndStorageDaemon,
            named![
                disk_of_the_storage_daemon_is_read,
                machine_goes_on_when_the_storage_daemon_dies,
            ],
        )
        .run()
}

fn image() -> NamedTempFile {
    let image = NamedTempFile::new().unwrap();
    std::fs::write(&image, [3; SIZE]).unwrap();
    image
}

fn writable(image: &NamedTempFile) -> OwnedFd {
    image.reopen().unwrap().into()
}

/// Brings the disk at `window` up and makes one request for sector 1: its header and these words, and room for `data`
/// bytes and a status. The status, behind the data, is then printed as a word.
fn request(window: u32, kind: u32, words: &[u32], data: u32) -> Vec<u8> {
    let header = [kind, 0, if kind <= OUT { 1 } else { 0 }, 0];
    let message: Vec<u8> = (driver::buffer(0)..)
        .step_by(4)
        .zip(header.iter().chain(words))
        .flat_map(|(at, word)| code::store(at, *word))
        .collect();
    let len = 16 + 4 * words.len() as u32;
    [
        driver::set_up(window, 1),
        message,
        // What is there if nothing is written.
        code::store(driver::answer(0) + data, 0xffff_ffff),
        driver::publish_request(window, 0, len, data + 1),
        driver::wait_for_used(0),
        code::load(driver::answer(0) + data),
        code::print_eax(),
    ]
    .concat()
}

/// The word of a status of success, or of an error, over what was there.
const fn word(status: u8) -> [u8; 4] {
    [status, 0xff, 0xff, 0xff]
}

fn print(address: u32) -> Vec<u8> {
    [code::load(address), code::print_eax()].concat()
}

fn then_power_off(code: &[Vec<u8>]) -> Vec<u8> {
    [&code.concat()[..], &code::power_off(), &code::SPIN].concat()
}

/// Runs a guest with these disks, and gives what it printed and how it ended.
fn run(code: &[u8], disks: Vec<(OwnedFd, bool)>) -> (Vec<u8>, Vec<Event>, String) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut descriptors = vec![OwnedFd::from(writer)];
    let mut configured = Vec::new();
    for (number, (disk, read_only)) in (6..).zip(disks) {
        descriptors.push(disk);
        configured.push(Disk {
            file: number,
            read_only,
            serial: format!("disk-{number}"),
        });
    }
    let vmm = Vmm::with_guest(code, descriptors, |config| {
        config.serial_log = Some(5);
        config.disks = configured;
    });
    let (events, _, stderr) = vmm.finish();
    let mut output = Vec::new();
    reader.read_to_end(&mut output).unwrap();
    (output, events, stderr)
}

fn shut_down() -> [Event; 2] {
    let reason = Exit::Shutdown;
    [Event::Running, Event::Exit { reason }]
}

fn sector_is_read() {
    let image = image();
    image.as_file().write_all_at(b"good", 512).unwrap();
    let guest = [
        request(driver::WINDOW, IN, &[], 512),
        print(driver::answer(0)),
    ];

    let (output, events, stderr) = run(&then_power_off(&guest), vec![(writable(&image), false)]);

    assert_eq!(events, shut_down(), "{stderr}");
    assert_eq!(output, [word(0), *b"good"].concat());
}

fn changed_sectors_are_in_the_file((kind, words, expected): (u32, &[u32], [u8; 512])) {
    let image = image();
    let guest = [request(driver::WINDOW, kind, words, 0)];

    let (output, events, stderr) = run(&then_power_off(&guest), vec![(writable(&image), false)]);

    assert_eq!(events, shut_down(), "{stderr}");
    assert_eq!(output, word(0));
    let stored = std::fs::read(&image).unwrap();
    assert_eq!(stored[512..1024], expected);
    assert!(stored[..512] == [3; 512] && stored[1024..] == [3; SIZE - 1024]);
}

fn read_only_disk_is_not_written() {
    let image = image();
    let file = open(image.path(), OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    let guest = [request(driver::WINDOW, OUT, &[9; 128], 0)];

    let (output, events, stderr) = run(&then_power_off(&guest), vec![(file, true)]);

    assert_eq!(events, shut_down(), "{stderr}");
    assert_eq!(output, word(1));
    assert_eq!(std::fs::read(&image).unwrap(), [3; SIZE]);
}

fn two_disks_are_found_in_order() {
    let images = [image(), image()];
    images[1].as_file().write_all_at(b"next", 512).unwrap();
    let guest = [
        request(driver::SECOND_WINDOW, IN, &[], 512),
        print(driver::answer(0)),
    ];

    let disks = images.iter().map(|image| (writable(image), false));
    let (output, events, stderr) = run(&then_power_off(&guest), disks.collect());

    assert_eq!(events, shut_down(), "{stderr}");
    assert_eq!(output, [word(0), *b"next"].concat());
}

fn disk_in_use_is_named() {
    let image = image();

    let disks = vec![(writable(&image), false), (writable(&image), true)];
    let (_, events, _) = run(&code::SPIN, disks);

    assert_eq!(
        error_message(&events),
        "the devices cannot be set up: disk 1 cannot be made: the disk is in use: another process holds a lock on its \
         file, so it cannot be read while it is written"
    );
}

fn directory_is_no_disk() {
    let directory = File::open("/").unwrap().into();

    let (_, events, _) = run(&code::SPIN, vec![(directory, true)]);

    assert_eq!(
        error_message(&events),
        "the devices cannot be set up: disk 0 cannot be made: a directory cannot be a disk: it has to be a regular file \
         or a block device"
    );
}

fn serial_number_that_is_too_long_is_refused() {
    let vmm = Vmm::with_guest(&code::SPIN, vec![writable(&image())], |config| {
        config.disks = vec![Disk {
            file: 5,
            read_only: false,
            serial: "123456789012345678901".to_owned(),
        }];
    });

    let (events, _, _) = vmm.finish();

    assert_eq!(
        error_message(&events),
        "the devices cannot be set up: disk 0 cannot be made: disk serial number \"123456789012345678901\" is not at \
         most 20 ASCII characters that can be seen"
    );
}

fn back_end_that_hangs_up_is_named() {
    let (socket, peer) = UnixStream::pair().unwrap();
    drop(peer);
    let vmm = Vmm::with_guest(&code::SPIN, vec![socket.into()], |config| {
        config.vhost_user = vec![VhostUser::Net {
            socket: 5,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: None,
        }];
    });

    let (events, _, _) = vmm.finish();

    assert_eq!(
        error_message(&events),
        "the devices cannot be set up: vhost-user device 0 cannot be made: cannot use the back end of the network card \
         02:00:00:00:00:01: the vhost-user back end failed at SET_OWNER: the vhost-user back end closed its connection"
    );
}

/// The same request again and again, for as long as the machine is there.
fn machine_stops_while_its_disk_is_busy() {
    let image = image();
    let busy = [
        request(driver::WINDOW, FLUSH, &[], 0),
        driver::publish_again(driver::WINDOW, 0),
    ]
    .concat();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let descriptors = vec![writer.into(), writable(&image)];
    let mut vmm = Vmm::with_guest(&busy, descriptors, |config| {
        config.serial_log = Some(5);
        config.disks = vec![Disk {
            file: 6,
            read_only: false,
            serial: String::new(),
        }];
    });
    reader.read_exact(&mut [0; 4]).unwrap();

    vmm.control.get_ref().shutdown(Shutdown::Write).unwrap();

    let status = vmm.wait();
    assert_eq!(ExitStatus::code(&status), Some(0));
}

/// A storage daemon with one image, killed when dropped.
struct StorageDaemon {
    process: Child,
    _directory: TempDir,
    connection: UnixStream,
}

impl StorageDaemon {
    fn start(image: &NamedTempFile) -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("block");
        let blockdev = format!(
            "driver=file,node-name=disk,filename={}",
            image.path().display()
        );
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={}",
            socket.display()
        );
        let process = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &blockdev, "--export", &export])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        let connection = loop {
            match UnixStream::connect(&socket) {
                Ok(connection) => break connection,
                Err(error) => assert!(begun.elapsed() < DEADLINE, "{error}"),
            }
            sleep(Duration::from_millis(5));
        };
        Self {
            process,
            _directory: directory,
            connection,
        }
    }

    fn guest(&self, code: &[u8], serial: OwnedFd) -> Vmm {
        let connection = self.connection.try_clone().unwrap();
        Vmm::with_guest(code, vec![connection.into(), serial], |config| {
            config.vhost_user = vec![VhostUser::Block { socket: 5 }];
            config.serial_log = Some(6);
        })
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn disk_of_the_storage_daemon_is_read() {
    let image = image();
    image.as_file().write_all_at(b"qemu", 512).unwrap();
    let daemon = StorageDaemon::start(&image);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let guest = [
        request(driver::WINDOW, IN, &[], 512),
        print(driver::answer(0)),
    ];

    let vmm = daemon.guest(&then_power_off(&guest), writer.into());

    let (events, _, stderr) = vmm.finish();
    let mut output = Vec::new();
    reader.read_to_end(&mut output).unwrap();
    assert_eq!(events, shut_down(), "{stderr}");
    assert_eq!(output, [word(0), *b"qemu"].concat());
}

fn machine_goes_on_when_the_storage_daemon_dies() {
    let image = image();
    let daemon = StorageDaemon::start(&image);
    let (mut reader, writer) = std::io::pipe().unwrap();
    // Until the status register says that the device needs a reset.
    let needs_reset = [0xf7, 0x05]
        .into_iter()
        .chain((driver::WINDOW + 0x70).to_le_bytes())
        .chain([64, 0, 0, 0, 0x74, 0xf4])
        .collect();
    let guest = [
        request(driver::WINDOW, IN, &[], 512),
        needs_reset,
        code::store(0x7000, u32::from_le_bytes(*b"lost")),
        print(0x7000),
    ];
    let vmm = daemon.guest(&then_power_off(&guest), writer.into());
    reader.read_exact(&mut [0; 4]).unwrap();

    drop(daemon);

    let (events, _, stderr) = vmm.finish();
    let mut output = Vec::new();
    reader.read_to_end(&mut output).unwrap();
    assert_eq!(events, shut_down(), "{stderr}");
    assert_eq!(output, *b"lost");
    assert!(
        stderr.contains("the back end of vhost-user device 0 is gone, and its device with it"),
        "{stderr}"
    );
}
