// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Boots a kernel with its serial console on standard output:
//!
//! ```text
//! boot KERNEL [INITRD|-] [COMMAND LINE] [MEMORY IN MIB] [VCPUS]
//! ```

use std::error::Error;
use std::fs::File;
use std::io::stdout;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use coracle_vmm::{Config, Exit, Vm};

const CMDLINE: &str = "console=ttyS0 earlyprintk=ttyS0 reboot=k panic=-1";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let Some(kernel) = arguments.next() else {
        eprintln!("usage: boot KERNEL [INITRD|-] [COMMAND LINE] [MEMORY IN MIB] [VCPUS]");
        return Ok(ExitCode::FAILURE);
    };
    let initrd = arguments.next().filter(|path| path != "-");
    let cmdline = arguments.next().unwrap_or_else(|| CMDLINE.to_owned());
    let memory_mib = arguments.next().map_or(Ok(256), |mib| mib.parse())?;
    let vcpus = arguments.next().map_or(Ok(1), |count| count.parse())?;
    let config = Config::<OwnedFd> {
        initrd: initrd.map(File::open).transpose()?.map(OwnedFd::from),
        cmdline,
        serial_log: Some(stdout().as_fd().try_clone_to_owned()?),
        rng: true,
        ..Config::new(vcpus, memory_mib, File::open(kernel)?.into())
    };
    let exit = Vm::new(config)?.run()?;
    eprintln!("the guest ended: {exit:?}");
    Ok(match exit {
        Exit::Shutdown | Exit::Reset => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
