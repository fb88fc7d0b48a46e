// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What only root can show: acting as the guest's users, device nodes, mounts, and the sandboxed process.
//! Without root these tests are counted as ignored.

#[path = "../guest/mod.rs"]
mod guest;

/// Makes a module's table of tests.
macro_rules! tests {
    [$($test:ident),+ $(,)?] => {
        pub const TESTS: &[crate::Test] = &[$((stringify!($test), $test)),+];
    };
}

mod endings;
mod identity;
mod machine;
mod mounts;
mod privileges;
mod process;
mod sandbox;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// A test with its name.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    // The file server's process is this program, started again.
    if std::env::args().nth(1).as_deref() == Some(process::ARGUMENT) {
        process::serve();
    }
    // A test cannot remove a directory on which its thread still has mounts; they are gone when all have ended.
    let directory = tempfile::tempdir().unwrap();
    tempfile::env::override_temp_dir(directory.path()).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    let trials = [
        endings::TESTS,
        identity::TESTS,
        mounts::TESTS,
        privileges::TESTS,
        sandbox::TESTS,
    ]
    .concat()
    .into_iter()
    .map(|(name, test)| {
        let run = move || {
            // A thread of its own: credentials and namespaces belong to threads.
            std::thread::spawn(test)
                .join()
                .map_err(|_| "it panicked, see above".into())
        };
        Trial::test(name, run).with_ignored_flag(!is_root)
    })
    .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
