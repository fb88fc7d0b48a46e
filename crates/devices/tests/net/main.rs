// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A network device between a driver and a real tap, each case in a network namespace of its own.
//!
//! It needs root and `/dev/net/tun`; without them its cases count as ignored.

/// Functions, each with its name.
macro_rules! cases {
    ($($case:ident),+ $(,)?) => { pub const ALL: &[$crate::Case] = &[$((stringify!($case), $case)),+]; };
}

mod commands;
mod concurrency;
mod ends;
mod frames;
mod guest;
mod host;
mod hostile;
mod offloads;
mod traffic;

use std::process::ExitCode;
use std::thread;

use libtest_mimic::{Arguments, Trial};

/// A test with its name.
type Case = (&'static str, fn());

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let lack = thread::spawn(host::lack).join().unwrap_or(None);
    if let Some(lack) = &lack {
        eprintln!("net: ignored, since {lack}");
    }
    let modules = [
        ("commands", commands::ALL),
        ("concurrency", concurrency::ALL),
        ("ends", ends::ALL),
        ("hostile", hostile::ALL),
        ("offloads", offloads::ALL),
        ("traffic", traffic::ALL),
    ];
    let trials = modules
        .iter()
        .flat_map(|(module, cases)| cases.iter().map(move |case| (module, case)))
        .map(|(module, &(name, case))| {
            // A thread of its own: namespaces belong to threads.
            let run = move || {
                let done = thread::spawn(case).join();
                done.map_err(|_| "it panicked, see above".into())
            };
            Trial::test(format!("{module}::{name}"), run).with_ignored_flag(lack.is_some())
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
