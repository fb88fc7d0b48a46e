// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What runs inside the lab: its first process, and the instruction counter `labtime`.
//!
//! One static program, told apart by how it is called: the kernel starts it as process 1 from the
//! initramfs; under the name `labtime` it measures a command.

mod init;
mod labtime;
mod processes;
mod results;
mod runner;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args().next().unwrap_or_default();
    if Path::new(&name)
        .file_name()
        .is_some_and(|name| name == "labtime")
    {
        return labtime::main();
    }
    if std::process::id() != 1 {
        eprintln!("lab-guest is the first process of a lab, or `labtime` under that name");
        return ExitCode::FAILURE;
    }
    // Process 1 may not end: the kernel would panic, and the panic, not the cause, would be reported.
    match init::set_up().and_then(|port| runner::serve(&port)) {
        Ok(()) => eprintln!("lab: the runner ended"),
        Err(error) => eprintln!("lab: {error:#}"),
    }
    if let Err(error) = rustix::system::reboot(rustix::system::RebootCommand::Restart) {
        eprintln!("lab: cannot restart: {error}");
    }
    ExitCode::FAILURE
}
