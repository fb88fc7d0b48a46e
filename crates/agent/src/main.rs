// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle-agent`: PID 1 of the guest, and, executed again by itself, the first process of each container and the maker of
//! further ones; and what the kernel executes for want of a module.

use std::process::ExitCode;

use coracle_agent::{boot, chain, init, log_error, modules, shutdown};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    if let Some(role) = init::Role::of(arguments.get(1).map(String::as_str)) {
        return init::main(role);
    }
    if let Some(name) = modules::asked_for(&arguments) {
        return modules::answer_kernel(name);
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

/// Every page of the agent is one that containers do not get.
fn save_memory() {
    // SAFETY: no other thread allocates yet. One arena serves all threads, which allocate little.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    // A kernel without huge pages has none to save.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}
