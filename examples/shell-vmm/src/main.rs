// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM of one's own: boots a kernel to busybox's shell, with the virtual machine's console on the terminal.
//!
//! ```text
//! shell-vmm KERNEL [INITRAMFS]
//! ```
//!
//! KERNEL is a bzImage or a vmlinux with a PVH entry. One that has virtio's console built in needs nothing else; for one
//! that has it as a module, INITRAMFS is an archive with `/modules` as `coracle-guest initramfs --modules` makes it.
//! `/bin/busybox`, statically linked, goes into the guest.

mod initramfs;
mod terminal;

use std::error::Error;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use coracle_vmm::{Config, Exit, Vm};
use rustix::stdio::{stdin, stdout};
use terminal::Raw;

const BUSYBOX: &str = "/bin/busybox";

/// `panic=-1` has a guest that panics reset at once, which ends the machine; there is no keyboard controller to look for,
/// and nothing is told of the boot but errors.
const CMDLINE: &str = "console=hvc0 quiet panic=-1 reboot=k i8042.noaux i8042.nokbd";

fn main() -> ExitCode {
    match run() {
        // The guest's shell was left: whoever asks for a reset, in a guest of nothing but a shell, wants the same.
        Ok(Exit::Shutdown | Exit::Reset) => ExitCode::SUCCESS,
        Ok(exit) => {
            eprintln!("shell-vmm: the guest ended: {exit:?}");
            ExitCode::FAILURE
        }
        Err(error) => {
            // Each error says what failed, and its source why.
            eprint!("shell-vmm: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Exit, Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let Some(kernel) = arguments.next() else {
        return Err("usage: shell-vmm KERNEL [INITRAMFS]".into());
    };
    let below = match arguments.next() {
        Some(path) => fs::read(path)?,
        None => Vec::new(),
    };
    let initrd = initramfs::with_shell(below, &fs::read(BUSYBOX)?)?;

    // The whole machine: one CPU, 256 MiB, a console on the terminal, and entropy. All that it is made of are open files,
    // so that nothing here needs to be found by name once it runs.
    let config = Config::<OwnedFd> {
        initrd: Some(initrd),
        cmdline: CMDLINE.to_owned(),
        console_input: Some(stdin().try_clone_to_owned()?),
        console_log: Some(stdout().try_clone_to_owned()?),
        rng: true,
        ..Config::new(1, 256, File::open(kernel)?.into())
    };
    // Everything that can fail for want of something happens here: the terminal is still as it was.
    let vm = Vm::new(config)?;

    // From here to the end of the machine what is typed is the guest's, Ctrl-C included.
    let _raw = Raw::enter(stdin())?;
    Ok(vm.run()?)
}
