// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle-agent`: PID 1 of the guest, and, executed again by itself, the first process of each container.

use std::error::Error;
use std::process::ExitCode;

use coracle_agent::{boot, init, log_error, shutdown};

fn main() -> ExitCode {
    let role = std::env::args().nth(1);
    if role.as_deref() == Some("init") {
        return init::main();
    }
    if !rustix::process::getpid().is_init() {
        eprintln!("coracle-agent: runs as the first process of a guest, and nowhere else");
        return ExitCode::FAILURE;
    }
    save_memory();
    // A first process that ends takes the kernel with it, in a panic that says nothing of why.
    std::panic::set_hook(Box::new(|panic| {
        log_error!("{panic}");
        shutdown::reset();
    }));
    let Err(error) = boot::run();
    log_error!("{}", chain(&error));
    shutdown::reset();
    ExitCode::FAILURE
}

/// An error and what caused it, on one line.
fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

/// Every page of the agent is one that containers do not get.
fn save_memory() {
    // SAFETY: no other thread allocates yet. One arena serves all threads, which allocate little.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    // A kernel without huge pages has none to save.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}
