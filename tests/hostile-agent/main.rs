// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's first process that wishes the host ill, and the programs of a container that does.
//!
//! As `/init` of a guest, in place of the agent, it does what the file `/attack` says: one of the words below. Started
//! in a container, its first argument says what to do. It is linked statically: nothing else is where it runs.

mod boot;
mod calls;
mod files;
mod floods;
mod hello;
mod vsock;

use std::fs;
use std::io;
use std::thread;

fn main() -> io::Result<()> {
    let Ok(attack) = fs::read_to_string("/attack") else {
        return in_a_container();
    };
    boot::set_up()?;
    // What fails is part of the attack or ends with the host's patience: an init that returns is a kernel's panic.
    let _ = match attack.as_str() {
        "hello without an end" => hello::without_an_end(),
        "hello of rubbish" => hello::of_rubbish(),
        "hello and no more" => hello::say().map(stay),
        "flood of connections" => floods::connections(),
        "flood of the console" => floods::console(),
        "flood of the serial port" => floods::serial_port(),
        "open files" => boot::mount_share()
            .and_then(|()| files::open_many("/share/rootfs"))
            .and_then(|()| boot::restart()),
        attack => calls::serve(attack),
    };
    stay(());
    Ok(())
}

/// What the program does where it is not the first process of a guest.
fn in_a_container() -> io::Result<()> {
    let mut words = std::env::args().skip(1);
    let (what, place) = (words.next(), words.next().unwrap_or_default());
    match what.as_deref() {
        Some("open files") => files::open_many(&place),
        Some("call") => vsock::call_all(),
        Some("take streams") => vsock::take_streams(),
        Some("swap links") => files::swap(&place, &words.next().unwrap_or_default()),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Keeps `what` and does nothing more.
fn stay<T>(what: T) {
    loop {
        thread::park();
        // Unparked by nobody, but it may be.
        let _ = &what;
    }
}
