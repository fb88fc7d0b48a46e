// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shares a directory with the virtual machine that connects to a socket: `share DIRECTORY SOCKET`.
//!
//! Without a sandbox, to be read and tried; `role::main` is what to use for guests that are not trusted.

use std::error::Error;
use std::fs::File;
use std::os::unix::net::UnixListener;

use coracle_virtiofs::daemon::{self, DaemonConfig};
use coracle_virtiofs::passthrough::{FsConfig, PassthroughFs, SelfFds};
use coracle_virtiofs::server::{Server, ServerConfig};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(directory), Some(socket)) = (arguments.next(), arguments.next()) else {
        return Err("usage: share DIRECTORY SOCKET".into());
    };
    // The guest's kernel has applied the umask of its own process.
    rustix::process::umask(rustix::fs::Mode::empty());
    let share = PassthroughFs::new(
        File::open(directory)?.into(),
        SelfFds::open()?,
        FsConfig::default(),
    )?;
    let server = Server::new(share, ServerConfig::default());
    let served = daemon::serve(
        UnixListener::bind(&socket)?,
        server,
        &DaemonConfig::default(),
    );
    std::fs::remove_file(socket)?;
    Ok(served?)
}
