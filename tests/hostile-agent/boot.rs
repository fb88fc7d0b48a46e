// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What any guest has to do before it can reach its host: file systems and modules.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

/// Mounts the devices and loads the modules that came with the agent.
pub fn set_up() -> io::Result<()> {
    mount("dev", "/dev", "devtmpfs", MountFlags::empty(), c"")?;
    mount("proc", "/proc", "proc", MountFlags::empty(), c"")?;
    for name in fs::read_to_string("/modules/order")?.lines() {
        match finit_module(File::open(Path::new("/modules").join(name))?, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Mounts what the host shares.
pub fn mount_share() -> io::Result<()> {
    fs::create_dir("/share")?;
    Ok(mount(
        "share",
        "/share",
        "virtiofs",
        MountFlags::empty(),
        c"",
    )?)
}

/// Resets the machine.
pub fn restart() -> io::Result<()> {
    Ok(reboot(RebootCommand::Restart)?)
}
