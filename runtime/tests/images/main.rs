// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle pull`, `images`, `rmi`, `load` and `tag`: the real program, on a store of each test's own. Registries are
//! Debian's docker-registry on the loopback interface; where what it takes is missing, its tests are counted as ignored.

mod full;
mod host;
mod keeping;
mod pulling;
mod refusing;
#[path = "../../../crates/registry/tests/common/mod.rs"]
mod registry;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// A test's name, and the test.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    let missing = registry::docker::missing_packages();
    if !missing.is_empty() {
        eprintln!("ignored without Debian's packages {}", missing.join(", "));
    }
    let has_machines = std::path::Path::new("/dev/kvm").exists();
    if !has_machines {
        eprintln!("ignored without /dev/kvm: tests of `coracle run`");
    }
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("ignored without root: tests of full disks");
    }
    let trial = |&(name, test): &Test| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let trials = keeping::TESTS
        .iter()
        .map(trial)
        .chain(pulling::FROM_DOCKER.iter().map(|test| {
            let is_ignored = !missing.is_empty();
            trial(test).with_ignored_flag(is_ignored)
        }))
        .chain(pulling::TESTS.iter().chain(refusing::TESTS).map(trial))
        .chain(
            full::TESTS
                .iter()
                .map(|test| trial(test).with_ignored_flag(!is_root)),
        )
        .chain(
            full::OF_RUNS
                .iter()
                .map(|test| trial(test).with_ignored_flag(!is_root || !has_machines)),
        )
        .chain(
            pulling::OF_RUNS
                .iter()
                .chain(refusing::OF_RUNS)
                .map(|test| trial(test).with_ignored_flag(!has_machines)),
        )
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
