// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What only root can show: machines' networks in network namespaces of each test's own, with the kernel's own taps, packet
//! filter and routing, and real CNI plugins. No packet leaves this host. Without root these tests are counted as ignored.

/// Makes a module's table of tests.
macro_rules! tests {
    [$($test:ident),+ $(,)?] => {
        pub const TESTS: &[crate::Test] = &[$((stringify!($test), $test)),+];
    };
}

mod bridges;
mod holder;
mod nat;
mod plugins;
mod ports;
mod removal;
mod routing;
mod scripted;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use rustix::thread::UnshareFlags;

/// A test with its name.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    // A process that holds a network, to be killed, is this program, started again.
    if std::env::args().nth(1).as_deref() == Some(holder::ARGUMENT) {
        holder::hold();
    }
    let ovs_directory = tempfile::tempdir().unwrap();
    // SAFETY: no other thread has been started.
    unsafe { std::env::set_var(bridges::OVS_DIRECTORY, ovs_directory.path()) };
    let lacks_for_all = world::lacks_for_all();
    let lacks_plugins = lacks_for_all.or_else(plugins::lacks);
    let groups = [
        (nat::TESTS, lacks_for_all),
        (ports::TESTS, lacks_for_all),
        (routing::TESTS, lacks_for_all),
        (removal::TESTS, lacks_for_all),
        (bridges::TESTS, lacks_for_all),
        (
            bridges::OVS_TESTS,
            lacks_for_all.or_else(bridges::lacks_ovs),
        ),
        (scripted::TESTS, lacks_for_all),
        (plugins::TESTS, lacks_plugins),
        (
            plugins::IPVLAN_TESTS,
            lacks_plugins.or_else(plugins::lacks_ipvlan),
        ),
    ];
    let mut trials = Vec::new();
    for (tests, lacks) in groups {
        if let Some(reason) = lacks {
            eprintln!(
                "ignored, since {reason}: {}",
                tests
                    .iter()
                    .map(|(name, _)| *name)
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        }
        for (name, test) in tests {
            let run = move || {
                // A thread of its own, which alone is in the test's network namespace.
                std::thread::spawn(move || {
                    // SAFETY: this thread alone leaves its network namespace; no memory or descriptor is unshared.
                    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
                    test();
                })
                .join()
                .map_err(|_| "it panicked, see above".into())
            };
            trials.push(Trial::test(*name, run).with_ignored_flag(lacks.is_some()));
        }
    }
    let mut arguments = Arguments::from_args();
    // One after the other: a program that one test starts has the descriptors of all others until it runs.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit_code()
}
