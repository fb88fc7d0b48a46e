// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's initial file system: busybox, and a script that makes a shell of it.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;

use coracle_guest::cpio::Archive;
use rustix::fs::{MemfdFlags, memfd_create};

/// The guest's first process. It opens the console once: what is typed early would be lost with one that is closed. `cttyhack` gives the shell a controlling terminal, so that Ctrl-C reaches what runs in it;
/// when it ends, the machine is turned off, which is how the VMM ends.
const INIT: &str = "#!/bin/busybox sh
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
if [ -e /modules/order ]; then
    while read -r module; do insmod /modules/$module; done < /modules/order
fi
exec < /dev/hvc0 > /dev/hvc0 2>&1
echo \"Linux $(uname -r); 'exit' turns the machine off\"
HOME=/ setsid cttyhack sh
poweroff -f
";

/// An archive with a shell on top of the archive `below`, as a file in memory: the VMM maps it into the guest.
pub fn with_shell(below: Vec<u8>, busybox: &[u8]) -> io::Result<OwnedFd> {
    // Of archives in a row the kernel unpacks one after the other: ours has the last word.
    let mut archive = Archive::new(below);
    archive.directory("bin", 0o755)?;
    archive.file("bin/busybox", 0o755, busybox)?;
    archive.directory("dev", 0o755)?;
    // What the first process has open before it can mount anything.
    archive.character_device("dev/console", 0o600, 5, 1)?;
    archive.file("init", 0o755, INIT.as_bytes())?;

    let mut file = File::from(memfd_create("initramfs", MemfdFlags::CLOEXEC)?);
    file.write_all(&archive.finish()?)?;
    file.rewind()?;
    Ok(file.into())
}
