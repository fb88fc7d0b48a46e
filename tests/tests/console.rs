// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's console when the guest is loud.

use std::fs;
use std::io::ErrorKind;
use std::thread;
use std::time::Duration;

use coracle_tests::{Host, Image, guests};

/// More than the host keeps, in blocks, in lines, and byte by byte.
const LOUD_INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
while read module; do /bin/busybox insmod /modules/$module; done < /modules/order
exec > /dev/hvc0 2>&1
/bin/busybox head -c 1050000 /dev/zero | /bin/busybox tr '\\0' x
echo
/bin/busybox yes 'a line of a guest that has much to say' | /bin/busybox head -n 2000
/bin/busybox head -c 2000 /dev/zero | /bin/busybox tr '\\0' y | /bin/busybox dd bs=1 2>/dev/null
echo
echo the last words
/bin/busybox reboot -f
";

/// What the host keeps of a console.
const KEPT: u64 = 1 << 20;
/// Seconds within which all is said, and the guest has ended: many, for one that is emulated.
const DEADLINE: u32 = 100;

#[test]
fn flood_of_output_ends_is_kept_within_bounds_and_shows_its_end() {
    let host = Host::with_shared_images();
    let initrd = host.file(
        "loud.cpio",
        guests::initramfs_with(LOUD_INIT.as_bytes(), &[]),
    );

    let run = host
        .container(Image::BUSYBOX)
        .initrd(&initrd)
        .boot_timeout(DEADLINE)
        .command(["true"])
        .start();
    let largest = largest_log(run.id());
    let run = run.finish().expect(125);

    assert!(largest > KEPT / 2 && largest <= KEPT, "{largest} bytes");
    assert!(
        run.stderr.contains("guest| the last words"),
        "{}",
        run.stderr
    );
    assert!(run.stderr.len() < 64 << 10, "{} bytes", run.stderr.len());
    host.assert_clean();
}

/// The greatest size of the console's log of the run `process`, watched until it ends.
fn largest_log(process: i32) -> u64 {
    let mut largest = 0;
    while is_alive(process) {
        largest = largest.max(log_size(process).unwrap_or(0));
        thread::sleep(Duration::from_millis(5));
    }
    largest
}

/// Gone, or only its exit status is left.
fn is_alive(process: i32) -> bool {
    match fs::read_to_string(format!("/proc/{process}/stat")) {
        Ok(stat) => !stat.contains(") Z "),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => panic!("process {process} cannot be watched: {error}"),
    }
}

fn log_size(process: i32) -> Option<u64> {
    fs::read_dir(format!("/proc/{process}/fd"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            fs::read_link(path)
                .is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:console"))
        })
        .and_then(|path| Some(fs::metadata(path).ok()?.len()))
}
