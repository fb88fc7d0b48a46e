// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that this host uses as disks itself, through loop devices.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, Stat, open};
use rustix::io::Errno;
use rustix::ioctl::{Getter, ioctl};

use crate::until::until;

/// `LOOP_GET_STATUS64`.
const GET_STATUS: rustix::ioctl::Opcode = 0x4c05;
/// `struct loop_info64`, in words of 64 bits. It begins with the file's device and inode.
type Status = [u64; 29];

/// The loop device of the file that `file` tells of, if there is one that is mounted or in use otherwise. Somebody may look
/// at it for as long as `look`.
pub fn in_use(file: &Stat, look: Duration) -> io::Result<Option<String>> {
    let devices = match fs::read_dir("/sys/block") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        devices => devices?,
    };
    for device in devices {
        let device = device?;
        let name = device.file_name().to_string_lossy().into_owned();
        // There are many that are nobody's.
        if !name.starts_with("loop") || !device.path().join("loop").exists() {
            continue;
        }
        let path = Path::new("/dev").join(name);
        if !is_of(&path, file) {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        let open = || open(&path, flags, Mode::empty());
        let opened = until(look, open, |opened| !matches!(opened, Err(Errno::BUSY)));
        if matches!(opened, Err(Errno::BUSY)) {
            return Ok(Some(path.display().to_string()));
        }
    }
    Ok(None)
}

/// Whether the loop device is of this file. One that has gone meanwhile, or that we may not open, is not.
fn is_of(device: &Path, file: &Stat) -> bool {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(device) = open(device, flags, Mode::empty()) else {
        return false;
    };
    // SAFETY: this is what the kernel writes for this request.
    let status = unsafe { ioctl(&device, Getter::<GET_STATUS, Status>::new()) };
    matches!(status, Ok([device, inode, ..]) if (device, inode) == (file.st_dev, file.st_ino))
}
